"""A measured quantity with its unit, its samples, and how and where it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pocketfit.core.support.rules import Between, Count, Like, Size, shown
from pocketfit.core.support.schema import Violation, build

How = Literal["measured", "estimated", "not_possible_here"]
Number = Annotated[float, Between(-1e15, 1e15)]
COUNTED = {"B": 0.0, "ms": 1e-9, "x": 1e-12}  # unit -> the least that can have been measured


class Environment(TypedDict):
    """Where and how something was measured. These keys are read back; others may stand beside them.

    between_sessions  spread of a latency ratio from session to session (within_sessions: inside sessions)
    disturbed         Measurement.disturbed
    best_ms           the best times of the canary's works and of the baseline (measurement/quiet.py)
    """

    between_sessions: NotRequired[Number | None]
    within_sessions: NotRequired[Number | None]
    disturbed: NotRequired[list[str]]
    best_ms: NotRequired[Mapping[str, Number]]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """`value` in `unit`, with a 95 % interval [low, high] where one is known, from `n` samples.

    `one_sided` is the one-sided 95 % bound on the bad side, where one was taken: a limit is certified by it.

    `how` is "measured" (in the runtime that ships), "estimated" (then `reason` says from what) or
    "not_possible_here" (then `value` is None and `reason` says why).

    >>> Measurement.not_possible("memory_bytes", "B", "no /proc on this system").value is None
    True
    """

    quantity: str
    unit: str
    value: Number | None
    n: Count = 1
    low: Number | None = None
    high: Number | None = None
    how: How = "measured"
    reason: str = ""
    samples: Annotated[tuple[Number, ...], Size()] = ()
    environment: Annotated[Mapping[str, Any], Like(Environment)] = field(default_factory=dict)
    one_sided: Number | None = None

    @property
    def disturbed(self) -> tuple[str, ...]:
        """Why the value is unreliable: what else ran while it was measured; () where nothing speaks against it."""
        return tuple(self.environment.get("disturbed", ()))

    @classmethod
    def not_possible(cls, quantity: str, unit: str, reason: str) -> Measurement:
        return cls(quantity=quantity, unit=unit, value=None, n=0, how="not_possible_here", reason=reason)

    def to_json(self) -> dict[str, Any]:
        """Short form: empty fields are left out."""
        data: dict[str, Any] = {
            "quantity": self.quantity,
            "unit": self.unit,
            "value": self.value,
            "n": self.n,
            "how": self.how,
        }
        for key in ("low", "high", "one_sided"):
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
    def from_json(cls, data: Any) -> Measurement:
        """The inverse of `to_json`. Raises Violation, also for a number that cannot have been measured."""
        found = build(cls, data)
        for key in ("n", "how"):
            if key not in data:
                raise Violation("is missing", key)
        if (found.value is None) != (found.how == "not_possible_here"):
            raise Violation(f"is {shown(found.value)}, and 'how' is {shown(found.how)}: one of them is wrong", "value")
        least = COUNTED.get(found.unit)
        if found.value is not None and least is not None and found.value < least:
            raise Violation(f"is {shown(found.value)}: no {found.quantity} in {found.unit} is so small", "value")
        if found.low is not None and found.high is not None and found.low > found.high:
            raise Violation(f"is {shown(found.low)}, above 'high', which is {shown(found.high)}", "low")
        return found

    read = from_json
