"""Remove whole channels from each group of coupled channels: those with the lowest scores.

Pruning Filters for Efficient ConvNets, https://arxiv.org/abs/1608.08710, section 3.1, with coupled layers (section 3.3)
taken together. The scores come from criteria.py.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.prune import Prune
from pocketfit.core.samples import Samples
from pocketfit.passes.graph import aten
from pocketfit.passes.graph.channel_graph import ChannelGraph, Group, trace
from pocketfit.passes.graph.main_answer import tensors
from pocketfit.passes.prune import constant_channels, criteria, reachable_ratio, sparsify
from pocketfit.passes.prune.by_layers import with_any_heads
from pocketfit.passes.prune.constant_channels import Reader
from pocketfit.passes.prune.criteria import Criterion
from pocketfit.sources.models.fingerprint import fingerprint
from pocketfit.sources.models.fit_layer_shapes import resize_to, set_width


@dataclass(frozen=True)
class Kept:
    """Output channels of a convolution or linear layer before and after."""

    layer: str
    before: int
    after: int


@dataclass(frozen=True)
class Width:
    """A group as a plan names it: `keep=((group, channels), ...)`.

    group     its name: the first layer that makes it
    channels  how many channels that layer has now; each channel of the group stands for `per_id` of them
    first     whether the network's first layer makes it; such a group is pruned by `keep` only
    """

    group: str
    channels: int
    per_id: int
    first: bool = False

    @property
    def allowed(self) -> range:
        """All counts that `keep` takes.

        >>> list(Width("wide.0", 32, 8).allowed)
        [8, 16, 24, 32]
        """
        return range(self.per_id, self.channels + 1, self.per_id)


def apply(
    model: Model,
    settings: Prune,
    samples: Samples | None = None,
    *,
    criterion: Criterion | None = None,
    graph: ChannelGraph | None = None,
) -> Model:
    """A physically smaller Model; the given one is left as it is.

    Each prunable group of n coupled channels keeps the multiple of `settings.multiple` that is nearest to
    (1 - ratio) n, or exactly what `settings.keep` says. The group of the first layer is pruned where `keep` names it,
    and never by a ratio; the network's outputs are left whole. `findings` name all else that could not be pruned, and
    the layers whose N:M pattern of zeros (passes/prune/sparsify.py) no longer holds.

    A (layer, channels) pair of `keep` means the group that this layer makes, counted in channels of this layer. Where
    a layer makes several groups they are "layer#1", "layer#2" (see `widths`), each counted for itself.

    samples    the samples for a criterion of criteria.DATA_DRIVEN
    criterion  a function of the user's own instead of `settings.criterion`
    graph      the channel graph of this model, where it has been traced already

    Raises UserError for a pattern in `settings.layers` that matches no layer, for a pair of `keep` that cannot be
    carried out, for a criterion that gives no sound scores, and for a network that runs at no smaller size.
    """
    graph = graph or trace(model.network, model.signature)
    counts, said = counts_kept(graph, settings)
    losing = [group for group in graph.groups if counts.get(group.name, len(group.ids)) < len(group.ids)]
    scores, told = criteria.scored(model, graph, losing, settings, samples, criterion)
    removed = removed_ids(graph, counts, scores)
    network, findings = _carry_out(model, graph, removed, settings)
    found = replace(
        model,
        network=network,
        sha256=fingerprint(network),
        learned=model.learned.without_outputs_of(_changed(model.network, network)),
        findings=tuple(dict.fromkeys((*model.findings, *graph.findings, *said, *told, *findings))),
    )
    return sparsify.checked(found)


def removable(graph: ChannelGraph) -> tuple[Group, ...]:
    """The groups that a ratio prunes: all that may lose channels but the one that the first layer makes."""
    first = _first_layer(graph)
    return tuple(group for group in graph.groups if group.prunable and first not in group.layers)


def widths(graph: ChannelGraph) -> tuple[Width, ...]:
    """The groups that `Prune.keep` may name, those that may lose channels, in the network's order."""
    first = _first_layer(graph)
    rows = []
    for group in graph.groups:
        if group.prunable:
            per_id = group.members[group.producers[0]]
            rows.append(Width(group.name, per_id * len(group.ids), per_id, first in group.layers))
    return tuple(rows)


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


def counts_kept(graph: ChannelGraph, settings: Prune) -> tuple[dict[str, int], tuple[str, ...]]:
    """(how many ids of each group stay, by the group's name, where it may lose channels; sentences for the user)."""
    ratios = _ratios(graph, settings)
    by_ratio = {group.name: group for group in removable(graph)}
    counts = {group.name: len(group.ids) for group in graph.groups if group.prunable}
    for name, group in by_ratio.items():
        per_id = math.gcd(*(group.members[place] for place in group.producers))
        counts[name] = channels_kept(len(group.ids), ratios[name], settings.multiple, per_id)
    counts.update(_asked_for(graph, settings))
    findings = []
    for pattern, ratio in settings.layers:
        touched = [group for group in graph.groups if any(re.search(pattern, layer) for layer in group.layers)]
        if ratio and not any(group.name in by_ratio for group in touched):
            group = touched[0]
            why = group.why_not or "they are those of the first layer (name them in keep to prune them)"
            findings.append(f"The ratio {ratio:g} for '{pattern}' removes nothing from {group.name}, because {why}.")
    asked = {group.name for group in _groups_asked_for(graph, settings)}
    wanted = {name: (group, ratios[name]) for name, group in by_ratio.items() if name not in asked and ratios[name] > 0}
    if not by_ratio and settings.ratio > 0:
        findings.append(reachable_ratio.NOTHING_TO_PRUNE)
    return counts, (*findings, *reachable_ratio.sentences(wanted, counts, settings.multiple))


def removed_ids(
    graph: ChannelGraph, counts: Mapping[str, int], scores: Mapping[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.int64]]:
    """The ids of the channels to remove, by the group's name: those with the lowest scores; of equals the last."""
    removed: dict[str, NDArray[np.int64]] = {}
    for group in graph.groups:
        if counts.get(group.name, len(group.ids)) < len(group.ids):
            order = np.argsort(-scores[group.name], kind="stable")
            removed[group.name] = group.ids[order[counts[group.name] :]]
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
    for name, ids in graph.norms:
        set_width(smaller.get_submodule(name), int((~np.isin(ids, removed)).sum()))
    return smaller


def kept(before: Model, after: Model) -> tuple[Kept, ...]:
    """Output channels of each convolution and linear layer before and after, in the network's order."""
    old, new = (_widths(model.network) for model in (before, after))
    return tuple(Kept(layer, old[layer], new[layer]) for layer in old if layer in new)


def _carry_out(
    model: Model, graph: ChannelGraph, removed: Mapping[str, NDArray[np.int64]], settings: Prune
) -> tuple[nn.Module, list[str]]:
    """The pruned network. Groups whose size is a constant in the forward are found by trial, and left whole."""
    if not removed:
        return copy.deepcopy(model.network), []
    readers = constant_channels.readers(model)
    network, failure, findings = _tried(model, graph, readers, removed.values())
    if failure is None:
        return network, findings
    findings, working, given = [], [], model.network
    if any(graph.heads.intersection(ids.tolist()) for ids in removed.values()):
        model, freed = with_any_heads(model)
        network, failure, told = _tried(model, graph, readers, removed.values())
        if failure is None:
            return network, [*freed, *told]
    asked = {group.name for group in _groups_asked_for(graph, settings)}
    for name, ids in removed.items():
        _, alone, _ = _tried(model, graph, readers, [ids])
        if alone is None:
            working.append(ids)
        elif name in asked:
            raise UserError(f"Layer '{name}' cannot keep fewer channels: without some of them {alone}")
        else:
            findings.append(
                f"The channels of {name} can't be pruned, because the network fails without some of them: {alone}."
            )
    if working:
        network, failure, said = _tried(model, graph, readers, working)
        findings += said
    only_heads = all(graph.heads.intersection(ids.tolist()) for ids in removed.values())
    if not working and only_heads:  # heads are an offer: a network whose heads can't be freed stays as it is
        return copy.deepcopy(given), findings
    if not working or failure is not None:
        raise UserError(
            f"{type(model.network).__name__} does not run with fewer channels: {failure}; take sizes from x.shape "
            "in its forward instead of writing them down"
        )
    return network, findings


def _tried(
    model: Model, graph: ChannelGraph, readers: tuple[Reader, ...], removed: Iterable[NDArray[np.int64]]
) -> tuple[nn.Module, str | None, list[str]]:
    """(the network without these channels; why it no longer works as before, None where it does; sentences)."""
    gone = np.concatenate(list(removed))
    whole, count = constant_channels.moved(model.network, readers, gone) if readers else (model.network, 0)
    network = sliced(whole, graph, gone)
    findings = []
    if count:
        findings.append(
            f"{count} of the removed channels gave the same for every input: what they gave is now in the biases of the"
            " layers that read them."
        )
    return network, _failure(network, model) or _rearranged(network, model, graph, gone), findings


def _rearranged(network: nn.Module, model: Model, graph: ChannelGraph, removed: NDArray[np.int64]) -> str | None:
    """Why the pruned network mixes channels up; None where it does not.

    A forward that rearranges channels by constants, as view(n, 8, c // 8), may combine other channels once there are
    fewer. That shows where two entries that had different channels have one and the same in the pruned network.
    """
    if not graph.reshapes:
        return None
    try:
        after = {(part.parameter, part.dim): part.ids for part in trace(network, model.signature).slices}
    except UserError as error:
        return str(error)
    had: dict[int, int] = {}
    for part in graph.slices:
        stay = part.ids[~np.isin(part.ids, removed)]
        for old, new in zip(stay.tolist(), after.get((part.parameter, part.dim), np.zeros_like(stay)), strict=True):
            if old and new and had.setdefault(int(new), old) != old:
                return f"{graph.reshapes[0]} puts the remaining channels of {part.parameter} in another order"
    return None


def _failure(network: nn.Module, model: Model) -> str | None:
    """The layer that fails, and how; None where the forward runs and its outputs have their old shape."""
    running: list[str] = []

    def leave(*_: object) -> None:
        running.pop()

    hooks = []
    for name, layer in network.named_modules():
        hooks.append(layer.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
        hooks.append(layer.register_forward_hook(leave))
    inputs = aten.zeros(model.signature, aten.BATCH)
    try:
        with torch.no_grad():
            before, after = model.network(*inputs), network(*inputs)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        cause = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        return f"{(running and running[-1]) or 'its own forward'} says '{cause}'"
    finally:
        for hook in hooks:
            hook.remove()
    shapes = [[tuple(tensor.shape) for tensor in tensors(answer)] for answer in (before, after)]
    return None if shapes[0] == shapes[1] else f"its output changes from {shapes[0]} to {shapes[1]}"


def _ratios(graph: ChannelGraph, settings: Prune) -> dict[str, float]:
    """The ratio of each group by its name, from the first pattern that matches one of its layers."""
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


def _asked_for(graph: ChannelGraph, settings: Prune) -> dict[str, int]:
    """How many ids `settings.keep` leaves each group, by its name."""
    counts: dict[str, int] = {}
    for (layer, channels), group in zip(settings.keep, _groups_asked_for(graph, settings), strict=True):
        named = [group.members[p] for p in group.producers if p[0].rpartition(".")[0] == layer.partition("#")[0]]
        per_id = (named or [group.members[group.producers[0]]])[0]
        if channels > per_id * len(group.ids):
            raise UserError(f"Layer '{layer}' cannot keep {channels} channels: it has {per_id * len(group.ids)}")
        if channels % per_id:
            raise UserError(
                f"Layer '{layer}' cannot keep {channels} channels: they go by {per_id} at a time, so ask for a "
                f"multiple of {per_id}"
            )
        if counts.setdefault(group.name, channels // per_id) != channels // per_id:
            raise UserError(
                f"Layer '{layer}' is asked to keep {channels} channels, and another pair asks for a different number: "
                f"it shares its channels with {', '.join(name for name in group.layers if name != layer) or 'itself'}"
            )
    return counts


def _groups_asked_for(graph: ChannelGraph, settings: Prune) -> list[Group]:
    """The group that each pair of `settings.keep` means."""
    found = []
    for layer, _ in settings.keep:
        named = [group for group in graph.groups if group.prunable and group.name == layer]
        makes = [group for group in graph.groups if layer in group.layers]
        free = named or [group for group in makes if group.prunable]
        if not makes and not named:
            known = ", ".join(name for group in graph.groups[:3] for name in group.layers[:1])
            raise UserError(
                f"No convolution or linear layer is called '{layer}', and a plan says how many channels it keeps; "
                f"there are for example {known}"
            )
        if not free:
            raise UserError(f"The channels of layer '{layer}' can't be pruned, because {makes[0].why_not}")
        if len(free) > 1:
            raise UserError(
                f"Layer '{layer}' makes several groups of channels: say which, one of "
                f"{', '.join(group.name for group in free)}"
            )
        found.append(free[0])
    return found


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
        inside = getattr(layer, "in_proj_weight", None)  # of nn.MultiheadAttention: queries, keys and values
        count = len(inside) if count is None and isinstance(inside, torch.Tensor) else count
        if isinstance(count, int):
            widths[name] = count
    return widths


def _changed(before: nn.Module, after: nn.Module) -> set[str]:
    """Layers that lost entries."""
    old, new = before.state_dict(), after.state_dict()
    return {name.rpartition(".")[0] for name in old if old[name].shape != new[name].shape}
