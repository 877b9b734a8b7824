"""Which channels a network can do without: each coupled group alone, at several ratios, without any training.

All of it is estimated, in eager PyTorch: the finalists of a search are measured in the runtime. Results are kept as one
JSON line for each (group, channels kept), so that a killed run goes on where it was.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pocketfit.analysis.pruning import evaluate as trials
from pocketfit.analysis.pruning.evaluate import Job, Row
from pocketfit.analysis.pruning.exact_costs import Cost, Costs, costs_of
from pocketfit.analysis.pruning.predicted_latency import ChannelLatency
from pocketfit.analysis.pruning.result_store import evaluated
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.plan import canonical_json
from pocketfit.core.plan.prune import Criterion, Prune
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Tick
from pocketfit.passes.graph.channel_graph import ChannelGraph, Group, trace
from pocketfit.passes.prune import criteria, prune_channels

RATIOS = (0.25, 0.5, 0.75)
STORE_VERSION = 1
NUMBERS = ("loss", "loss_rise", "loss_rise_se", "accuracy", "drop_points", "drop_points_se")  # fields of a Point


@dataclass(frozen=True, kw_only=True)
class Point:
    """One group at one ratio, everything else whole.

    kept            channels of the group that stay, after rounding to the multiple
    loss, accuracy  of the network on all samples; without labels: KL divergence from, agreement with the whole network
    loss_rise       mean paired difference to the whole network, with its standard error
    drop_points     the same of the accuracy, in points of percent; positive: lost
    cost            of the whole network
    why_not         why the network does not run so, "" where it does; the numbers are NaN then
    latency_ratio   predicted latency over that of the whole network; None without a table of costs, and where the table
                    does not have the group
    """

    ratio: float
    kept: int
    loss: float
    loss_rise: float
    loss_rise_se: float
    accuracy: float
    drop_points: float
    drop_points_se: float
    cost: Cost
    why_not: str = ""
    latency_ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One coupled group; or several, where the channels of one layer are in several groups and a pattern selects all.

    group     the first layer that makes these channels; layers: all that make them
    pattern   a regular expression that selects exactly these groups in Prune.layers
    members   (number of the group in ChannelGraph.groups, its channels)
    removed   for each point, the channels that each member loses
    edge      "first": made by the network's first layer, which Prune leaves whole; "last": read by its last layer
    """

    group: str
    layers: tuple[str, ...]
    pattern: str
    channels: int
    members: tuple[tuple[int, int], ...]
    removed: tuple[tuple[int, ...], ...]
    edge: Literal["", "first", "last"]
    points: tuple[Point, ...]

    @property
    def why_not(self) -> str:
        return next((point.why_not for point in self.points if point.why_not), "")


@dataclass(frozen=True, kw_only=True)
class ChannelTable:
    """Every group that can lose channels, in the order of the network.

    loss, accuracy  of the whole network; without labels 0 and 1, as it is compared with itself
    latency         latencies of these networks in a runtime, where they were requested
    """

    model: str
    labelled: bool
    samples: int
    split: str
    criterion: str
    multiple: int
    loss: float
    accuracy: float
    cost: Cost
    curves: tuple[Curve, ...]
    costs: Costs
    findings: tuple[str, ...] = ()
    how: Literal["estimated"] = "estimated"
    latency: ChannelLatency | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data without `costs`; where a network does not run, its numbers are null."""
        apart = ("costs", "curves", "findings", "cost", "latency")
        data = {key: value for key, value in vars(self).items() if key not in apart}
        curves = [
            {
                "group": curve.group,
                "layers": list(curve.layers),
                "pattern": curve.pattern,
                "channels": curve.channels,
                "edge": curve.edge,
                "why_not": curve.why_not,
                "points": [_point_json(point) for point in curve.points],
            }
            for curve in self.curves
        ]
        latency = None if self.latency is None else self.latency.to_json()
        return {**data, **asdict(self.cost), "latency": latency, "findings": list(self.findings), "curves": curves}


def channel_sensitivity(
    model: Model,
    samples: Samples,
    ratios: Sequence[float] = RATIOS,
    *,
    criterion: Criterion = "l2",
    multiple: int = 8,
    looked_at: Samples | None = None,
    workers: int = 1,
    store: Path | None = None,
    progress: Tick | None = None,
    check: Callable[[ChannelTable], None] | None = None,
    latency: ChannelLatency | None = None,
) -> ChannelTable:
    """Every group that can lose channels, alone at each ratio, judged without training.

    samples    of the search split; where none has a label, answers are compared with those of the whole network
    ratios     shares of channels to remove, each above 0 and below 1
    criterion  which channels go, and `multiple`, to which those that stay are rounded: as in Prune
    looked_at  samples of the training split for criteria that need data
    workers    processes of one thread each; the numbers do not depend on how many
    store      folder in which results are kept; the same question finds them there again
    progress   called with (evaluated, all)
    check      called, before anything is evaluated, with a table that has costs and no losses; it may raise to stop
    latency    goes into the table

    Raises UserError for ratios that cannot be carried out, no samples, or a network that torch.export can't follow.
    """
    wanted = checked_ratios(ratios)
    if len(samples) == 0:
        raise UserError(f"The {samples.split or 'given'} split has no samples to judge on")
    if workers < 1:
        raise UserError(f"{workers} worker processes cannot work: give a whole number from 1")
    judged, findings = _judged(samples)
    graph = trace(model.network, model.signature)
    curves = _without_points(model, graph, wanted, multiple)
    if not curves:
        raise UserError(f"No layer of {model.origin.name} can lose channels: {' '.join(graph.findings)}".rstrip(": "))
    costs = costs_of(model.network, graph)

    refused: dict[str, str] = {}

    def table(rows: Mapping[tuple[str, int], Row], loss: float, accuracy: float) -> ChannelTable:
        told = tuple(
            _with_points(curve, wanted, rows, costs, latency, loss, accuracy, refused.get(curve.group, ""))
            for curve in curves
        )
        failed = [
            f"The channels of {c.group} can't be pruned: the network says '{c.why_not}'." for c in told if c.why_not
        ]
        return ChannelTable(
            model=model.origin.name,
            labelled=trials.is_labelled(judged),
            samples=len(judged),
            split=judged.split,
            criterion=criterion,
            multiple=multiple,
            loss=loss,
            accuracy=accuracy,
            cost=costs.of({}),
            curves=told,
            costs=costs,
            findings=(*findings, *graph.findings, *failed),
            latency=latency,
        )

    if check is not None:
        check(table({}, math.nan, math.nan))
    whole = trials.answers(model.network, judged)
    settings = Prune(0.0, criterion, multiple)
    refused = _refused(model, graph, curves, wanted, settings)
    able = [curve for curve in curves if curve.group not in refused]
    jobs = _jobs(graph, able, criteria.group_scores(model, graph, settings, looked_at))
    rows = evaluated(
        model, graph, judged, whole, jobs, workers, store, _key(model, judged, criterion, looked_at), progress
    )
    return table(rows, float(whole.losses.mean()), float(whole.right.mean()))


def checked_ratios(ratios: Iterable[float]) -> tuple[float, ...]:
    """The ratios in ascending order.

    >>> checked_ratios([0.5, 0.25])
    (0.25, 0.5)
    """
    found = tuple(sorted(set(ratios)))
    for ratio in found:
        if not 0 < ratio < 1:
            raise UserError(f"A pruning ratio of {ratio:g} cannot be carried out: give shares above 0 and below 1")
    if not found:
        raise UserError("No pruning ratio was given: give shares above 0 and below 1, such as 0.25,0.5,0.75")
    return found


def _judged(samples: Samples) -> tuple[Samples, tuple[str, ...]]:
    """(the samples to evaluate on: those with labels, where there are any; sentences about that)."""
    known = np.flatnonzero(samples.labels >= 0)
    if len(known) in (0, len(samples)):
        return samples, ()
    return samples.take(known), (f"{len(samples) - len(known)} samples without a label were left out.",)


def _without_points(model: Model, graph: ChannelGraph, ratios: Sequence[float], multiple: int) -> list[Curve]:
    """The groups of the graph, the first layer's too, with the number of channels that each loses at each ratio."""
    removable = {id(group) for group in prune_channels.removable(graph)}
    numbers = [number for number, group in enumerate(graph.groups) if group.prunable]
    sets = _together([n for n in numbers if id(graph.groups[n]) in removable], graph.groups)
    firsts = [n for n in numbers if id(graph.groups[n]) not in removable]
    read = _read_last(graph)
    order = {layer.name: place for place, layer in enumerate(graph.layers)}
    curves = []
    for members, first in [*((one, False) for one in sets), *(((n,), True) for n in firsts)]:
        groups = [graph.groups[n] for n in members]
        names = tuple(dict.fromkeys(_layer(group) for group in groups))
        found = "|".join(re.escape(name) for name in names)
        removed = tuple(tuple(len(g.ids) - _kept(g, ratio, multiple) for g in groups) for ratio in ratios)
        last = any(place in group.members for group in groups for place in read)
        curves.append(
            Curve(
                group=names[0],
                layers=tuple(dict.fromkeys(layer for group in groups for layer in group.layers)),
                pattern=f"^{found}$" if len(names) == 1 else f"^({found})$",
                channels=sum(len(group.ids) for group in groups),
                members=tuple((n, len(graph.groups[n].ids)) for n in members),
                removed=removed,
                edge="first" if first else "last" if last else "",
                points=(),
            )
        )
    return sorted(curves, key=lambda curve: order.get(curve.group, len(order)))


def _together(numbers: Sequence[int], groups: Sequence[Group]) -> list[tuple[int, ...]]:
    """Sets of groups to evaluate as one: those of one layer, because patterns of Prune.layers can't separate them."""
    sets: list[list[int]] = []
    for number in numbers:
        group = groups[number]
        near = [
            one
            for one in sets
            if any(_layer(groups[n]) in group.layers or _layer(group) in groups[n].layers for n in one)
        ]
        sets = [one for one in sets if one not in near] + [[n for one in near for n in one] + [number]]
    return [tuple(sorted(one)) for one in sets]


def _layer(group: Group) -> str:
    """The layer that a group is named after: "a#2" is the second group that "a" makes."""
    return group.name.partition("#")[0]


def _kept(group: Group, ratio: float, multiple: int) -> int:
    per_id = math.gcd(*(group.members[place] for place in group.producers))
    return prune_channels.channels_kept(len(group.ids), ratio, multiple, per_id)


def _read_last(graph: ChannelGraph) -> list[tuple[str, int]]:
    """(parameter, dimension) of the inputs of the last layer with weights."""
    last = next((layer.name for layer in reversed(graph.layers) if layer.macs and layer.params), "")
    return [(f"{last}.weight", 1)]


def _refused(
    model: Model, graph: ChannelGraph, curves: Sequence[Curve], ratios: Sequence[float], settings: Prune
) -> dict[str, str]:
    """Why pruning leaves a group whole, by the group's name, where a forward rearranges channels by constants.

    Such a network may run with fewer channels and mix them up; prune.apply finds out, for each group alone.
    """
    found = {}
    for curve in curves if graph.reshapes else ():
        most = next((n for n in reversed(range(len(ratios))) if any(curve.removed[n])), None)
        if curve.edge != "first" and most is not None:
            alone = replace(settings, criterion="l2", layers=((curve.pattern, ratios[most]),))
            try:
                prune_channels.apply(model, alone, graph=graph)
            except UserError as error:
                found[curve.group] = str(error)
    return found


def _jobs(graph: ChannelGraph, curves: Sequence[Curve], scores: Mapping[str, NDArray[np.float64]]) -> list[Job]:
    """One job for each group and number of channels; after rounding, several ratios may mean the same number."""
    jobs: dict[tuple[str, int], Job] = {}
    for curve in curves:
        groups = [graph.groups[number] for number, _ in curve.members]
        orders = [np.argsort(-scores[group.name], kind="stable") for group in groups]
        for removed in curve.removed:
            if any(removed):
                ids = [
                    int(label)
                    for group, order, count in zip(groups, orders, removed, strict=True)
                    for label in group.ids[order[len(order) - count :]]
                ]
                kept = curve.channels - sum(removed)
                jobs[(curve.group, kept)] = Job(curve.group, kept, tuple(ids))
    return list(jobs.values())


def _key(model: Model, samples: Samples, criterion: str, looked_at: Samples | None) -> str:
    """A hash of everything that the rows depend on: results under the same key can be used again."""
    about = [STORE_VERSION, model.key, samples.sha256, samples.split, model.split_seed, len(samples), criterion]
    if looked_at is not None and criterion in criteria.DATA_DRIVEN:
        about.append(looked_at.sha256)
    return hashlib.sha256(canonical_json(about).encode()).hexdigest()[:32]


def _with_points(
    curve: Curve,
    ratios: Sequence[float],
    rows: Mapping[tuple[str, int], Row],
    costs: Costs,
    latency: ChannelLatency | None,
    loss: float,
    accuracy: float,
    why_not: str,
) -> Curve:
    """The curve with its points. Where no channel is removed nothing changes; a point without a row has NaN."""
    unchanged: Row = {**dict.fromkeys(NUMBERS, 0.0), "loss": loss, "accuracy": accuracy}
    points = []
    for ratio, removed in zip(ratios, curve.removed, strict=True):
        kept = curve.channels - sum(removed)
        row = rows.get((curve.group, kept), {}) if any(removed) else unchanged
        lost = {number: count for (number, _), count in zip(curve.members, removed, strict=True)}
        time = math.nan if latency is None else latency.ratio(lost)
        points.append(
            Point(
                ratio=ratio,
                kept=kept,
                cost=costs.of(lost),
                why_not=why_not or row.get("why_not", ""),
                latency_ratio=None if math.isnan(time) else time,
                **{name: float(row.get(name, math.nan)) for name in NUMBERS},
            )
        )
    return replace(curve, points=tuple(points))


def _point_json(point: Point) -> dict[str, Any]:
    data = {**asdict(point), **asdict(point.cost)}
    del data["cost"]
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in data.items()}
