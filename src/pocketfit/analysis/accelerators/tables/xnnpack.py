"""XNNPACK, as LiteRT's delegate (.tflite) and as ONNX Runtime's execution provider (.onnx)."""

from __future__ import annotations

from pocketfit.analysis.accelerators.table import Table, listed, noted

LITERT = (
    listed(
        "ADD CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE FULLY_CONNECTED LEAKY_RELU LOGISTIC MAX_POOL_2D "
        "MEAN MUL PAD RESHAPE RESIZE_BILINEAR SLICE SPACE_TO_DEPTH SPLIT SUB TANH TRANSPOSE TRANSPOSE_CONV",
        *("float32", "int8", "uint8"),
    )
    | listed(
        "ABS AVERAGE_POOL_2D CEIL DIV FLOOR HARD_SWISH MAXIMUM MINIMUM NEG PRELU RELU RELU6 RELU_N1_TO_1 ROUND "
        "SOFTMAX SQRT SQUARE SQUARED_DIFFERENCE STRIDED_SLICE",
        "float32",
    )
    | listed("ELU", "float32", "int8")
    | listed("QUANTIZE", "float32", "int8", "uint8")
    | listed("DEQUANTIZE", "int8", "uint8", note="one scale for the tensor")
)
LITERT_NOTES = {
    "ADD": "two inputs",
    "AVERAGE_POOL_2D": "no 1 x 1 kernel with a stride",
    "CONCATENATION": "two to four inputs",
    "CONV_2D": "stored weights and a bias",
    "DEPTHWISE_CONV_2D": "stored weights and a bias",
    "FULLY_CONNECTED": "stored weights",
    "MAX_POOL_2D": "no 1 x 1 kernel with a stride",
    "MEAN": "4D, over height and width or width alone",
    "RESHAPE": "a stored shape",
    "SOFTMAX": "beta = 1",
    "SPLIT": "two to four outputs",
    "STRIDED_SLICE": "strides of 1",
    "TRANSPOSE": "a stored permutation",
}
PROVIDER = listed(
    "AveragePool Conv ConvTranspose Gemm MatMul MaxPool QLinearConv Resize Softmax"
    " com.microsoft:QLinearAveragePool com.microsoft:QLinearConvTranspose com.microsoft:QLinearSoftmax"
)
PROVIDER_NOTES = {
    "AveragePool": "2D only",
    "Conv": "2D only, stored weights and bias",
    "ConvTranspose": "2D only, stored weights and bias",
    "Gemm": "2D only",
    "MatMul": "2D only",
    "MaxPool": "2D only",
    "QLinearConv": "2D only; stored weights, bias, scales and zero points",
    "Resize": "bilinear, 2D or 4D",
    "Softmax": "from opset 13 on the last axis only",
}


def tables() -> tuple[Table, ...]:
    """A table of TFLite operators, and one of ONNX operators."""
    return (
        Table(
            target="xnnpack",
            title="XNNPACK delegate of LiteRT",
            format="tflite",
            source="github.com/google-ai-edge/LiteRT, tflite/delegates/xnnpack/README.md at 75c5fc7",
            date="2025-11-04",
            read="2026-11-28",
            operators=noted(LITERT, LITERT_NOTES),
            otherwise="LiteRT's builtin kernel runs it on the CPU",
            notes=("`pocketfit measure --profile` tells which operators XNNPACK took on this machine",),
        ),
        Table(
            target="xnnpack",
            title="XNNPACK execution provider of ONNX Runtime",
            format="onnx",
            source="github.com/microsoft/onnxruntime (gh-pages), docs/execution-providers/Xnnpack-ExecutionProvider.md"
            " at 19d9fff",
            date="ONNX Runtime 1.14 and later",
            read="2026-11-28",
            operators=noted(PROVIDER, PROVIDER_NOTES),
            otherwise="ONNX Runtime's CPU provider runs it",
            notes=("QuantizeLinear and DequantizeLinear are not listed: hand this provider the float file",),
        ),
    )
