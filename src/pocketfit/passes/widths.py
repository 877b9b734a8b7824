"""Which widths a network may have, and how wide each of its layers then is: numbers only, read from the channel graph.

A `Skeleton` is all that tables of costs and the allocation of channels need to know of a network. It travels as JSON.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pocketfit.passes.graph import ChannelGraph
from pocketfit.passes.prune import removable, sliced

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
    outputs  dimension 0 of the weights; inputs  dimension 1 (1 where depthwise)
    kernel   product of the other dimensions; places  how often each weight is used for one sample
    """

    name: str
    kind: str
    outputs: Side
    inputs: Side
    kernel: int
    places: float

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups that its cost depends on."""
        return tuple(dict.fromkeys((*self.outputs.entries, *self.inputs.entries)))


@dataclass(frozen=True)
class Skeleton:
    """Groups of coupled channels that may be made narrower, and the layers whose widths follow.

    full     by name of the group: the channels of the layer of that name
    per_id   by name of the group: how many of these channels go together; widths are multiples of that
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
    return inputs * outputs * layer.kernel * layer.places


def skeleton(network: nn.Module, graph: ChannelGraph) -> Skeleton:
    """The groups that `prune.apply` may shrink, and every layer that carries out multiply-accumulates."""
    groups = {group.name: group for group in removable(graph)}
    per_id = {name: math.gcd(*(group.members[place] for place in group.producers)) for name, group in groups.items()}
    own = {
        name: next(count for (parameter, _), count in group.members.items() if parameter.rpartition(".")[0] == name)
        for name, group in groups.items()
    }
    owner = {int(label): name for name, group in groups.items() for label in group.ids}
    sides = {(part.parameter, part.dim): _side(part.ids, owner, own) for part in graph.slices}
    layers = []
    for layer in graph.layers:
        weight = getattr(_module(network, layer.name), "weight", None)
        if not layer.macs or weight is None:
            continue
        sizes = tuple(weight.shape)
        parameter = f"{layer.name}.weight"
        outputs, inputs = (sides.get((parameter, dim), Side(sizes[dim])) for dim in (0, 1))
        kind = _kind(sizes)
        layers.append(LayerShape(layer.name, kind, outputs, inputs, math.prod(sizes[2:]), layer.macs / weight.numel()))
    full = {name: len(group.ids) * own[name] for name, group in groups.items()}
    return Skeleton(full, {name: max(own[name], per_id[name]) for name in groups}, tuple(layers))


def narrowed(network: nn.Module, graph: ChannelGraph, widths: Widths) -> nn.Module:
    """A copy of the network with these widths; which channels stay is of no matter here, the first ones do."""
    known = skeleton(network, graph)
    removed: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    for group in removable(graph):
        if group.name in widths:
            removed.append(group.ids[widths[group.name] // known.per_id[group.name] :])
    return sliced(network, graph, np.concatenate(removed))


def from_json(data: Mapping[str, Any]) -> Skeleton:
    """The Skeleton that `to_json` wrote."""
    layers = tuple(
        LayerShape(**{**each, "outputs": Side(**each["outputs"]), "inputs": Side(**each["inputs"])})
        for each in data["layers"]
    )
    return Skeleton(data["full"], data["per_id"], layers)


def _side(ids: NDArray[np.int64], owner: Mapping[int, str], own: Mapping[str, int]) -> Side:
    """Entries of one dimension: those that no group owns are fixed; the others by channel of their group's layer."""
    count = Counter(owner.get(int(label), "") for label in ids)
    distinct = {name: len({int(i) for i in ids if owner.get(int(i), "") == name}) for name in count if name}
    entries = {name: count[name] / (distinct[name] * own[name]) for name in distinct}
    return Side(count[""], entries)


def _module(network: nn.Module, name: str) -> nn.Module | None:
    return dict(network.named_modules()).get(name)


def _kind(sizes: tuple[int, ...]) -> str:
    """
    >>> _kind((8, 1, 3, 3)), _kind((8, 4, 1, 1)), _kind((8, 4, 3, 3)), _kind((8, 4))
    ('depthwise', 'pointwise', 'convolution', 'linear')
    """
    if len(sizes) == 2:
        return "linear"
    if sizes[1] == 1:
        return "depthwise"
    return "pointwise" if math.prod(sizes[2:]) == 1 else "convolution"
