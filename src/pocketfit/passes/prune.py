"""Remove whole channels: the ones whose weights are smallest, from each group of coupled channels.

Pruning Filters for Efficient ConvNets, https://arxiv.org/abs/1608.08710, section 3.1, with coupled layers (section 3.3)
taken together: a channel's score is the norm of all weights that make it.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan import Prune
from pocketfit.passes import exported
from pocketfit.passes.graph import ChannelGraph, Group, trace
from pocketfit.sources.fingerprint import fingerprint
from pocketfit.sources.resize import resize_to


@dataclass(frozen=True)
class Kept:
    """Output channels of a convolution or linear layer before and after."""

    layer: str
    before: int
    after: int


def apply(model: Model, settings: Prune, *, graph: ChannelGraph | None = None) -> Model:
    """A physically smaller Model; the given one is left as it is.

    Each prunable group of n coupled channels keeps the multiple of `settings.multiple` that is nearest to
    (1 - ratio) n. The group of the first convolution and the network's outputs are left whole. What else could not be
    pruned is said in `findings`. Raises UserError for a pattern in `settings.layers` that matches no layer, and for a
    network that does not run at any smaller size. `graph` is that of this model, where it has been traced already.
    """
    graph = graph or trace(model.network, model.signature)
    ratios = _ratios(graph, settings)
    network, findings = _carry_out(model, graph, ratios, settings)
    changed = _changed(model.network, network)
    learned = {name: value for name, value in model.learned.items() if name not in changed}
    return replace(
        model,
        network=network,
        sha256=fingerprint(network),
        learned=learned,
        findings=tuple(dict.fromkeys((*model.findings, *graph.findings, *findings))),
    )


def removable(graph: ChannelGraph) -> tuple[Group, ...]:
    """The groups that `apply` prunes: those that may lose channels, without the one that the first layer makes."""
    first = _first_layer(graph)
    return tuple(group for group in graph.groups if group.prunable and first not in group.layers)


def channels_kept(channels: int, ratio: float, multiple: int, per_id: int = 1) -> int:
    """How many of n coupled channels stay, where each stands for `per_id` entries of its layer.

    >>> channels_kept(100, 0.3, 8), channels_kept(12, 0.9, 8), channels_kept(6, 0.5, 8), channels_kept(20, 0.0, 8)
    (72, 8, 6, 20)
    """
    step = multiple // math.gcd(multiple, per_id)
    if ratio == 0 or channels < step:
        return channels
    nearest = math.floor((1 - ratio) * channels / step + 0.5) * step
    return min(max(nearest, step), channels)


def scores(network: nn.Module, graph: ChannelGraph, group: Group, criterion: str) -> NDArray[np.float64]:
    """Norm of all weights that make each channel of the group: float64 [n], in the order of `group.ids`."""
    power = 1 if criterion == "l1" else 2
    tensors = network.state_dict()
    total = np.zeros(len(group.ids))
    place_of = {int(label): place for place, label in enumerate(group.ids)}
    for part in graph.slices:
        if (part.parameter, part.dim) in group.producers:
            weights = tensors[part.parameter].detach().double().abs() ** power
            by_entry = weights.movedim(part.dim, 0).flatten(1).sum(1).numpy()
            for entry, label in enumerate(part.ids.tolist()):
                if label in place_of:
                    total[place_of[label]] += by_entry[entry]
    return total ** (1 / power)


def removed_ids(
    network: nn.Module, graph: ChannelGraph, ratios: Mapping[str, float], settings: Prune
) -> dict[str, NDArray[np.int64]]:
    """By name of the group: the ids of the channels that go, the ones with the lowest scores."""
    removed: dict[str, NDArray[np.int64]] = {}
    for group in removable(graph):
        per_id = math.gcd(*(group.members[place] for place in group.producers))
        count = channels_kept(len(group.ids), ratios[group.name], settings.multiple, per_id)
        order = np.argsort(-scores(network, graph, group, settings.criterion), kind="stable")
        if count < len(group.ids):
            removed[group.name] = np.concatenate((removed.get(group.name, order[:0]), group.ids[order[count:]]))
    return removed


def sliced(network: nn.Module, graph: ChannelGraph, removed: NDArray[np.int64]) -> nn.Module:
    """A copy of the network without the channels of these ids."""
    state = dict(network.state_dict())
    for part in graph.slices:
        keep = np.flatnonzero(~np.isin(part.ids, removed))
        if len(keep) < len(part.ids):
            for name in _names_of(network, part.parameter):
                state[name] = state[name].index_select(part.dim, torch.from_numpy(keep))
    smaller = copy.deepcopy(network)
    resize_to(smaller, state)
    return smaller


def kept(before: Model, after: Model) -> tuple[Kept, ...]:
    """Output channels of each convolution and linear layer before and after, in the network's order."""
    old, new = (_widths(model.network) for model in (before, after))
    return tuple(Kept(layer, old[layer], new[layer]) for layer in old if layer in new)


def _carry_out(
    model: Model, graph: ChannelGraph, ratios: Mapping[str, float], settings: Prune
) -> tuple[nn.Module, list[str]]:
    """The pruned network. Groups that its forward knows the fixed size of are found by trial, and left whole."""
    removed = removed_ids(model.network, graph, ratios, settings)
    if not removed:
        return copy.deepcopy(model.network), []
    network = sliced(model.network, graph, np.concatenate(list(removed.values())))
    failure = _failure(network, model)
    if failure is None:
        return network, []
    findings, working = [], []
    for name, ids in removed.items():
        alone = _failure(sliced(model.network, graph, ids), model)
        if alone is None:
            working.append(ids)
        else:
            findings.append(
                f"The channels of {name} can't be pruned, because the network fails without some of them: {alone}."
            )
    if working:
        network = sliced(model.network, graph, np.concatenate(working))
    if not working or _failure(network, model) is not None:
        raise UserError(
            f"{type(model.network).__name__} does not run with fewer channels: {failure}; take sizes from x.shape "
            "in its forward instead of writing them down"
        )
    return network, findings


def _failure(network: nn.Module, model: Model) -> str | None:
    """None where the forward runs and its outputs have their old shape, else which layer fails, and how."""
    running: list[str] = []

    def leave(*_: object) -> None:
        running.pop()

    hooks = []
    for name, layer in network.named_modules():
        hooks.append(layer.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
        hooks.append(layer.register_forward_hook(leave))
    inputs = exported.zeros(model.signature, exported.BATCH)
    try:
        with torch.no_grad():
            before, after = model.network(*inputs), network(*inputs)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        cause = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        return f"{(running and running[-1]) or 'its own forward'} says '{cause}'"
    finally:
        for hook in hooks:
            hook.remove()
    shapes = [[tuple(t.shape) for t in (y if isinstance(y, list | tuple) else [y])] for y in (before, after)]
    return None if shapes[0] == shapes[1] else f"its output changes from {shapes[0]} to {shapes[1]}"


def _ratios(graph: ChannelGraph, settings: Prune) -> dict[str, float]:
    """By name of the group: its ratio, from the first pattern that matches one of its layers."""
    known = [layer for group in graph.groups for layer in group.layers]
    for pattern, _ in settings.layers:
        try:
            matches = [layer for layer in known if re.search(pattern, layer)]
        except re.error as error:
            raise UserError(f"The layer pattern '{pattern}' is not a regular expression: {error}") from error
        if not matches:
            raise UserError(
                f"The layer pattern '{pattern}' matches no convolution or linear layer; there are for example "
                f"{', '.join(known[:3])}"
            )
    return {
        group.name: next(
            (ratio for pattern, ratio in settings.layers if any(re.search(pattern, layer) for layer in group.layers)),
            settings.ratio,
        )
        for group in graph.groups
    }


def _first_layer(graph: ChannelGraph) -> str:
    makers = {layer for group in graph.groups for layer in group.layers}
    return next((layer.name for layer in graph.layers if layer.name in makers), "")


def _names_of(network: nn.Module, name: str) -> list[str]:
    """All names under which the same tensor is stored."""
    stored = network.state_dict(keep_vars=True)
    return [other for other, tensor in stored.items() if tensor is stored[name]]


def _widths(network: nn.Module) -> dict[str, int]:
    widths = {}
    for name, layer in network.named_modules():
        count = getattr(layer, "out_channels", getattr(layer, "out_features", None))
        if isinstance(count, int):
            widths[name] = count
    return widths


def _changed(before: nn.Module, after: nn.Module) -> set[str]:
    """Layers that lost entries: what was learned about them no longer holds."""
    old, new = before.state_dict(), after.state_dict()
    return {name.rpartition(".")[0] for name in old if old[name].shape != new[name].shape}
