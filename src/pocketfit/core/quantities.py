"""The quantities that can be limited, one row each. Options, budgets, checks, words and pages all read this table.

A further limit is a row here, the function that measures it, and a line in search/run/file_quantities.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BYTES: Mapping[str, float] = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
MILLISECONDS: Mapping[str, float] = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
PERCENTILES = (50, 90, 95, 99)  # every latency is measured at these


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A quantity that can be limited.

    name         its name in options and files: "size" is --max-size
    title        its name in tables and pages
    measurement  its name among a trial's measurements
    unit         unit of the measurement: "B", "ms", "pt" (percentage points), "share" (from 0 to 1), or any other
    units        the user's units -> how many of `unit` one of them is
    example      what a user may write
    meaning      the option's text in --help
    floor        whether the limit is a minimum; else it is a maximum
    of_answers   whether it is computed from the network's predictions, so that it needs labelled samples
    exact        whether it has no noise, so that its value is its own bound
    ratio        the measurement for a relative limit as "0.6x", where the ratio is measured side by side with the
                 baseline; "": the two values are divided
    relative     whether it may be limited as "0.6x"
    percentiles  the percentiles that may be limited, as "p95:60ms"; (): there is one value
    zero         whether a limit of zero can be met
    highest      the highest limit that is allowed, None: any
    """

    name: str
    title: str
    measurement: str
    unit: str
    units: Mapping[str, float]
    example: str
    meaning: str
    floor: bool = False
    of_answers: bool = False
    exact: bool = False
    ratio: str = ""
    relative: bool = True
    percentiles: tuple[int, ...] = ()
    zero: bool = False
    highest: float | None = None

    @property
    def keyword(self) -> str:
        """The name of its argument in Budget.parse: "max_size"."""
        return f"{'min' if self.floor else 'max'}_{self.name}"

    @property
    def option(self) -> str:
        """Its option on the command line: "--max-size"."""
        return "--" + self.keyword.replace("_", "-")

    @property
    def metavar(self) -> str:
        """The placeholder for its value in --help."""
        return {"B": "SIZE", "ms": "TIME", "pt": "POINTS", "share": "SHARE"}.get(self.unit, self.name.upper())

    @property
    def words(self) -> str:
        """Its name in a sentence: "model size"."""
        return self.title[0].lower() + self.title[1:]

    def measured_as(self, *, percentile: int = 50, relative: bool = False) -> str:
        """The measurement that a limit is about.

        >>> QUANTITIES["latency"].measured_as(percentile=95, relative=True), QUANTITIES["size"].measured_as()
        ('latency_p95_ratio', 'size_bytes')
        """
        name = self.ratio if relative and self.ratio else self.measurement
        return name if percentile == 50 else name.replace(f"{self.name}_", f"{self.name}_p{percentile}_", 1)

    def inside(self, value: float, limit: float) -> bool:
        """Whether a value keeps a limit."""
        return value >= limit if self.floor else value <= limit

    def excess(self, value: float, limit: float) -> float:
        """How far a value is beyond a limit: in points for accuracy and drop, else as a share of the limit; 0 where it
        keeps the limit."""
        if self.of_answers:
            points = 100 if self.unit == "share" else 1
            return max(0.0, points * (limit - value if self.floor else value - limit))
        return max(0.0, value / limit - 1) if limit else float(value > 0)


_ROWS = (
    Quantity(
        name="size",
        title="Model size",
        measurement="size_bytes",
        unit="B",
        units=BYTES,
        example="3MB or 0.3x",
        meaning="Model size, bytes on disk: 3MB (10^6), 3MiB (2^20), or 0.3x of float32.",
        exact=True,
    ),
    Quantity(
        name="download",
        title="Download size",
        measurement="download_bytes",
        unit="B",
        units=BYTES,
        example="3MB or 0.3x",
        meaning="Bytes after deflate, as app stores ship it: 2MB or 0.3x.",
        exact=True,
    ),
    Quantity(
        name="memory",
        title="Peak memory",
        measurement="memory_bytes",
        unit="B",
        units=BYTES,
        example="3MB or 0.3x",
        meaning="Peak resident memory: 40MB or 0.8x.",
    ),
    Quantity(
        name="ram",
        title="RAM",
        measurement="ram_bytes",
        unit="B",
        units=BYTES,
        example="64KiB or 0.5x",
        meaning="Memory that a file plans for its tensors, on microcontrollers: 64KiB or 0.5x.",
        exact=True,
    ),
    Quantity(
        name="flash",
        title="Flash",
        measurement="flash_bytes",
        unit="B",
        units=BYTES,
        example="256KiB or 0.3x",
        meaning="Bytes of the network in flash, on microcontrollers: 256KiB or 0.3x.",
        exact=True,
    ),
    Quantity(
        name="latency",
        title="Latency",
        measurement="latency_ms",
        unit="ms",
        units=MILLISECONDS,
        example="60ms, p95:60ms or 0.6x",
        meaning="60ms, p95:60ms, or 0.6x of float32 in the same runtime.",
        ratio="latency_ratio",
        percentiles=PERCENTILES,
    ),
    Quantity(
        name="drop",
        title="Drop",
        measurement="drop_points",
        unit="pt",
        units={"pt": 1.0},
        example="1pt",
        meaning="Points of the metric that may be lost: 1pt.",
        of_answers=True,
        relative=False,
        zero=True,
    ),
    Quantity(
        name="accuracy",
        title="Accuracy",
        measurement="accuracy",
        unit="share",
        units={"%": 0.01, "": 1.0},
        example="90% or 0.9",
        meaning="At least this accuracy: 90% or 0.9.",
        floor=True,
        of_answers=True,
        relative=False,
        highest=1.0,
    ),
)
QUANTITIES: dict[str, Quantity] = {row.name: row for row in _ROWS}


@dataclass(frozen=True)
class KnownQuantity:
    """The rule (core/support/rules.py) of a field that names a quantity."""

    def problem(self, value: Any) -> str:
        return "" if value in QUANTITIES else f"give one of {', '.join(QUANTITIES)}"
