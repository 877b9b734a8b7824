"""One table: the name of an ONNX operator -> the function that converts it. Other operators are refused by name."""

from __future__ import annotations

from pocketfit.sources.onnx.call import Handler
from pocketfit.sources.onnx.operators import (
    activations,
    elementwise,
    indexing,
    layers,
    layout,
    padding,
    pooling,
    quantized,
    recurrent,
    reductions,
    resize,
    signal,
)

FAMILIES = (
    activations,
    elementwise,
    indexing,
    layers,
    layout,
    padding,
    pooling,
    quantized,
    recurrent,
    reductions,
    resize,
    signal,
)
TABLE: dict[str, Handler] = {name: handler for family in FAMILIES for name, handler in family.TABLE.items()}
