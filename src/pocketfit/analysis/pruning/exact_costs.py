"""Multiply-accumulates and bytes of a network with fewer channels: exact, without building it.

A parameter's size is the product of its dimensions, and each dimension loses a fixed number of entries with each
channel of a group (Group.members). The multiply-accumulates of a convolution or linear layer are its weights times its
output positions, whose number pruning does not change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pocketfit.analysis.layer_table import FLOAT32_BYTES

if TYPE_CHECKING:
    from torch import nn

    from pocketfit.passes.graph.channel_graph import ChannelGraph


@dataclass(frozen=True)
class Cost:
    """A whole network's multiply-accumulates for one sample, and the bytes of its parameters in float32."""

    macs: int
    size_bytes: int


@dataclass(frozen=True)
class Parameter:
    """One parameter of the unpruned network.

    places  how often each of its entries is multiplied for one sample; 0 for parameters other than layers' weights
    cuts    (dimension, number of the group, entries that go with each of its channels)
    """

    shape: tuple[int, ...]
    places: float
    cuts: tuple[tuple[int, int, int], ...]

    def entries(self, removed: Mapping[int, int]) -> int:
        """How many entries are left; `removed` says how many channels each group has lost.

        >>> Parameter((8, 4, 3, 3), 1.0, ((0, 0, 1), (1, 5, 2))).entries({0: 2, 5: 1})
        108
        """
        sizes = list(self.shape)
        for dim, group, per_channel in self.cuts:
            sizes[dim] -= per_channel * removed.get(group, 0)
        return math.prod(sizes)


@dataclass(frozen=True)
class Costs:
    """All parameters, and the multiply-accumulates that depend on none of them (matrix products of activations)."""

    parameters: tuple[Parameter, ...]
    other_macs: int

    def of(self, removed: Mapping[int, int]) -> Cost:
        """The cost after each group, by its number in ChannelGraph.groups, has lost so many channels."""
        macs, entries = float(self.other_macs), 0
        for parameter in self.parameters:
            left = parameter.entries(removed)
            entries += left
            macs += parameter.places * left
        return Cost(round(macs), entries * FLOAT32_BYTES)


def costs_of(network: nn.Module, graph: ChannelGraph) -> Costs:
    """The costs of a network, from its channel graph."""
    stored = network.state_dict(keep_vars=True)
    first_name = {id(tensor): name for name, tensor in reversed(list(stored.items()))}  # a tensor may have several
    cuts: dict[str, list[tuple[int, int, int]]] = {}
    for number, group in enumerate(graph.groups):
        for (name, dim), per_channel in group.members.items():
            cuts.setdefault(first_name[id(stored[name])], []).append((dim, number, per_channel))
    macs = {layer.name: layer.macs for layer in graph.layers}
    places: dict[str, float] = {}
    for layer, count in macs.items():
        weight = stored.get(f"{layer}.weight")
        if weight is not None and count:
            name = first_name[id(weight)]
            places[name] = places.get(name, 0.0) + count / weight.numel()
    parameters = tuple(
        Parameter(tuple(tensor.shape), places.get(name, 0.0), tuple(cuts.get(name, ())))
        for name, tensor in ((first_name[id(tensor)], tensor) for tensor in network.parameters())
    )
    counted = sum(parameter.places * math.prod(parameter.shape) for parameter in parameters)
    return Costs(parameters, round(sum(macs.values()) - counted))
