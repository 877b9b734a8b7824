"""What an application for a microcontroller compiles in: the file as a C array, its operators, and its arena."""

from __future__ import annotations

from pathlib import Path

from pocketfit.formats import tflite_read
from pocketfit.runtimes.micro.arena import arena_bytes

BYTES_A_LINE = 16
# Names in TensorFlow Lite Micro's MicroMutableOpResolver that are not those of the operator in capitals.
SPELT = {"cumsum": "CumSum", "matmul": "MatMul", "padv2": "PadV2", "lstm": "LSTM", "nd": "Nd"}

HEADER = """// Made by pocketfit of {name}. Needs TensorFlow Lite for Microcontrollers.
#ifndef POCKETFIT_NETWORK_H_
#define POCKETFIT_NETWORK_H_

#include <cstddef>

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

extern const unsigned char g_network[];
extern const size_t g_network_bytes;

// As measured on a computer with 64-bit pointers; a processor with 32-bit pointers takes less.
constexpr size_t kNetworkArenaBytes = {arena};

using NetworkOpResolver = tflite::MicroMutableOpResolver<{count}>;

inline TfLiteStatus RegisterNetworkOps(NetworkOpResolver& resolver) {{
{lines}
  return kTfLiteOk;
}}

#endif  // POCKETFIT_NETWORK_H_
"""
SOURCE = """// Made by pocketfit of {name}.
#include "network.h"

// The runtime reads the network in place, and wants it aligned.
alignas(16) const unsigned char g_network[] = {{
{rows}
}};
const size_t g_network_bytes = sizeof(g_network);
"""


def sources(path: Path) -> dict[str, str]:
    """network.h and network.cc of a .tflite file, by name."""
    file = tflite_read.read(path)
    methods = [method_of(kind) for kind in sorted({file.op_type(op) for op in file.graph.operators})]
    lines = "\n".join(f"  TF_LITE_ENSURE_STATUS(resolver.{method}());" for method in methods)
    arena = -(-arena_bytes(path) // BYTES_A_LINE) * BYTES_A_LINE
    rows = [
        "  " + ", ".join(f"0x{byte:02x}" for byte in file.data[start : start + BYTES_A_LINE]) + ","
        for start in range(0, len(file.data), BYTES_A_LINE)
    ]
    return {
        "network.h": HEADER.format(name=path.name, arena=arena, count=len(methods), lines=lines),
        "network.cc": SOURCE.format(name=path.name, rows="\n".join(rows)),
    }


def method_of(kind: str) -> str:
    """The method of MicroMutableOpResolver that registers an operator.

    >>> method_of("CONV_2D"), method_of("BATCH_TO_SPACE_ND"), method_of("UNIDIRECTIONAL_SEQUENCE_LSTM")
    ('AddConv2D', 'AddBatchToSpaceNd', 'AddUnidirectionalSequenceLSTM')
    """

    def spelt(word: str) -> str:
        return SPELT.get(word, word.upper() if word[0].isdigit() else word.capitalize())

    return "Add" + "".join(map(spelt, kind.lower().split("_")))
