"""Arm's Ethos-U85, by the report that the compiler Vela writes of itself."""

from __future__ import annotations

from pocketfit.analysis.accelerators.table import Table, listed, noted
from pocketfit.analysis.accelerators.tables.ethosu import FIXED, NOTES, WIDE

OPERATORS = (
    listed(
        "ABS ADD ARG_MAX ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL CAST CONCATENATION CONV_2D DEPTHWISE_CONV_2D "
        "DIV EQUAL EXP EXPAND_DIMS FULLY_CONNECTED GATHER GREATER GREATER_EQUAL HARD_SWISH LEAKY_RELU LESS "
        "LESS_EQUAL LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC MAXIMUM MAX_POOL_2D MINIMUM MIRROR_PAD MUL NEG "
        "NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_ANY REDUCE_MAX REDUCE_MIN RELU "
        "RELU6 RELU_0_TO_1 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 RSQRT SCATTER_ND "
        "SELECT SELECT_V2 SLICE SOFTMAX SPLIT SPLIT_V SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM TANH TILE "
        "TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK",
        *WIDE,
        "bool",
    )
    | listed("ELU", "int8")
    | listed("GELU", "int8", "uint8")
    | listed("LOG", "int8", "int16")
    | listed("MEAN", "int8", "uint8", "int16")
)
SAME_NOTES = ("AVERAGE_POOL_2D", "MAXIMUM", "MEAN", "MINIMUM")


def tables() -> tuple[Table, ...]:
    """One table, of TFLite operators."""
    return (
        Table(
            target="ethosu85",
            title="Arm Ethos-U85, Vela 5.2.0",
            format="tflite",
            source="ethos-u-vela 5.2.0 (PyPI), `vela --supported-ops-report`",
            date="2026-09 (Vela 5.2.0)",
            read="2026-11-28",
            operators=noted(OPERATORS, {name: NOTES[name] for name in SAME_NOTES}),
            otherwise="it stays in the file, and the Cortex-M runs it",
            notes=(
                "The network needs integer inputs and outputs (`io` int8) to have no float operator at its ends",
                FIXED,
            ),
        ),
    )
