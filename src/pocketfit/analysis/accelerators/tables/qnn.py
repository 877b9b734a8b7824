"""Qualcomm's QNN, through its execution provider of ONNX Runtime."""

from __future__ import annotations

from pocketfit.analysis.accelerators.table import Table, listed, noted

OPERATORS = listed(
    "Abs Add And ArgMax ArgMin Asin Atan AveragePool BatchNormalization Cast Ceil Clip Concat Conv ConvInteger "
    "ConvTranspose Cos CumSum DepthToSpace DequantizeLinear DynamicQuantizeLinear Div Einsum Elu Equal Exp Expand "
    "Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual "
    "GridSample GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization IsNaN LRN LSTM "
    "LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization MatMul MatMulInteger Max MaxPool "
    "Mean Min Mod Mul Neg NonZero Not Or PRelu Pad Pow QuantizeLinear RandomNormalLike RandomUniformLike Reciprocal "
    "ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu RMSNormalization Reshape Resize RoiAlign "
    "Round RotaryEmbedding STFT ScatterElements ScatterND Sigmoid Sign Sin Slice Softmax Softplus SpaceToDepth Split "
    "Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Unsqueeze Upsample Where"
) | listed(
    "com.microsoft:FusedMatMul com.microsoft:MatMulNBits com.microsoft:QuickGelu"
    " com.microsoft:SimplifiedLayerNormalization"
)
NOTES = {
    "ConvInteger": "only behind DynamicQuantizeLinear",
    "DynamicQuantizeLinear": "only in front of ConvInteger or MatMulInteger",
    "Gather": "positive indices only",
    "LpNormalization": "p = 2 only",
    "MatMul": "HTP: uint8 x uint8, uint8 x uint16 or uint16 x uint8",
    "MatMulInteger": "only behind DynamicQuantizeLinear",
    "RotaryEmbedding": "HTP only",
}


def tables() -> tuple[Table, ...]:
    """One table, of ONNX operators. The source names dtypes for a few operators only."""
    return (
        Table(
            target="qnn",
            title="Qualcomm QNN (HTP), execution provider 2.3.0 of ONNX Runtime",
            format="onnx",
            source="github.com/onnxruntime/onnxruntime-qnn, docs/execution_providers/QNN-ExecutionProvider.md at"
            " 0131740 (QNN EP 2.3.0, QAIRT 2.47.0)",
            date="QNN EP 2.3.0",
            read="2026-11-28",
            operators=noted(OPERATORS, NOTES),
            otherwise="ONNX Runtime runs it on the CPU",
            notes=(
                "The source lists operators without their dtypes, and says that QNN's quantized operators typically"
                " take uint8 and uint16: prefer a file with uint8 activations (U8S8) to one with int8",
                "QNN takes fixed shapes only: fix the batch before it is handed over",
            ),
        ),
    )
