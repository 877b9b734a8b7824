"""The targets of `inspect --for`: a line for each file in tables/."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from pocketfit.analysis.accelerators.table import Table
from pocketfit.core.errors import UserError

TARGETS: Mapping[str, str] = {  # what --for takes -> module in tables/
    "rknn": "rknn",
    "qnn": "qnn",
    "ascend": "ascend",
    "ethosu": "ethosu",
    "ethosu85": "ethosu85",
    "nnapi": "nnapi",
    "coreml": "coreml",
    "xnnpack": "xnnpack",
    "tensorrt": "tensorrt",
}
NO_SOURCE: Mapping[str, str] = {
    "cambricon": "no public document that could be read lists the ONNX or TFLite operators that Cambricon's MagicMind "
    "takes (its repositories document kernels and examples)",
}


def tables(target: str) -> tuple[Table, ...]:
    """The tables of a target, one a format. Raises UserError for a target without a source, or for none."""
    if target in NO_SOURCE:
        raise UserError(f"There is no table for '{target}': {NO_SOURCE[target]}")
    if target not in TARGETS:
        raise UserError(f"No target is called '{target}': known are {', '.join(TARGETS)}")
    found: tuple[Table, ...] = importlib.import_module(
        f"pocketfit.analysis.accelerators.tables.{TARGETS[target]}"
    ).tables()
    return found


def table_for(target: str, format: str) -> Table:
    """The table of a target for .onnx or .tflite files. Raises UserError where there is none for the format."""
    found = tables(target)
    for table in found:
        if table.format == format:
            return table
    raise UserError(f"The source on '{target}' lists operators of .{found[0].format} files: give such a file")
