"""Limits in the user's own units.

    --max-size 3MB | 3MiB | 0.3x       --max-latency 60ms | p95:60ms | 0.6x       --max-drop 1pt
MB is 10^6 bytes, MiB 2^20; "0.3x" is relative to the float32 baseline in the same runtime.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

from pocketfit.core.errors import UserError
from pocketfit.core.quantities import PERCENTILES, QUANTITIES, KnownQuantity, Quantity
from pocketfit.core.support.rules import Between, OneOf
from pocketfit.core.support.schema import build

Prefer = Literal["speed", "size", "accuracy", "balanced"]
SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Limit:
    """One limit; its row in core/quantities.py (`about`) says what it means.

    value       bytes, milliseconds, points (drop), a share from 0 to 1 (accuracy), or a ratio where `relative`
    percentile  of latency: 50 or 90, 95, 99
    text        as the user wrote it
    """

    whole_in_json: ClassVar[bool] = True
    quantity: Annotated[str, KnownQuantity()]
    value: Annotated[float, Between(0, 1e300)]
    relative: bool = False
    percentile: Annotated[int, OneOf(PERCENTILES)] = 50
    text: str = ""

    @property
    def about(self) -> Quantity:
        return QUANTITIES[self.quantity]

    @property
    def measurement(self) -> str:
        """The name of the measurement that the limit is about."""
        return self.about.measured_as(percentile=self.percentile, relative=self.relative)

    def to_json(self) -> dict[str, Any]:
        return {
            "quantity": self.quantity,
            "value": self.value,
            "relative": self.relative,
            "percentile": self.percentile,
            "text": self.text,
        }


@dataclass(frozen=True)
class Budget:
    """All limits of a run, also on its time and trials, and what to prefer among the plans that meet the limits."""

    whole_in_json: ClassVar[bool] = True
    limits: tuple[Limit, ...] = ()
    max_time_s: Annotated[float, Between(0, 1e300, above=True)] | None = None
    max_trials: Annotated[int, Between(1, 10**9)] | None = None
    prefer: Prefer = "balanced"

    def to_json(self) -> dict[str, Any]:
        return {
            "limits": [limit.to_json() for limit in self.limits],
            "max_time_s": self.max_time_s,
            "max_trials": self.max_trials,
            "prefer": self.prefer,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Budget:
        """The inverse of `to_json`. Raises Violation."""
        return build(cls, data)

    def limit_on(self, quantity: str) -> float | None:
        """The value of the limit on a quantity, None where it has none."""
        return next((limit.value for limit in self.limits if limit.quantity == quantity), None)

    @classmethod
    def parse(
        cls,
        *,
        max_time: str | None = None,
        max_trials: int | None = None,
        prefer: Prefer = "balanced",
        **limits: str | None,
    ) -> Budget:
        """Limits from the user's words; raises UserError with what is wrong and what would be right.

        limits      max_size, max_download, max_memory, max_latency, max_drop, min_accuracy, and any other row of
                    core/quantities.py; None: no limit
        max_time    time for the whole run, "10min"
        max_trials  number of trials, without the control
        prefer      what to prefer among the plans that meet the limits

        >>> Budget.parse(max_size="3MB", max_latency="p95:60ms").limits[1].percentile
        95
        """
        known = {row.keyword: row for row in QUANTITIES.values()}
        for name in limits.keys() - known.keys():
            raise UserError(f"There is no limit '{name}': known are {', '.join(known)}, max_time and max_trials")
        asked = [parse_limit(row, text) for name, row in known.items() if (text := limits.get(name)) is not None]
        seconds = None if max_time is None else parse_unit(max_time, SECONDS, "--max-time", "10min")
        if max_trials is not None and max_trials < 1:
            raise UserError(f"--max-trials {max_trials} leaves nothing to try: give a whole number from 1")
        budget = cls(tuple(asked), seconds, max_trials, prefer)
        _refuse_contradictions(budget)
        return budget


def parse_limit(row: Quantity, text: str) -> Limit:
    """One limit in the user's words. Raises UserError.

    >>> parse_limit(QUANTITIES["latency"], "p95:0.6x")
    Limit(quantity='latency', value=0.6, relative=True, percentile=95, text='p95:0.6x')
    """
    percentile, rest = 50, text
    if row.percentiles and (match := re.fullmatch(r"\s*p(\d+)\s*:(.*)", text)):
        percentile, rest = int(match[1]), match[2]
        if percentile not in row.percentiles:
            *some, last = (f"p{known}" for known in row.percentiles)
            raise UserError(f"{row.option} '{text}': percentiles {', '.join(some)} and {last} are measured")
    if row.relative and (match := re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*[xX]\s*", rest)):
        if float(match[1]) <= 0:
            raise UserError(f"{row.option} '{text}' can never be met: it must be more than zero")
        return Limit(row.name, float(match[1]), relative=True, percentile=percentile, text=text)
    value = parse_unit(rest, row.units, row.option, row.example, zero=row.zero or row.floor)
    if row.floor and value == 0:
        raise UserError(f"{row.option} '{text}' asks for nothing: write {row.example}")
    if row.highest is not None and value > row.highest:
        raise UserError(f"{row.option} '{text}' can never be met: write {row.example}")
    return Limit(row.name, value, percentile=percentile, text=text)


def parse_unit(text: str, units: Mapping[str, float], option: str, example: str, *, zero: bool = False) -> float:
    """A positive number with its unit, or zero where that may be.

    >>> parse_unit("1.5MB", QUANTITIES["size"].units, "--max-size", "3MB")
    1500000.0
    >>> parse_unit("70%", QUANTITIES["accuracy"].units, "--min-accuracy", "90%")
    0.7
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?\d+)?)\s*([A-Za-zµ%]*)\s*", text)
    folded = {name.lower(): factor for name, factor in units.items()}
    if match is None or match[2].lower() not in folded:
        known = [unit for unit in units if unit]
        which = f"one of the units {', '.join(known)}" if len(known) > 1 else f"the unit {known[0]}"
        raise UserError(f"{option} '{text}' cannot be read: write a number with {which}, for example {example}")
    value = float(Decimal(match[1]) * Decimal(str(folded[match[2].lower()])))  # 70 * 0.01 in binary is above 0.7
    if value < 0 or (value == 0 and not zero):
        raise UserError(f"{option} '{text}' can never be met: it must be more than zero")
    if math.isinf(value):
        raise UserError(f"{option} '{text}' is no limit: the number is too large to be stored")
    return value


def _refuse_contradictions(budget: Budget) -> None:
    by_name = {limit.quantity: limit for limit in budget.limits}
    size, download = by_name.get("size"), by_name.get("download")
    if size and download and size.relative == download.relative and download.value > size.value:
        raise UserError(
            f"--max-download {download.text} and --max-size {size.text} contradict each other: a file never grows"
            " when it is compressed, so the download limit must not be above the size limit"
        )
