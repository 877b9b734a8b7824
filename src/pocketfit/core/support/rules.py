"""Rules for values beyond their type, to stand in Annotated; and types with rules that many files share."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Protocol, runtime_checkable

LARGEST_INT = 2**63  # other programs read integers up to this one without loss
SHOWN = 60  # characters of a wrong value


def shown(value: Any) -> str:
    """A value in a sentence: JSON, in ASCII and not too long.

    >>> shown("caf\\u00e9"), shown(None), shown([0] * 99)[-6:]
    ('"caf\\\\u00e9"', 'null', '0, 0 …')
    """
    if isinstance(value, list | tuple):
        value = value[:SHOWN]
    elif isinstance(value, Mapping):
        return "an object"
    elif isinstance(value, str):
        value = value[: SHOWN * 2]
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST_INT:
        return "an integer of more than 64 bits"
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):  # a Python object that is no JSON, or nested too deep
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else text[:SHOWN].rstrip(", ") + " …"


@dataclass(frozen=True)
class Between:
    """A finite number from `low` to `high`; `above`: more than `low`, `below`: less than `high`.

    >>> Between(0, 1, below=True).problem(1.0)
    'give a number from 0 up to, but not including, 1'
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def problem(self, value: Any) -> str:
        inside = (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )
        if inside and math.isfinite(value):
            return ""
        low = f"above {_figure(self.low)}" if self.above else f"from {_figure(self.low)}"
        if self.high >= LARGEST_INT:
            return f"give a number {low}"
        return f"give a number {low} {'up to, but not including,' if self.below else 'up to'} {_figure(self.high)}"


def _figure(value: float) -> str:
    return f"{round(value):,}" if value == round(value) and abs(value) < 1e15 else f"{value:g}"


@dataclass(frozen=True, eq=False)  # a table has no hash
class OneOf:
    """One of these values; for types where a Literal would be too strict for callers, or where the table may grow."""

    values: Collection[Any]

    def problem(self, value: Any) -> str:
        return "" if value in self.values else f"give one of {', '.join(map(shown, self.values))}"


@dataclass(frozen=True)
class Text:
    """A text that matches a pattern as a whole; `what` describes a right one in words."""

    pattern: str
    what: str

    def problem(self, value: Any) -> str:
        return "" if re.fullmatch(self.pattern, value, re.DOTALL) else f"give {self.what}"


@dataclass(frozen=True)
class Size:
    """The number of entries of a list or object; `unique`: no entry occurs twice."""

    least: int = 0
    most: int = 10**6
    unique: bool = False

    def problem(self, value: Any) -> str:
        if len(value) < self.least:
            return f"give at least {self.least}"
        if len(value) > self.most:
            return f"give at most {self.most}"
        if self.unique and len(set(value)) != len(value):
            twice = next(one for number, one in enumerate(value) if one in value[:number])
            return f"{shown(twice)} stands in it twice"
        return ""


@dataclass(frozen=True)
class InFolder:
    """The relative path of a file, written with "/", that does not lead out of its folder."""

    depth: int = 8

    def problem(self, value: Any) -> str:
        parts = value.split("/")
        sound = all(part not in ("", ".", "..") and len(part) < 256 for part in parts) and len(parts) <= self.depth
        if sound and not re.search(r"[\\:\x00]", value) and not PurePosixPath(value).is_absolute():
            return ""
        return "give the name of a file below its own folder"


@dataclass(frozen=True)
class Like:
    """An object that also fits this TypedDict, for fields whose type is any Mapping."""

    kind: Any


@runtime_checkable
class Rule(Protocol):
    """A rule beside a type in Annotated."""

    def problem(self, value: Any) -> str:
        """What to give in place of this value, "" where it is right."""
        ...


Count = Annotated[int, Between(0, LARGEST_INT)]
Positive = Annotated[int, Between(1, LARGEST_INT)]
Seed = Annotated[int, Between(0, LARGEST_INT, below=True)]
Share = Annotated[float, Between(0, 1)]
Seconds = Annotated[float, Between(0, 1e10)]
Sha256 = Annotated[str, Text("[0-9a-f]{64}", "64 hexadecimal digits")]
FileName = Annotated[str, InFolder(1)]
RelativePath = Annotated[str, InFolder()]
