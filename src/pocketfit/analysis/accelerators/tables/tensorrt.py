"""TensorRT, by its ONNX parser's support matrix; the rules of quantized files are in ../tensorrt_rules.py."""

from __future__ import annotations

from pocketfit.analysis.accelerators.table import Table, listed, noted

FLOATS = ("float32", "float16", "bfloat16")
NUMBERS = (*FLOATS, "int32", "int64")
ANY = (*NUMBERS, "bool")
OPERATORS = (
    listed(
        "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh "
        "CumSum Dropout Einsum Elu Erf Exp Floor Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool "
        "GroupNormalization GRU HardSigmoid HardSwish Hardmax InstanceNormalization IsInf LayerNormalization "
        "LeakyRelu Log LogSoftmax LRN LSTM LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization Pow PRelu "
        "QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal Resize RNN Round "
        "Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Upsample",
        *FLOATS,
    )
    | listed(
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Min Mod Mul "
        "Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK",
        *NUMBERS,
    )
    | listed(
        "Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop "
        "OneHot Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where",
        *ANY,
    )
    | listed("Cast CastLike", *ANY, "uint8")
    | listed("DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign", "float32", "float16")
    | listed("Gelu", *NUMBERS, "int8")
    | listed("Mean", *NUMBERS, "float8e4m3fn")
    | listed("And Not Or Xor", "bool")
    | listed("DequantizeLinear", "int8", "float8e4m3fn", "int4", note="the zero point must be 0")
)
NOTES = {
    "AveragePool": "2D or 3D only, no dilation",
    "Dropout": "not in training mode",
    "GridSample": "4D only",
    "GRU": "both directions need the same activations",
    "LSTM": "both directions need the same activations; input_forget and layout must be 0",
    "MaxPool": "2D or 3D only, no dilation, no indices",
    "Pad": "axes must be stored",
    "QuantizeLinear": "the zero point must be 0",
    "ReduceMean": "axes must be stored",
    "Resize": "nearest or linear, without antialiasing",
    "ScatterND": "no reduction",
    "Slice": "axes must be stored",
    "Squeeze": "axes must be stored",
    "TopK": "K below 3840, sorted",
    "Unsqueeze": "axes must be constant",
}


def tables() -> tuple[Table, ...]:
    """One table, of ONNX operators."""
    return (
        Table(
            target="tensorrt",
            title="NVIDIA TensorRT 10.1 (ONNX parser)",
            format="onnx",
            source="github.com/onnx/onnx-tensorrt, docs/operators.md at 96e7810 (ONNX-TensorRT 10.1 GA)",
            date="2024-06-17",
            read="2026-11-28",
            operators=noted(OPERATORS, NOTES),
            otherwise="the parser refuses the file, unless a plugin of that name is loaded",
            # Between Q/DQ pairs an ONNX file states floats; TensorRT fuses the pairs into an int8 layer.
            counts_as={"int8": "float32", "uint8": "float32"},
        ),
    )
