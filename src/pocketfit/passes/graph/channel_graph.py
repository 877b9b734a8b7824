"""Which channels of a network can only be removed together, found by running labels through its graph.

torch.export gives the network as a graph of ATen operators. Each tensor in it gets an array of labels (labels.py), one
for each element. A layer with weights makes fresh labels for its outputs and notes which labels its inputs carry;
operators that only move data are carried out on the labels themselves, so that concatenation, shuffling, splitting and
flattening need no rules of their own; elementwise operators unite the labels of their operands. An operator that isn't
listed is not guessed at: the channels of its inputs stay, and the graph says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

from pocketfit.core.signature import Signature
from pocketfit.core.support.text import some
from pocketfit.passes.graph import aten
from pocketfit.passes.graph.aten import Layer
from pocketfit.passes.graph.attention import HeadWalk
from pocketfit.passes.graph.channel_rules import OUTPUT, Walk
from pocketfit.passes.graph.labels import NO_CHANNEL

NO_IDS = np.empty(0, np.int64)
MIXED = "each of them is tied to all others, as where channels are shuffled again and again"


@dataclass(frozen=True)
class Slice:
    """One dimension of a parameter or buffer: which channel each of its entries belongs to; int64 [size].

    NO_CHANNEL (0) marks entries that belong to no removable channel, for example the image's colours.
    """

    parameter: str
    dim: int
    ids: NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Channels that lie in the same places. Any of them may be removed, with all of its entries in all places.

    name       the first layer that makes these channels; "layer#1", "layer#2" where it makes several prunable groups
    ids        int64 [n]: one id for each channel, in the order of that layer's outputs
    producers  (parameter, dimension) of the convolutions and linear layers that make them
    members    (parameter, dimension) -> entries that go with each channel
    why_not    why none of them may be removed, "" where they may
    """

    name: str
    ids: NDArray[np.int64]
    producers: tuple[tuple[str, int], ...]
    members: dict[tuple[str, int], int]
    why_not: str = ""

    @property
    def prunable(self) -> bool:
        return not self.why_not

    @property
    def layers(self) -> tuple[str, ...]:
        """Dotted names of the layers that make these channels."""
        return tuple(dict.fromkeys(parameter.rpartition(".")[0] for parameter, _ in self.producers))


@dataclass(frozen=True, kw_only=True)
class ChannelGraph:
    """The slices of all parameters, the groups that they form, the layers in order, and sentences for the user.

    reshapes  nodes that rearrange channels, with sizes that the forward may contain as constants
    norms     (layer, the channel of each of its entries), for norms without a tensor that shows their width
    heads     ids that are attention heads
    signature of the network
    """

    slices: tuple[Slice, ...]
    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]
    findings: tuple[str, ...] = ()
    reshapes: tuple[str, ...] = ()
    norms: tuple[tuple[str, NDArray[np.int64]], ...] = ()
    heads: frozenset[int] = frozenset()
    signature: Signature | None = None

    @property
    def producers(self) -> frozenset[tuple[str, int]]:
        """(parameter, dimension) of all outputs of convolutions and linear layers."""
        return frozenset(place for group in self.groups for place in group.producers)


def trace(network: nn.Module, signature: Signature) -> ChannelGraph:
    """The channel graph of a network at the sizes of its signature.

    Raises UserError where torch.export can't follow the network.
    """
    program, walk = followed(network, signature)
    slices = tuple(Slice(name, dim, ids.numpy()) for (name, dim), ids in walk.finish().items())
    groups = _groups(slices, set(walk.producers), walk.labels.fixed())
    layers = aten.layers(program, network)
    free = np.concatenate([NO_IDS, *(group.ids for group in groups if group.prunable)])
    reshapes = [place for place, labels in walk.reshapes if np.isin(walk.labels.roots(labels).numpy(), free).any()]
    norms = tuple((name, walk.labels.roots(ids).numpy()) for name, ids in walk.norms.items())
    findings = (*_findings(groups), *_untaken(walk))
    return ChannelGraph(
        slices=slices,
        groups=groups,
        layers=layers,
        findings=findings,
        reshapes=tuple(dict.fromkeys(reshapes)),
        norms=norms,
        heads=walk.head_ids(),
        signature=signature,
    )


def followed(network: nn.Module, signature: Signature) -> tuple[ExportedProgram, HeadWalk]:
    """torch.export's graph, and the labels of all of its nodes; the same network always gets the same labels."""
    program = aten.export(network, signature)
    walk = HeadWalk(network, program)
    for node in program.graph.nodes:
        walk.visit(node)
    return program, walk


def _untaken(walk: Walk) -> tuple[str, ...]:
    """One sentence for each kind of operator whose weights no rule here can cut."""
    layers: dict[str, list[str]] = defaultdict(list)
    for place, name in walk.untaken:
        layers[place].append(name)
    return tuple(
        f"The weights of {', '.join(dict.fromkeys(names))} can't be pruned, because pocketfit does not know which"
        f" channels {kind} reads and makes there."
        for kind, names in layers.items()
    )


def _groups(slices: tuple[Slice, ...], producers: set[tuple[str, int]], fixed: dict[int, str]) -> tuple[Group, ...]:
    """The groups: channels with the same places, of which all or none may be removed."""
    places: dict[int, Counter[tuple[str, int]]] = defaultdict(Counter)
    for part in slices:
        for label in part.ids.tolist():
            if label != NO_CHANNEL:
                places[label][(part.parameter, part.dim)] += 1
    alike: dict[Any, list[int]] = defaultdict(list)
    for label, members in places.items():
        if any(place in producers for place in members):
            alike[(frozenset(members.items()), fixed.get(label, ""))].append(label)
    groups = []
    for (_, why_not), ids in alike.items():
        members = places[ids[0]]
        makers = tuple(place for place in members if place in producers)
        name = makers[0][0].rpartition(".")[0]
        mixed = MIXED if len(ids) == 1 < members[makers[0]] else ""
        groups.append(Group(name, np.array(ids, np.int64), makers, dict(members), why_not or mixed))
    return _named_apart(groups)


def _named_apart(groups: list[Group]) -> tuple[Group, ...]:
    """The groups, with "#1", "#2" behind names that several prunable ones share: they are selected by name."""
    alike = Counter(group.name for group in groups if group.prunable)
    numbers: Counter[str] = Counter()
    named = []
    for group in groups:
        if group.prunable and alike[group.name] > 1:
            numbers[group.name] += 1
            named.append(replace(group, name=f"{group.name}#{numbers[group.name]}"))
        else:
            named.append(group)
    return tuple(named)


def _findings(groups: tuple[Group, ...]) -> tuple[str, ...]:
    """One sentence for each reason that keeps channels from being pruned, except that the network's outputs stay."""
    layers: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        if group.why_not not in ("", OUTPUT):
            layers[group.why_not].append(group.name or "the network")
    sentences = []
    for why_not, names in layers.items():
        sentences.append(f"The channels of {some(list(dict.fromkeys(names)))} can't be pruned, because {why_not}.")
    return tuple(sentences)
