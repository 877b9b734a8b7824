"""The Skeleton of a network, and the network itself at other widths."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pocketfit.numerics.channel_shapes import LayerShape, Side, Skeleton, Widths
from pocketfit.passes.graph.channel_graph import ChannelGraph
from pocketfit.passes.prune.prune_channels import removable, sliced


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
    """A copy of the network with these widths, for timing: which channels stay does not matter, the first ones do."""
    known = skeleton(network, graph)
    removed: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    for group in removable(graph):
        if group.name in widths:
            removed.append(group.ids[widths[group.name] // known.per_id[group.name] :])
    return sliced(network, graph, np.concatenate(removed))


def _side(ids: NDArray[np.int64], owner: Mapping[int, str], own: Mapping[str, int]) -> Side:
    """The Side of one dimension: entries of no group are fixed, the others count for each channel of their group."""
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
