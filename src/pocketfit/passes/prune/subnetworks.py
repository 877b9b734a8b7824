"""The Skeleton of a network, and the network itself at other widths."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pocketfit.numerics.channel_shapes import LayerShape, Side, Skeleton, Widths
from pocketfit.passes.graph.channel_graph import ChannelGraph
from pocketfit.passes.graph.parameters import attribute
from pocketfit.passes.prune.by_layers import by_layers
from pocketfit.passes.prune.prune_channels import removable, sliced

_BY_LAYERS: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


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
        parameter = _weight_of(network, layer.name)
        if not layer.macs or not parameter:
            continue
        weight = attribute(network, parameter)
        sizes = tuple(weight.shape)
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
    return without(network, graph, np.concatenate(removed))


def without(network: nn.Module, graph: ChannelGraph, removed: NDArray[np.int64]) -> nn.Module:
    """A copy of the network without the channels of these ids, that runs with any number of attention heads."""
    if graph.signature is None or not graph.heads.intersection(removed.tolist()):
        return sliced(network, graph, removed)
    known = _BY_LAYERS.get(network)
    if known is None:
        known = _BY_LAYERS[network] = by_layers(network, graph.signature)[0]
    return sliced(known, graph, removed)


def _side(ids: NDArray[np.int64], owner: Mapping[int, str], own: Mapping[str, int]) -> Side:
    """The Side of one dimension: entries of no group are fixed, the others count for each channel of their group."""
    count = Counter(owner.get(int(label), "") for label in ids)
    distinct = {name: len({int(i) for i in ids if owner.get(int(i), "") == name}) for name in count if name}
    entries = {name: count[name] / (distinct[name] * own[name]) for name in distinct}
    return Side(count[""], entries)


def _weight_of(network: nn.Module, layer: str) -> str:
    """The name of a layer's weight; "" where it has none. nn.MultiheadAttention calls two linear layers itself."""
    modules, (owner, _, last) = dict(network.named_modules()), layer.rpartition(".")
    if getattr(modules.get(layer), "weight", None) is not None:
        return f"{layer}.weight"
    inside = {"linear": "in_proj_weight", "linear_1": "out_proj.weight"}.get(last, "")
    found = isinstance(modules.get(owner), nn.MultiheadAttention) and inside in modules[owner].state_dict()
    return f"{owner}.{inside}" if found else ""


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
