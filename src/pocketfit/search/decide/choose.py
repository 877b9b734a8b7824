"""Which trial to hand over: a pure function of the trials and the budget.

1. A trial is feasible when every limit is met by its point estimate (accuracy: on the search split). The float32
   baseline is handed over only when nothing else is feasible.
2. The verdict split is read only once, so a plan that is likely to be certified there goes first: the feasible trials
   fall into four tiers, and the best tier that has any trial decides. Tier 0: every limit would still be met with
   twice the distance to the one-sided bound: once for the search split's error, once for the verdict split's.
   Tier 1: every one-sided bound is met. Tier 2: the drop is at most half of what is allowed. Tier 3: the rest.
3. Within the tier `prefer` orders. Trials whose latency intervals overlap with the best one's, while nothing else
   tells them apart, are taken in plan order, so that noise does not choose.
   A plan that was trained on, and lost no more by it, stands in for the plan that it began as.
4. With no feasible trial, the one with the smallest worst excess is the best so far.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pocketfit.core.budget import Budget
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.rewrite import Fold
from pocketfit.core.trial import Trial
from pocketfit.search.decide.check_limits import Check, check

HARMLESS_DROP_SHARE = 0.5
Numbers = tuple[int, ...]
Beginning = tuple[ExportSettings, Numbers, Numbers]


@dataclass(frozen=True)
class Choice:
    """The trial to hand over, the baseline of its runtime, and how each limit stands (on the search split)."""

    trial: Trial
    baseline: Trial
    checks: tuple[Check, ...]

    @property
    def feasible(self) -> bool:
        return all(c.met for c in self.checks)


def baselines(trials: Sequence[Trial]) -> dict[str, Trial]:
    """The float32 baseline of each runtime."""
    return {t.runtime: t for t in trials if t.stage == "baseline" and t.status == "ok"}


def choose(trials: Sequence[Trial], budget: Budget) -> Choice | None:
    """The best trial for this budget; None when no trial has succeeded."""
    base, outgrown = baselines(trials), _outgrown(trials)
    choices = [
        Choice(t, base[t.runtime], check(t, base[t.runtime], budget))
        for t in sorted(trials, key=lambda t: t.number)
        if t.status == "ok" and t.stage != "control" and t.runtime in base and t.number not in outgrown
    ]
    if not choices:
        return None
    feasible = [c for c in choices if c.feasible]
    if not feasible:
        return min(
            choices, key=lambda c: (max(k.excess for k in c.checks), sum(k.excess for k in c.checks), c.trial.number)
        )
    feasible = [c for c in feasible if c.trial.stage != "baseline"] or feasible
    best_tier = min(_tier(c) for c in feasible)
    return _preferred([c for c in feasible if _tier(c) == best_tier], budget)


def latency_ms(choice: Choice) -> tuple[float, float, float]:
    """(value, low, high), computed from the interleaved ratio, so that trials of different minutes can be compared."""
    ratio, base = choice.trial.measurements.get("latency_ratio"), choice.baseline.value("latency_ms")
    if choice.trial.number == choice.baseline.number and base is not None:
        return base, base, base
    if ratio is None or ratio.value is None or base is None:
        return math.inf, math.inf, math.inf
    low = ratio.value if ratio.low is None else ratio.low
    high = ratio.value if ratio.high is None else ratio.high
    return ratio.value * base, low * base, high * base


def _outgrown(trials: Sequence[Trial]) -> set[int]:
    """Numbers of the trials whose plan another trial continues by training, without losing more.

    A plan continues every plan that has a beginning of each of its two halves. The smallest loss of all continuations
    is kept by the plan that they continue, so that the time grows with the trials and not with their square.
    """
    settings: dict[PassSettings, int] = {}  # a number for each, as these are hashed often
    least: dict[Beginning, float] = {}
    own: dict[int, tuple[Beginning, float]] = {}
    for trial in trials:
        lost = trial.value("drop_points")
        if trial.status != "ok" or trial.stage == "control" or lost is None:
            continue
        before, behind = (
            tuple(settings.setdefault(one, len(settings)) for one in half) for half in halves(trial.plan.passes)
        )
        export = trial.plan.export
        for beginning in _beginnings(before, behind):
            key = (export, *beginning)
            least[key] = min(lost, least.get(key, math.inf))
        if before or behind:
            own[trial.number] = (export, before, behind), lost
    return {number for number, (key, lost) in own.items() if least.get(key, math.inf) <= lost}


def _beginnings(before: Numbers, behind: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """The halves of all plans that a plan with these halves continues: in float, for the quantized file, or both.

    >>> list(_beginnings((1, 2), (3,)))
    [((1, 2), ()), ((1,), (3,)), ((1,), ())]
    """
    for cut in range(len(before), 0 if before else -1, -1):
        for rest in range(len(behind), -1, -1):
            if (cut, rest) != (len(before), len(behind)):
                yield before[:cut], behind[:rest]


def halves(passes: tuple[PassSettings, ...]) -> tuple[tuple[PassSettings, ...], tuple[PassSettings, ...]]:
    """(in float, for the quantized file): passes are cut in front of the first that is for one file. A fold in front of
    all counts for neither, as it changes no answers; see `fold_of`.

    >>> from pocketfit.core.plan.quantize import Equalize
    >>> halves((Equalize(absorb=False),))
    ((), (Equalize(statistics='data', absorb=False, samples=200),))
    """
    rest = passes[len(fold_of(passes)) :]
    cut = next((i for i, settings in enumerate(rest) if settings.FACTS.for_file), len(rest))
    return rest[:cut], rest[cut:]


def fold_of(passes: tuple[PassSettings, ...]) -> tuple[PassSettings, ...]:
    """The fold with which these passes begin, () where they begin otherwise."""
    return passes[:1] if passes and isinstance(passes[0], Fold) else ()


def _tier(choice: Choice) -> int:
    if all(c.bounded and c.sure for c in choice.checks):
        return 0
    if all(c.bounded for c in choice.checks):
        return 1
    drops = [c for c in choice.checks if c.limit.quantity == "drop"]
    if all(c.value is not None and c.value <= HARMLESS_DROP_SHARE * c.limit.value for c in drops):
        return 2
    return 3


def _preferred(choices: Sequence[Choice], budget: Budget) -> Choice:
    """The first in plan order among the choices that the best one does not clearly beat."""
    best = min(choices, key=lambda c: (_cost(c, budget)[0], c.trial.number))
    return next(c for c in choices if _cost(c, budget)[1] <= _cost(best, budget)[2])


def _cost(choice: Choice, budget: Budget) -> tuple[float, float, float]:
    """(value, low, high) of the cost that `prefer` minimises; "balanced" is bytes times milliseconds, in logarithms."""
    size = float(choice.trial.value("size_bytes") or math.inf)
    value, low, high = latency_ms(choice)
    match budget.prefer:
        case "speed":
            return value, low, high
        case "size":
            return size, size, size
        case "accuracy":
            drop = choice.trial.measurements.get("drop_points")
            if drop is None or drop.value is None:
                return math.inf, math.inf, math.inf
            return drop.value, drop.value, drop.value
        case _:
            return math.log(size) + math.log(value), math.log(size) + math.log(low), math.log(size) + math.log(high)
