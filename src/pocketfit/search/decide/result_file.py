"""What stands in result.json, as types: result.schema.json says the same to other programs, and a test keeps it so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pocketfit.core.budget import Budget
from pocketfit.core.errors import UserError
from pocketfit.core.measurement import Measurement
from pocketfit.core.plan.export import RuntimeName
from pocketfit.core.plan.plan import Plan
from pocketfit.core.quantities import KnownQuantity
from pocketfit.core.support.json_file import load
from pocketfit.core.support.rules import Between, Count, Positive, RelativePath, Sha256, Size
from pocketfit.core.support.schema import check_rules, checked

Number = Annotated[float, Between(-1e15, 1e15)]


@dataclass(frozen=True)
class File:
    """The file of a plan; `path` is relative to the output folder."""

    path: RelativePath
    sha256: Sha256
    bytes: Positive
    download_bytes: Positive
    runtime: RuntimeName = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Side:
    """The baseline, or what was chosen."""

    runtime: RuntimeName
    plan: Plan
    code: str
    trial: Count
    artifact: File
    measurements: Mapping[str, Measurement]


@dataclass(frozen=True)
class LatencyRatio:
    value: Number | None
    low: Number | None
    high: Number | None
    disturbed: Annotated[tuple[str, ...], Size(1, 1000)] = ()


@dataclass(frozen=True)
class Drop:
    metric: str
    points: Number | None
    low: Number | None
    high: Number | None
    n: Count
    split: Literal["verdict", "search"]


@dataclass(frozen=True)
class Moved:
    points: Number | None
    low: Number | None
    high: Number | None


@dataclass(frozen=True)
class Control:
    """As much training without pruning: what it gains, and what the chosen file loses against it."""

    trial: Count
    steps: Positive
    gain: Moved
    loss: Moved


@dataclass(frozen=True)
class Comparison:
    size_ratio: Number | None
    download_ratio: Number | None
    latency_ratio: LatencyRatio | None
    memory_ratio: Number | None
    drop: Drop | None
    control: Control | None = None


@dataclass(frozen=True, kw_only=True)
class LimitCheck:
    quantity: Annotated[str, KnownQuantity()]
    text: str
    limit: float
    value: Number | None
    unit: str
    met: bool
    certified: bool
    worst: Number | None = None
    reason: str = ""


@dataclass(frozen=True)
class Shortfall:
    binding: tuple[Annotated[str, KnownQuantity()], ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ResultFile:
    """The whole of result.json; search/decide/result.py says what the parts mean."""

    schema_version: Literal[1]
    status: Literal["met", "infeasible", "stopped"]
    certified: bool
    budget: Budget
    baseline: Side | None
    chosen: Side | None
    comparison: Comparison | None
    trials: Count
    explanation: tuple[str, ...]
    limits: tuple[LimitCheck, ...] = ()
    shortfall: Shortfall | None = None

    def __post_init__(self) -> None:
        check_rules(self)
        if self.certified and self.status != "met":
            raise UserError(f"it says 'certified', and its status is '{self.status}'")
        if self.status == "met" and None in (self.baseline, self.chosen, self.comparison):
            raise UserError("its status is 'met', and a baseline, a chosen plan or their comparison is missing")
        if self.status == "met" and self.shortfall is not None:
            raise UserError("its status is 'met', and it has a shortfall")


def read_result(path: Path) -> dict[str, Any]:
    """result.json as it stands in the file. Raises UserError, naming the place, where it is not what it should be."""
    mend = "the same `pocketfit fit` command writes it again"
    data: dict[str, Any] = load(path, "result", mend)
    checked(ResultFile, data, str(path), mend)
    return data
