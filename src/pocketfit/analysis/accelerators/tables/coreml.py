"""Apple's Core ML, through ONNX Runtime's execution provider."""

from __future__ import annotations

from pocketfit.analysis.accelerators.ort_lists import provider_table
from pocketfit.analysis.accelerators.table import Table


def tables() -> tuple[Table, ...]:
    """One table, of ONNX operators, as the installed ONNX Runtime lists them for ML programs."""
    return (
        provider_table(
            "coreml",
            "Apple Core ML (ML program), execution provider of ONNX Runtime",
            "coreml_supported_mlprogram_ops.md",
            ("QuantizeLinear and DequantizeLinear are not listed: hand this provider the float file",),
        ),
    )
