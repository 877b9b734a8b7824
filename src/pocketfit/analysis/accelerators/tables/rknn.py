"""Rockchip's RK3588, by the operator lists of RKNN Toolkit2."""

from __future__ import annotations

from pocketfit.analysis.accelerators.table import Table, listed, noted

NPU = listed(
    "Add BatchNormalization Concat Conv ConvTranspose Expand Gather LSTM Max Min Mul Pad MaxPool GlobalMaxPool "
    "AveragePool GlobalAveragePool Pow Relu Clip PRelu LeakyRelu Reshape Resize Slice Softmax Split Sub Tile "
    "Transpose Sigmoid Tanh Softplus HardSigmoid HardSwish Elu Mish Where MatMul",
    *("int8", "float16"),
) | listed("Div GRU LayerNormalization MeanVarianceNormalization", "float16")
NOTES = {
    "Conv": "kernels up to 31 x 31 (depthwise 8 x 8), strides up to 7, padding up to 15",
    "ConvTranspose": "strides of 1, 2, 4 or 8; group 1, or as many as channels",
    "LayerNormalization": "over the axes [1] or [1, 2, 3]",
    "MatMul": "the shared axis up to 8192",
    "Resize": "nearest or linear, by whole factors of 2 to 8",
    "Slice": "batch 1; steps of 1",
    "Softmax": "batch 1; over channels or width",
    "Tile": "batch 1",
    "Transpose": "each permutation has limits of its own",
}
CPU = (
    "ArgMin ArgMax Cast Cos DepthToSpace Equal Exp Flatten Greater GreaterOrEqual InstanceNormalization Less "
    "LessOrEqual LogSoftmax LpNormalization LRN MaxRoiPool MaxUnpool ReduceMax ReduceMean ReduceSum ReduceMin "
    "ReverseSequence RoiAlign ScatterND Sin SpaceToDepth Sqrt Squeeze Erf Floor Mod And GatherElements Log"
)
UNSTATED = (
    "Constant ConstantOfShape DequantizeLinear Dropout EyeLike Gemm Identity If QuantizeLinear Shape Size Unsqueeze"
)
DISPUTED = "Gelu Hardmax RMSNormalization Upsample Not ReduceL2 Round TopK OneHot"


def tables() -> tuple[Table, ...]:
    """One table, of ONNX operators."""
    elsewhere = dict.fromkeys(CPU.split(), "the chip's CPU runs it")
    elsewhere |= dict.fromkeys(
        UNSTATED.split(), "RKNN Toolkit2 takes it, and does not state where it runs (it rewrites some operators)"
    )
    elsewhere |= dict.fromkeys(DISPUTED.split(), "the compiler's list has it, and the list of ONNX operators has not")
    return (
        Table(
            target="rknn",
            title="Rockchip RK3588 NPU, RKNN Toolkit2 2.3.2",
            format="onnx",
            source="github.com/airockchip/rknn-toolkit2 at 59a913d, doc/05_RKNN_Compiler_Support_Operator_List_V2.3.2"
            ".pdf (sections 3.2 and 4) and doc/RKNNToolKit2_OP_Support-2.3.2.md",
            date="2025-03-31",
            read="2026-11-28",
            operators=noted(NPU, NOTES),
            elsewhere=elsewhere,
            otherwise="RKNN Toolkit2 refuses the file",
            counts_as={"float32": "float16"},
            notes=(
                "Float files are computed in float16 (float_dtype of rknn.config, API reference 2.3.2 beside it)",
                "Hand RKNN Toolkit2 the float file: it quantizes by itself (w8a8, asymmetric int8, the same reference)",
                "Other chips have lists of their own in the same document: RK3566/RK3568, RK3562, RV1103/RV1106,"
                " RK3576/RV1126B, RK2118",
            ),
        ),
    )
