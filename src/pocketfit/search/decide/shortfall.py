"""Why limits cannot be met: which one binds, the nearest points, and what would have to be relaxed by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pocketfit.core.budget import Budget
from pocketfit.core.trial import Trial
from pocketfit.search.decide.check_limits import Check, check
from pocketfit.search.decide.choose import Choice, baselines


@dataclass(frozen=True)
class Shortfall:
    """`binding`: the quantities without which some trial would have met all other limits."""

    binding: tuple[str, ...]
    sentences: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"binding": list(self.binding), "sentences": list(self.sentences)}


def explain_shortfall(trials: Sequence[Trial], budget: Budget) -> Shortfall | None:
    """Why no trial meets every limit; None when one does, or when no trial has succeeded."""
    base = baselines(trials)
    choices = [
        Choice(t, base[t.runtime], check(t, base[t.runtime], budget))
        for t in sorted(trials, key=lambda t: t.number)
        if t.status == "ok" and t.stage != "control" and t.runtime in base
    ]
    if not choices or any(c.feasible for c in choices):
        return None
    sentences, binding = [], []
    for index, limit in enumerate(budget.limits):
        nearest = min(choices, key=lambda c: (_badness(c.checks[index]), c.trial.number))
        stand = nearest.checks[index]
        if stand.value is None:
            sentences.append(f"{limit.about.option} {limit.text}: nothing can be said, because {stand.reason}.")
        elif stand.met:
            sentences.append(
                f"{limit.about.option} {limit.text} alone can be met: {nearest.trial.plan.code} reaches {say(stand)}."
            )
        else:
            sentences.append(
                f"{limit.about.option} {limit.text} was not reached by any plan: the nearest is"
                f" {nearest.trial.plan.code} with {say(stand)}."
            )
        others = [c for c in choices if all(k.met for i, k in enumerate(c.checks) if i != index)]
        if others:
            relaxed = min(others, key=lambda c: (_badness(c.checks[index]), c.trial.number))
            if relaxed.checks[index].value is not None:
                binding.append(limit.quantity)
                sentences.append(
                    f"With every other limit as it is, {limit.about.option} would have to be"
                    f" {say(relaxed.checks[index])}"
                    f" instead of {limit.text} ({relaxed.trial.plan.code})."
                )
    together = min(choices, key=lambda c: (max(k.excess for k in c.checks), c.trial.number))
    missed = [
        f"{k.limit.about.option} {say(k)} instead of {k.limit.text}"
        for k in together.checks
        if not k.met and k.value is not None
    ]
    if missed:
        sentences.append(f"Nearest to all limits together is {together.trial.plan.code}: {', '.join(missed)}.")
    if not binding:
        sentences.append("No single limit is in the way: at least two would have to be relaxed together.")
    return Shortfall(tuple(binding), tuple(sentences))


def say(stand: Check) -> str:
    """A check's value in the unit of its limit, rounded so that the limit would still be met: "2.1MB", "0.62x"."""
    value, limit = stand.value, stand.limit
    if value is None:
        return "unknown"
    if limit.relative:
        return f"{_up(value, 2):g}x"
    match limit.about.unit:
        case "B":
            return f"{_up(value / 1e6, 2):g}MB"
        case "share":
            return f"{int(value * 1000) / 10:g}%"
        case "pt":
            return f"{_up(value, 1):g}pt"
        case unit:
            return f"{_up(value, 2):g}{unit}"


def _up(value: float, digits: int) -> float:
    step = 10.0**-digits
    rounded = round(value, digits)
    return rounded if rounded >= value else round(rounded + step, digits)


def _badness(stand: Check) -> float:
    if stand.value is None:
        return float("inf")
    return -stand.value if stand.limit.about.floor else stand.value
