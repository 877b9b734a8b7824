"""Huawei's Ascend, by the ONNX operators that CANN's converter (ATC) takes."""

from __future__ import annotations

from pocketfit.analysis.accelerators.table import Table, listed

OPERATORS = listed(
    "Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift "
    "BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Celu Clip Compress Concat Constant ConstantOfShape Conv "
    "ConvTranspose Cos Cosh CumSum DepthToSpace Det Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten "
    "Floor Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual "
    "GridSample GRU Hardmax HardSigmoid HardSwish Identity If InstanceNormalization IsInf IsNaN LayerNormalization "
    "LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool LRN LSTM MatMul Max MaxPool MaxRoiPool "
    "MaxUnpool Mean MeanVarianceNormalization Min Mod Mul Multinomial Neg NonMaxSuppression NonZero Not OneHot Or "
    "Pad Pow RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 "
    "ReduceLogSum ReduceLogSumExp ReduceMean ReduceMin ReduceProd ReduceSumSquare ReduceSum ReduceMax Relu Reshape "
    "Resize ReverseSequence RoiAlign Round PRelu Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign "
    "Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum "
    "Tan Tanh TfIdfVectorizer ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor"
)


def tables() -> tuple[Table, ...]:
    """One table, of ONNX operators: the names of ONNX in CANN's list, without CANN's own operators."""
    return (
        Table(
            target="ascend",
            title="Huawei Ascend, CANN 8.0.0 (ATC, Atlas inference series)",
            format="onnx",
            source="hiascend.com, CANN commercial 8.0.0, operator list for ONNX (apiref/aolapi/operatorlist_00176)",
            date="CANN 8.0.0",
            read="2026-11-28",
            operators=OPERATORS,
            otherwise="ATC refuses the file, unless a custom operator is supplied",
            notes=(
                "The list has names only: the page of each operator states its dtypes and limits",
                "QuantizeLinear and DequantizeLinear are not listed: hand ATC the float file, and quantize with"
                " Ascend's own tools, whose operators the list has (AscendQuant, AscendAntiQuant)",
                "The list is for ONNX 1.12 and the Atlas inference series",
            ),
        ),
    )
