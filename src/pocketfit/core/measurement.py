"""A quantity with its unit, its samples, how it was got, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

How = Literal["measured", "estimated", "not_possible_here"]


@dataclass(frozen=True)
class Measurement:
    """`value` in `unit`, with a 95 % interval [low, high] where one is known, from `n` samples.

    `how` is "measured" (in the runtime that ships), "estimated" (then `reason` says from what) or
    "not_possible_here" (then `value` is None and `reason` says why).

    >>> Measurement.not_possible("memory_bytes", "B", "no /proc on this system").value is None
    True
    """

    quantity: str
    unit: str
    value: float | None
    n: int = 1
    low: float | None = None
    high: float | None = None
    how: How = "measured"
    reason: str = ""
    samples: tuple[float, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def disturbed(self) -> tuple[str, ...]:
        """Why the value is not to be believed, what else ran while it was taken; () where nothing speaks against it."""
        return tuple(self.environment.get("disturbed", ()))

    @classmethod
    def not_possible(cls, quantity: str, unit: str, reason: str) -> Measurement:
        return cls(quantity, unit, None, n=0, how="not_possible_here", reason=reason)

    def to_json(self) -> dict[str, Any]:
        """Short form: empty fields are left out."""
        data: dict[str, Any] = {
            "quantity": self.quantity,
            "unit": self.unit,
            "value": self.value,
            "n": self.n,
            "how": self.how,
        }
        for key in ("low", "high"):
            if getattr(self, key) is not None:
                data[key] = getattr(self, key)
        if self.reason:
            data["reason"] = self.reason
        if self.samples:
            data["samples"] = list(self.samples)
        if self.environment:
            data["environment"] = dict(self.environment)
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Measurement:
        return cls(**{**data, "samples": tuple(data.get("samples", ()))})
