"""Limits against measurements: which are met, and which with confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pocketfit.core.budget import Budget, Limit
from pocketfit.core.measurement import Measurement
from pocketfit.core.trial import Trial

UNITS = {"size": "B", "download": "B", "memory": "B", "latency": "ms", "drop": "pt", "accuracy": ""}
QUANTITIES = {
    "size": "size_bytes",
    "download": "download_bytes",
    "memory": "memory_bytes",
    "drop": "drop_points",
    "accuracy": "accuracy",
}


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
    measured: Measurement | None = None  # of latency: what the check stands on

    @property
    def disturbed(self) -> str:
        """Why the value is not to be believed, "": nothing speaks against it."""
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
        """Whether the limit would be met with twice the distance from the value to its bound; latency is measured with
        more care for the verdict than while searching, so its bound is enough."""
        if self.value is None or self.worst is None:
            return False
        if self.limit.quantity not in ("drop", "accuracy"):
            return self.bounded
        return self._inside(self.worst + (self.worst - self.value))

    @property
    def excess(self) -> float:
        if self.value is None:
            return float("inf")
        if self.limit.quantity == "accuracy":
            return max(0.0, (self.limit.value - self.value) * 100)
        if self.limit.quantity == "drop":
            return max(0.0, self.value - self.limit.value)
        return max(0.0, self.value / self.limit.value - 1)

    def _inside(self, value: float) -> bool:
        return value >= self.limit.value if self.limit.quantity == "accuracy" else value <= self.limit.value

    def to_json(self) -> dict[str, Any]:
        unit = "x" if self.limit.relative else UNITS[self.limit.quantity]
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
    """Every limit of the budget against one trial; relative limits against the baseline of the same runtime."""
    return tuple(_check(limit, trial, baseline) for limit in budget.limits)


def cost_excess(trial: Trial, baseline: Trial, budget: Budget) -> float:
    """How far size, download, memory and latency are beyond their limits, latency by the good end of its interval."""
    worst = 0.0
    for stand in check(trial, baseline, budget):
        if stand.limit.quantity in ("drop", "accuracy"):
            continue
        excess = stand.excess
        if stand.limit.quantity == "latency" and stand.limit.relative:
            low = trial.measurements["latency_ratio"].low if "latency_ratio" in trial.measurements else None
            excess = excess if low is None else max(0.0, low / stand.limit.value - 1)
        worst = max(worst, excess)
    return worst


def accurate(trial: Trial, baseline: Trial, budget: Budget) -> bool:
    """Whether the limits on drop and accuracy are met."""
    return all(c.met for c in check(trial, baseline, budget) if c.limit.quantity in ("drop", "accuracy"))


def _check(limit: Limit, trial: Trial, baseline: Trial) -> Check:
    if limit.quantity == "latency":
        return _latency(limit, trial)
    measurement = trial.measurements.get(QUANTITIES[limit.quantity])
    if measurement is None or measurement.value is None:
        return Check(limit, None, None, measurement.reason if measurement else "it was not measured")
    if limit.relative:
        reference = baseline.value(QUANTITIES[limit.quantity])
        if not reference:
            return Check(limit, None, None, "the baseline's could not be measured")
        worst = _worst(measurement, limit)
        return Check(limit, measurement.value / reference, None if worst is None else worst / reference)
    return Check(limit, measurement.value, _worst(measurement, limit))


def _latency(limit: Limit, trial: Trial) -> Check:
    name = "latency_ms" if limit.percentile == 50 else f"latency_p{limit.percentile}_ms"
    if limit.relative:
        name = "latency_ratio" if limit.percentile == 50 else f"latency_p{limit.percentile}_ratio"
    measurement = trial.measurements.get(name)
    if measurement is None or measurement.value is None:
        return Check(limit, None, None, measurement.reason if measurement else "it was not measured")
    return Check(limit, measurement.value, _worst(measurement, limit), measured=measurement)


def _worst(measurement: Measurement, limit: Limit) -> float | None:
    """The bound on the bad side. Intervals are two-sided 95 %: their bad end is a 97.5 % one-sided bound, which is
    on the safe side; `worst` among the details of a drop would be the exact 95 % bound."""
    if limit.quantity in ("size", "download"):
        return measurement.value
    if "one_sided" in measurement.environment:
        return float(measurement.environment["one_sided"])
    return measurement.low if limit.quantity == "accuracy" else measurement.high
