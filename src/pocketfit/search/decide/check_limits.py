"""Limits against measurements: which are met, and which with confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pocketfit.core.budget import Budget, Limit
from pocketfit.core.measurement import Measurement
from pocketfit.core.quantities import Quantity
from pocketfit.core.trial import Trial


@dataclass(frozen=True)
class Check:
    """One limit, checked. `worst` is the one-sided 95 % bound on the bad side; None where the value is not known.

    `excess` is how far the value is beyond the limit, as a share of the limit (drop and accuracy: in points / 1 pt),
    zero where it is met.
    """

    limit: Limit
    value: float | None
    worst: float | None
    reason: str = ""
    measured: Measurement | None = None  # the measurement itself, where its interval and disturbances count (latency)

    @property
    def disturbed(self) -> str:
        """Why the value is unreliable; "" where nothing speaks against it."""
        return "" if self.measured is None else "; ".join(self.measured.disturbed)

    @property
    def met(self) -> bool:
        return self.value is not None and self._inside(self.value)

    @property
    def bounded(self) -> bool:
        """Whether the bound is inside the limit, as it was measured."""
        return self.met and self.worst is not None and self._inside(self.worst)

    @property
    def certified(self) -> bool:
        """Whether the bound is inside the limit, and nothing speaks against the measurement."""
        return self.bounded and not self.disturbed

    @property
    def sure(self) -> bool:
        """Whether the limit would be met with twice the distance from the value to its bound. For latency the bound is
        enough, because the verdict measures it with more care than the search does."""
        if self.value is None or self.worst is None:
            return False
        if not self.limit.about.of_answers:
            return self.bounded
        return self._inside(self.worst + (self.worst - self.value))

    @property
    def excess(self) -> float:
        if self.value is None:
            return float("inf")
        return self.limit.about.excess(self.value, self.limit.value)

    def _inside(self, value: float) -> bool:
        return self.limit.about.inside(value, self.limit.value)

    def to_json(self) -> dict[str, Any]:
        unit = "x" if self.limit.relative else self.limit.about.unit
        return {
            "quantity": self.limit.quantity,
            "text": self.limit.text,
            "limit": self.limit.value,
            "value": self.value,
            "worst": self.worst,
            "unit": unit,
            "met": self.met,
            "certified": self.certified,
            "reason": self.reason or self.disturbed,
        }


def check(trial: Trial, baseline: Trial, budget: Budget) -> tuple[Check, ...]:
    """Every limit of the budget, checked for one trial; relative limits against the baseline of the same runtime."""
    return tuple(_check(limit, trial, baseline) for limit in budget.limits)


def cost_excess(trial: Trial, baseline: Trial, budget: Budget) -> float:
    """How far size, download, memory and latency exceed their limits, latency by the good end of its interval."""
    worst = 0.0
    for stand in check(trial, baseline, budget):
        if stand.limit.about.of_answers:
            continue
        low = stand.measured.low if stand.measured is not None and stand.limit.relative else None
        worst = max(worst, stand.excess if low is None else stand.limit.about.excess(low, stand.limit.value))
    return worst


def accurate(trial: Trial, baseline: Trial, budget: Budget) -> bool:
    """Whether the limits on drop and accuracy are met."""
    return all(c.met for c in check(trial, baseline, budget) if c.limit.about.of_answers)


def _check(limit: Limit, trial: Trial, baseline: Trial) -> Check:
    measurement, row = trial.measurements.get(limit.measurement), limit.about
    if measurement is None or measurement.value is None:
        return Check(limit, None, None, measurement.reason if measurement else "it was not measured")
    worst = _worst(measurement, row)
    if row.ratio or row.percentiles:
        return Check(limit, measurement.value, worst, measured=measurement)
    if not limit.relative:
        return Check(limit, measurement.value, worst)
    reference = baseline.value(limit.measurement)
    if not reference:
        return Check(limit, None, None, "the baseline's could not be measured")
    return Check(limit, measurement.value / reference, None if worst is None else worst / reference)


def _worst(measurement: Measurement, row: Quantity) -> float | None:
    """The bound on the bad side: the one-sided 95 % bound where one was computed, else the bad end of the two-sided
    95 % interval, which is a 97.5 % bound and on the safe side."""
    if row.exact:
        return measurement.value
    if measurement.one_sided is not None:
        return measurement.one_sided
    return measurement.low if row.floor else measurement.high
