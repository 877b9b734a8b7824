"""Arm's Ethos-U55 and U65, by the report that the compiler Vela writes of itself."""

from __future__ import annotations

from pocketfit.analysis.accelerators.table import Table, listed, noted

NARROW = ("int8", "uint8", "int16")
WIDE = (*NARROW, "int32")
OPERATORS = (
    listed(
        "ABS AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D EXP HARD_SWISH LEAKY_RELU LOGISTIC MAXIMUM "
        "MAX_POOL_2D MEAN MINIMUM PACK PAD PADV2 PRELU QUANTIZE REDUCE_MAX REDUCE_MIN RELU RELU6 RELU_0_TO_1 "
        "RELU_N1_TO_1 RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 RSQRT SLICE SOFTMAX SPLIT SPLIT_V "
        "SQUARED_DIFFERENCE STRIDED_SLICE TANH TILE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK",
        *NARROW,
    )
    | listed(
        "ADD ARG_MAX BATCH_MATMUL EXPAND_DIMS FULLY_CONNECTED MIRROR_PAD MUL NEG RESHAPE SQUEEZE SUB SUM TRANSPOSE",
        *WIDE,
    )
    | listed("ELU", "int8")
    | listed("GELU", "int8", "uint8")
    | listed("LOG", "int8", "int16")
)
NOTES = {
    "AVERAGE_POOL_2D": "SAME padding: kernels up to 8 x 8; strides above 3 only without padding and dilation",
    "BATCH_MATMUL": "int8 only",
    "CONV_2D": "constant 8-bit weights; strides above 3 only without padding and dilation",
    "DEPTHWISE_CONV_2D": "constant 8-bit weights; strides of 1 to 3",
    "FULLY_CONNECTED": "8-bit weights; computed weights only for int8",
    "MEAN": "batch 1; a reduced axis below 4096; over the depth only where height, width or depth is 1",
    "MAXIMUM": "inputs and output of one scale",
    "MINIMUM": "inputs and output of one scale",
    "TRANSPOSE": "only some permutations (see the report of Vela)",
}
FIXED = "The source asks for constant shapes (only the first axis may be open) and batch 1 in most operators"


def tables() -> tuple[Table, ...]:
    """One table, of TFLite operators."""
    return (
        Table(
            target="ethosu",
            title="Arm Ethos-U55 and Ethos-U65, Vela 5.2.0",
            format="tflite",
            source="ethos-u-vela 5.2.0 (PyPI), `vela --supported-ops-report`",
            date="2026-09 (Vela 5.2.0)",
            read="2026-11-28",
            operators=noted(OPERATORS, NOTES),
            otherwise="it stays in the file, and the Cortex-M runs it",
            notes=(
                "The network needs integer inputs and outputs (`io` int8) to have no float operator at its ends",
                FIXED,
            ),
        ),
    )
