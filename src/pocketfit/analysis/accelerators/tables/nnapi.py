"""Android's NNAPI, through ONNX Runtime's execution provider."""

from __future__ import annotations

from pocketfit.analysis.accelerators.ort_lists import provider_table
from pocketfit.analysis.accelerators.table import Table


def tables() -> tuple[Table, ...]:
    """One table, of ONNX operators, as the installed ONNX Runtime lists them."""
    return (
        provider_table(
            "nnapi",
            "Android NNAPI, execution provider of ONNX Runtime",
            "nnapi_supported_ops.md",
            ("NNAPI takes fixed shapes only: fix the batch before it is handed over",),
        ),
    )
