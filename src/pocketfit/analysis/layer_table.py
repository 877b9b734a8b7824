"""The table of layers: shapes of input and output, parameters, multiply-accumulates and bytes of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pocketfit.core.model import Model

FLOAT32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer for one sample; shapes are without the batch.

    params      numbers that training changes
    macs        multiply-accumulates
    size_bytes  bytes of the params in float32
    """

    name: str
    type: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    params: int
    macs: int
    size_bytes: int


@dataclass(frozen=True)
class Totals:
    """Sums over a layer table."""

    layers: int
    params: int
    macs: int
    size_bytes: int


def layer_table(model: Model) -> list[LayerRow]:
    """One row for each layer in the order in which they are carried out.

    Raises UserError where torch.export can't follow the network.
    """
    from pocketfit.passes.graph import aten

    program = aten.export(model.network, model.signature)
    return [
        LayerRow(
            name=layer.name,
            type=layer.type,
            input_shape=layer.input_shape,
            output_shape=layer.output_shape,
            params=layer.params,
            macs=layer.macs,
            size_bytes=layer.params * FLOAT32_BYTES,
        )
        for layer in aten.layers(program, model.network)
    ]


def totals(rows: Iterable[LayerRow]) -> Totals:
    """Sums over the rows.

    >>> numbers = {"params": 18, "macs": 16, "size_bytes": 72}
    >>> totals([LayerRow(name="fc", type="Linear", input_shape=(8,), output_shape=(2,), **numbers)])
    Totals(layers=1, params=18, macs=16, size_bytes=72)
    """
    rows = list(rows)
    return Totals(len(rows), sum(r.params for r in rows), sum(r.macs for r in rows), sum(r.size_bytes for r in rows))
