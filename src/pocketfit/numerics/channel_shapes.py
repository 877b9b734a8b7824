"""The widths that a network may have, and the shapes of its layers at these widths: numbers only.

A Skeleton is all that tables of costs and the allocation of channels need to know of a network. It is made from the
channel graph (passes/prune/subnetworks.py) and stored as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Widths = Mapping[str, int]  # name of a group -> channels of the layer of that name; groups left out are whole


@dataclass(frozen=True)
class Side:
    """One dimension of a layer's weights: `fixed` entries, and `entries` for each channel of a group."""

    fixed: int
    entries: Mapping[str, float] = field(default_factory=dict)

    def width(self, widths: Widths, full: Widths) -> int:
        """
        >>> Side(4, {"a": 1.0, "b": 0.5}).width({"a": 10}, {"a": 16, "b": 8})
        18
        """
        return self.fixed + round(sum(each * widths.get(name, full[name]) for name, each in self.entries.items()))


@dataclass(frozen=True)
class LayerShape:
    """A convolution or linear layer by its weights [a, b, ...]: of a convolution, outputs and inputs.

    kind     "depthwise", "pointwise", "convolution", "linear"
    outputs  dimension 0 of the weights
    inputs   dimension 1 of the weights (1 where depthwise)
    kernel   product of the other dimensions
    places   how often each weight is used for one sample
    """

    name: str
    kind: str
    outputs: Side
    inputs: Side
    kernel: int
    places: float

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups on which its cost depends."""
        return tuple(dict.fromkeys((*self.outputs.entries, *self.inputs.entries)))


@dataclass(frozen=True)
class Skeleton:
    """Groups of coupled channels that may be made narrower, and the layers whose widths follow.

    full     name of a group -> the number of channels of the layer of that name
    per_id   name of a group -> how many of these channels go together; widths are multiples of that
    """

    full: Mapping[str, int]
    per_id: Mapping[str, int]
    layers: tuple[LayerShape, ...]

    def shape(self, layer: LayerShape, widths: Widths) -> tuple[int, int]:
        """(inputs, outputs) of a layer."""
        return layer.inputs.width(widths, self.full), layer.outputs.width(widths, self.full)

    def macs(self, widths: Widths) -> float:
        """Multiply-accumulates of all layers for one sample."""
        return sum(macs_of(layer, *self.shape(layer, widths)) for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def macs_of(layer: LayerShape, inputs: int, outputs: int) -> float:
    """Multiply-accumulates of one layer for one sample."""
    return weights_of(layer, inputs, outputs) * layer.places


def weights_of(layer: LayerShape, inputs: int, outputs: int) -> float:
    """Numbers in the weights of one layer, without its bias."""
    return inputs * outputs * layer.kernel


@dataclass(frozen=True)
class Term:
    """A part of a network's cost: a function of the widths of `groups`, in that order."""

    groups: tuple[str, ...]
    of: Callable[[tuple[int, ...]], float]


def mac_terms(known: Skeleton) -> tuple[Term, ...]:
    """Multiply-accumulates as a cost for the allocation: one term a layer."""
    return tuple(_term(known, layer, macs_of) for layer in known.layers)


def parameter_terms(known: Skeleton) -> tuple[Term, ...]:
    """Weights of convolutions and linear layers as a cost for the allocation: one term a layer."""
    return tuple(_term(known, layer, weights_of) for layer in known.layers)


def _term(known: Skeleton, layer: LayerShape, cost: Callable[[LayerShape, int, int], float]) -> Term:
    def of(widths: tuple[int, ...]) -> float:
        return cost(layer, *known.shape(layer, dict(zip(layer.groups, widths, strict=True))))

    return Term(layer.groups, of)


def from_json(data: Mapping[str, Any]) -> Skeleton:
    """The Skeleton that `to_json` wrote."""
    layers = tuple(
        LayerShape(**{**each, "outputs": Side(**each["outputs"]), "inputs": Side(**each["inputs"])})
        for each in data["layers"]
    )
    return Skeleton(data["full"], data["per_id"], layers)
