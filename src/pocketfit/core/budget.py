"""Limits in the user's own units.

    --max-size 3MB | 3MiB | 0.3x       --max-latency 60ms | p95:60ms | 0.6x       --max-drop 1pt
MB is 10^6 bytes, MiB 2^20; "0.3x" is relative to the float32 baseline in the same runtime.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pocketfit.core.errors import UserError
from pocketfit.core.rules import Between, OneOf
from pocketfit.core.schema import build

Quantity = Literal["size", "download", "memory", "latency", "drop", "accuracy"]
Prefer = Literal["speed", "size", "accuracy", "balanced"]
BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
MILLISECONDS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
PERCENTILES = (50, 90, 95, 99)
SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Limit:
    """One limit: a ceiling, except for "accuracy", which is a floor.

    value       bytes, milliseconds, points (drop), a share from 0 to 1 (accuracy), or a ratio where `relative`
    percentile  of latency: 50 or 90, 95, 99
    text        as the user wrote it
    """

    whole_in_json: ClassVar[bool] = True
    quantity: Quantity
    value: Annotated[float, Between(0, 1e300)]
    relative: bool = False
    percentile: Annotated[int, OneOf(PERCENTILES)] = 50
    text: str = ""

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
    """All limits of a run, its time and trials, and what to prefer among the plans that meet the limits."""

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

    @classmethod
    def parse(
        cls,
        *,
        max_size: str | None = None,
        max_download: str | None = None,
        max_memory: str | None = None,
        max_latency: str | None = None,
        max_drop: str | None = None,
        min_accuracy: str | None = None,
        max_time: str | None = None,
        max_trials: int | None = None,
        prefer: Prefer = "balanced",
    ) -> Budget:
        """Limits from the user's words; raises UserError with what is wrong and what would be right.

        >>> Budget.parse(max_size="3MB", max_latency="p95:60ms").limits[1].percentile
        95
        """
        limits = []
        for quantity, text in (("size", max_size), ("download", max_download), ("memory", max_memory)):
            if text is not None:
                limits.append(_size_limit(quantity, text))  # type: ignore[arg-type]
        if max_latency is not None:
            limits.append(_latency_limit(max_latency))
        if max_drop is not None:
            limits.append(Limit("drop", _drop_points(max_drop), text=max_drop))
        if min_accuracy is not None:
            limits.append(Limit("accuracy", _share(min_accuracy), text=min_accuracy))
        seconds = None if max_time is None else parse_unit(max_time, SECONDS, "--max-time", "10min")
        if max_trials is not None and max_trials < 1:
            raise UserError(f"--max-trials {max_trials} leaves nothing to try: give a whole number from 1")
        budget = cls(tuple(limits), seconds, max_trials, prefer)
        _refuse_contradictions(budget)
        return budget


def parse_unit(text: str, units: Mapping[str, float], option: str, example: str) -> float:
    """A positive number with its unit.

    >>> parse_unit("1.5MB", BYTES, "--max-size", "3MB")
    1500000.0
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?\d+)?)\s*([A-Za-zµ]+)\s*", text)
    folded = {name.lower(): factor for name, factor in units.items()}
    if match is None or match[2].lower() not in folded:
        raise UserError(
            f"{option} '{text}' cannot be read: write a number with one of the units {', '.join(units)}, for example"
            f" {example}"
        )
    value = float(match[1]) * folded[match[2].lower()]
    if value <= 0:
        raise UserError(f"{option} '{text}' can never be met: it must be more than zero")
    if math.isinf(value):
        raise UserError(f"{option} '{text}' is no limit: the number is too large to be stored")
    return value


def _relative(text: str, option: str) -> float | None:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*[xX]\s*", text)
    if match is None:
        return None
    if float(match[1]) <= 0:
        raise UserError(f"{option} '{text}' can never be met: it must be more than zero")
    return float(match[1])


def _size_limit(quantity: Quantity, text: str) -> Limit:
    option = f"--max-{quantity}"
    ratio = _relative(text, option)
    if ratio is not None:
        return Limit(quantity, ratio, relative=True, text=text)
    return Limit(quantity, parse_unit(text, BYTES, option, "3MB or 0.3x"), text=text)


def _latency_limit(text: str) -> Limit:
    percentile, rest = 50, text
    if match := re.fullmatch(r"\s*p(\d+)\s*:(.*)", text):
        percentile, rest = int(match[1]), match[2]
        if percentile not in PERCENTILES:
            raise UserError(f"--max-latency '{text}': percentiles p50, p90, p95 and p99 are measured")
    ratio = _relative(rest, "--max-latency")
    if ratio is not None:
        return Limit("latency", ratio, relative=True, percentile=percentile, text=text)
    return Limit(
        "latency",
        parse_unit(rest, MILLISECONDS, "--max-latency", "60ms, p95:60ms or 0.6x"),
        percentile=percentile,
        text=text,
    )


def _drop_points(text: str) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*pt\s*", text)
    if match is None:
        raise UserError(f"--max-drop '{text}' cannot be read: write points of the metric, for example 1pt")
    return float(match[1])


def _share(text: str) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*", text)
    value = None if match is None else float(match[1]) / (100 if match[2] else 1)
    if value is None or not 0 < value <= 1:
        raise UserError(f"--min-accuracy '{text}' cannot be read: write 90% or 0.9")
    return value


def _refuse_contradictions(budget: Budget) -> None:
    by_name = {limit.quantity: limit for limit in budget.limits}
    size, download = by_name.get("size"), by_name.get("download")
    if size and download and size.relative == download.relative and download.value > size.value:
        raise UserError(
            f"--max-download {download.text} and --max-size {size.text} contradict each other: a file never grows"
            " when it is compressed, so the download limit must not be above the size limit"
        )
