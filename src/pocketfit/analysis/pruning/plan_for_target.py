"""From the sensitivity of channels to ratios for each layer: least loss for what is saved, until a target is met."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pocketfit.analysis.pruning.exact_costs import Cost
from pocketfit.analysis.pruning.sensitivity import ChannelTable, Curve
from pocketfit.core.errors import UserError
from pocketfit.core.plan.prune import Prune

Layers = tuple[tuple[str, float], ...]
FORMS = "give macs:0.5x, size:0.5x, latency:0.5x, latency:5ms or drop:1pt"
Reduced = Literal["macs", "size", "latency", "latency_ms", "drop"]
_QUANTITIES: Mapping[str, Reduced] = {
    "macsx": "macs",
    "sizex": "size",
    "latencyx": "latency",
    "latencyms": "latency_ms",
    "droppt": "drop",
}


@dataclass(frozen=True)
class Target:
    """What a plan has to reach.

    quantity  "macs", "size" or "latency": `value` is the share of the whole network's that may be left; "latency_ms":
              milliseconds, of which the whole network takes as many as were measured; "drop": `value` is the sum of
              the groups' estimated drops that may be reached, in points
    """

    quantity: Reduced
    value: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """
        >>> Target.parse("macs:0.5x"), Target.parse("drop:1pt")
        (Target(quantity='macs', value=0.5), Target(quantity='drop', value=1.0))
        >>> Target.parse("latency:5ms")
        Target(quantity='latency_ms', value=5.0)
        """
        found = re.fullmatch(r"\s*(\w+):\s*(\d*\.?\d+)\s*(x|ms|pt|points)\s*", text)
        quantity = None if found is None else _QUANTITIES.get(found[1] + found[3].replace("points", "pt"))
        if found is None or quantity is None:
            raise UserError(f"The target '{text}' cannot be read: {FORMS}")
        value = float(found[2])
        if quantity == "latency_ms" and value == 0:
            raise UserError(f"The target '{text}' can't be met by any network: give more than 0 ms")
        if quantity not in ("drop", "latency_ms") and not 0 < value < 1:
            raise UserError(f"The target '{text}' asks for nothing that pruning does: give a share above 0x, below 1x")
        return cls(quantity, value)

    def __str__(self) -> str:
        unit = {"drop": "pt", "latency_ms": "ms"}.get(self.quantity, "x")
        return f"{self.name}:{self.value:g}{unit}"

    @property
    def name(self) -> str:
        """The quantity that is to be reduced, in a word."""
        return self.quantity.removesuffix("_ms")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan and what is expected of it: costs are exact, the drop is the sum of the single groups' drops (estimated).

    latency_ratio, latency_ms  estimated, too; None where the table has no latencies
    drop_points  drop of the accuracy; each group counts at least 0, and at least as much as with fewer channels
                 removed. Groups that are pruned together differ from the sum: before training they mostly lose more
    """

    layers: Layers
    target: str
    multiple: int
    criterion: str
    cost: Cost
    macs_ratio: float
    size_ratio: float
    drop_points: float
    loss_rise: float
    latency_ratio: float | None = None
    latency_ms: float | None = None

    @property
    def settings(self) -> Prune:
        """The pass that carries it out."""
        return Prune(0.0, self.criterion, self.multiple, self.layers)

    def fragment(self) -> dict[str, Any]:
        """The pass as it stands in the "passes" of a plan.json."""
        layers = [list(pair) for pair in self.layers]
        return {
            "pass": "prune",
            "ratio": 0.0,
            "criterion": self.criterion,
            "multiple": self.multiple,
            "layers": layers,
        }

    def to_json(self) -> dict[str, Any]:
        kept = {key: value for key, value in vars(self).items() if key not in ("cost", "layers")}
        return {**kept, **asdict(self.cost), "line": self.line, "pass": self.fragment()}

    @property
    def line(self) -> str:
        """The pass as a line of Python."""
        return f"Prune(0.0, criterion={self.criterion!r}, multiple={self.multiple}, layers={self.layers!r})"


def plan_for(table: ChannelTable, target: Target) -> Layers:
    """(pattern, ratio) pairs for Prune.layers that meet the target, each group at one of the table's ratios.

    Greedy: the next step is the one with the least loss for each multiply-accumulate (size: byte; latency: predicted
    microsecond) that it saves; steps that are needless in the end are taken back. Multiply-accumulates and bytes are
    those of the pruned network, exactly; latency is estimated. Losses are added up, though they are not additive: the
    sum ranks plans, and is no prediction for one of them.

    Raises UserError where the table's ratios do not reach the target, where drop is asked for without labels, and
    where latency is asked for and the table has none.
    """
    return planned(table, target).layers


def planned(table: ChannelTable, target: Target) -> Planned:
    """`plan_for`, with what it is expected to cost."""
    steps = _chosen(table, target)
    curves = [curve for curve in _usable(table) if curve.group in steps]
    removed = _removed(curves, steps)
    cost, ratio = table.costs.of(removed), None if table.latency is None else table.latency.ratio(removed)
    points = [curve.points[steps[curve.group]] for curve in curves]
    return Planned(
        layers=tuple((curve.pattern, point.ratio) for curve, point in zip(curves, points, strict=True)),
        target=str(target),
        multiple=table.multiple,
        criterion=table.criterion,
        cost=cost,
        macs_ratio=cost.macs / table.cost.macs,
        size_ratio=cost.size_bytes / table.cost.size_bytes,
        drop_points=sum(_rising([point.drop_points for point in curve.points])[steps[curve.group]] for curve in curves),
        loss_rise=sum(_rising([point.loss_rise for point in curve.points])[steps[curve.group]] for curve in curves),
        latency_ratio=ratio,
        latency_ms=None if table.latency is None or ratio is None else ratio * table.latency.full_ms,
    )


def check_reachable(table: ChannelTable, target: Target) -> None:
    """Raise UserError where not even all groups at their largest ratio meet the target."""
    if target.quantity == "drop":
        if not table.labelled:
            raise UserError("A target for the drop needs labels: the samples have none; give macs:0.5x or size:0.5x")
        return
    wanted = _wanted(table, target)
    curves = _usable(table)
    reached = _share(table, curves, {curve.group: len(curve.points) - 1 for curve in curves}, target)
    if reached > wanted:
        falls = f"{target.name} falls to" if target.name == "latency" else f"{target.name} fall to"
        if target.quantity == "latency_ms" and table.latency is not None:
            falls += f" {reached * table.latency.full_ms:.3g} ms,"
        raise UserError(
            f"The target {target} is out of reach: with every group at its largest ratio, {falls} {reached:.2f}x;"
            f" give larger --ratios, or a milder target"
        )


def _chosen(table: ChannelTable, target: Target) -> dict[str, int]:
    """The index of each group's point, by the group's name."""
    check_reachable(table, target)
    curves, drop_asked = _usable(table), target.quantity == "drop"
    wanted = math.inf if drop_asked else _wanted(table, target)
    losses = {curve.group: _rising([point.loss_rise for point in curve.points]) for curve in curves}
    drops = {curve.group: _rising([point.drop_points for point in curve.points]) for curve in curves}
    steps: dict[str, int] = {}
    while drop_asked or _share(table, curves, steps, target) > wanted:
        now = _saved(table, curves, steps, target)
        best: tuple[float, float, str, int] | None = None
        for curve in curves:
            name, at = curve.group, steps.get(curve.group, -1)
            for index in range(at + 1, len(curve.points)):
                tried = {**steps, name: index}
                if drop_asked and sum(drops[g][i] for g, i in tried.items()) > target.value:
                    continue
                gain = _saved(table, curves, tried, target) - now
                if gain > 0:
                    rise = losses[name][index] - (losses[name][at] if at >= 0 else 0.0)
                    found = (rise / gain, -gain, name, index)
                    best = found if best is None else min(best, found)
        if best is None:
            break
        steps[best[2]] = best[3]
    if not drop_asked:
        _take_back(table, curves, steps, target, losses)
    return steps


def _take_back(
    table: ChannelTable,
    curves: Sequence[Curve],
    steps: dict[str, int],
    target: Target,
    losses: dict[str, list[float]],
) -> None:
    """Undo steps, whole or in part, without which the target is still met, those with the largest loss first."""
    wanted = _wanted(table, target)
    for name in sorted(steps, key=lambda group: -losses[group][steps[group]]):
        for index in range(-1, steps[name]):
            tried = {group: at for group, at in {**steps, name: index}.items() if at >= 0}
            if _share(table, curves, tried, target) <= wanted:
                steps.clear()
                steps.update(tried)
                break


def _usable(table: ChannelTable) -> list[Curve]:
    """The groups from which Prune removes channels, with those of their points that differ from the whole network."""
    found = []
    for curve in table.curves:
        if curve.edge == "first":
            continue
        good = [n for n, point in enumerate(curve.points) if any(curve.removed[n]) and not point.why_not]
        good = [n for place, n in enumerate(good) if place == 0 or curve.removed[n] != curve.removed[good[place - 1]]]
        if good:
            points, removed = tuple(curve.points[n] for n in good), tuple(curve.removed[n] for n in good)
            found.append(replace(curve, points=points, removed=removed))
    return found


def _removed(curves: Sequence[Curve], steps: dict[str, int]) -> dict[int, int]:
    """How many channels each group, by its number, loses at these steps."""
    removed: dict[int, int] = {}
    for curve in curves:
        if curve.group in steps:
            lost = curve.removed[steps[curve.group]]
            removed |= {number: count for (number, _), count in zip(curve.members, lost, strict=True)}
    return removed


def _wanted(table: ChannelTable, target: Target) -> float:
    """The share of the whole network's cost that may be left."""
    if target.name != "latency":
        return target.value
    if table.latency is None:
        raise UserError("A target for the latency needs a table of costs in a runtime: this table has none")
    if target.quantity == "latency":
        return target.value
    full_ms = table.latency.full_ms
    if target.value >= full_ms:
        raise UserError(
            f"The target {target} asks for nothing that pruning does: in {table.latency.runtime} the whole network"
            f" takes {full_ms:.3g} ms"
        )
    return target.value / full_ms


def _share(table: ChannelTable, curves: Sequence[Curve], steps: dict[str, int], target: Target) -> float:
    """The share of the whole network's cost that is left at these steps; for a drop, of its multiply-accumulates."""
    removed = _removed(curves, steps)
    if target.name == "latency" and table.latency is not None:
        return table.latency.ratio(removed)
    cost = table.costs.of(removed)
    return cost.size_bytes / table.cost.size_bytes if target.quantity == "size" else cost.macs / table.cost.macs


def _saved(table: ChannelTable, curves: Sequence[Curve], steps: dict[str, int], target: Target) -> float:
    return 1.0 - _share(table, curves, steps, target)


def _rising(values: Sequence[float]) -> list[float]:
    """The running maximum from 0 on: with more channels removed, a smaller loss, or a gain, is noise.

    >>> _rising([-0.1, 0.4, 0.3])
    [0.0, 0.4, 0.4]
    """
    found, top = [], 0.0
    for value in values:
        top = max(top, value)
        found.append(top)
    return found
