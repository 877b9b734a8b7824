"""One row of the comparison: a file, and what was measured of it against the float32 file of its own runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quantization.file_runners import Places
from pocketfit.core.artifact import Artifact
from pocketfit.core.errors import PocketfitError
from pocketfit.core.measurement import Measurement
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.samples import Samples
from pocketfit.measurement import latency as cost
from pocketfit.numerics.latency_intervals import Drop, paired_drop
from pocketfit.numerics.sqnr import agreement, sqnr_db

Score = Callable[[NDArray[np.float32]], NDArray[np.float64]]  # outputs [n, classes] -> scores, one an independent unit


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file that takes part. `plan`: of pocketfit's own files, and of the float32 files (stage "baseline").

    recipe  what the tool was told, as JSON      seconds  what making the file took, None where that was not timed
    """

    name: str
    tool: str
    runtime: str
    path: Path
    plan: Plan | None = None
    baseline: bool = False
    recipe: str = ""
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured; `error` is set where the file could not be made or does not run."""

    entry: Entry
    artifact: Artifact | None = None
    accuracy: float | None = None
    drop: Drop | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    latency: Mapping[str, Measurement] = field(default_factory=dict)
    size_ratio: float | None = None
    error: str = ""
    chosen: bool = False

    def to_json(self) -> dict[str, Any]:
        """Numbers by name; the float file's distance to itself is null."""
        made = self.artifact
        return {
            "name": self.entry.name,
            "tool": self.entry.tool,
            "runtime": self.entry.runtime,
            "plan": self.entry.plan.to_json() if self.entry.plan else None,
            "baseline": self.entry.baseline,
            "recipe": json.loads(self.entry.recipe) if self.entry.recipe else None,
            "seconds_to_make": self.entry.seconds,
            "chosen_by_pocketfit": self.chosen,
            "bytes": made.bytes if made else None,
            "download_bytes": made.download_bytes if made else None,
            "size_ratio": self.size_ratio,
            "accuracy": self.accuracy,
            "drop_points": self.drop.points if self.drop else None,
            "drop_interval": [self.drop.low, self.drop.high] if self.drop else None,
            "drop_n": self.drop.n if self.drop else None,
            "agreement": self.agreement,
            "sqnr_db": self.sqnr_db if self.sqnr_db is None or np.isfinite(self.sqnr_db) else None,
            "latency": {name: _short(found) for name, found in self.latency.items()},
            "error": self.error,
        }


def _short(found: Measurement) -> dict[str, Any]:
    return {"value": found.value, "low": found.low, "high": found.high, "unit": found.unit, "n": found.n}


def measure(
    entries: Sequence[Entry | Row],
    samples: Samples,
    score: Score,
    effort: cost.Effort | None,
    say: Callable[[str], None],
    places: Places | None = None,
) -> list[Row]:
    """Rows of these files, in their order; all files of one runtime are timed in one interleaved run.

    entries  a Row stands for a file that could not be made. The first file of each runtime is its float32 baseline.
    effort   of timing; None: no file is timed
    """
    places = places or Places()
    outputs: dict[Entry, NDArray[np.float32]] = {}
    failed: dict[Entry, str] = {}
    for made in [e for e in entries if isinstance(e, Entry)]:
        say(f"scoring {made.name} in {made.runtime} on {len(samples)} pictures")
        try:
            outputs[made] = places.outputs(made.runtime, made.path, samples)
        except PocketfitError as error:
            failed[made] = sentence(error)
    latencies: dict[Entry, dict[str, Measurement]] = {}
    if effort is not None:
        for runtime in dict.fromkeys(entry.runtime for entry in outputs):
            latencies |= _timed(runtime, outputs, effort, say, places)
    rows: list[Row] = []
    for entry in entries:
        if isinstance(entry, Row):
            rows.append(entry)
        elif entry in failed:
            rows.append(Row(entry=entry, error=failed[entry]))
        else:
            base = next(e for e in outputs if e.runtime == entry.runtime and e.baseline)
            rows.append(_row(entry, base, outputs, score, latencies.get(entry, {}), places))
    return rows


def _timed(
    runtime: str, outputs: Mapping[Entry, Any], effort: cost.Effort, say: Callable[[str], None], places: Places
) -> dict[Entry, dict[str, Measurement]]:
    base, *others = (entry for entry in outputs if entry.runtime == runtime)
    say(f"timing {1 + len(others)} files in {runtime}, interleaved")
    own, found = places.times(runtime, base.path, [entry.path for entry in others], effort)
    return {base: {"latency_ms": own}, **dict(zip(others, found, strict=True))}


def _row(
    entry: Entry,
    base: Entry,
    outputs: Mapping[Entry, NDArray[np.float32]],
    score: Score,
    latency: Mapping[str, Measurement],
    places: Places,
) -> Row:
    ours, theirs = outputs[entry], outputs[base]
    nothing = Plan((), ExportSettings(entry.runtime))
    made = places.artifact(entry.runtime, entry.path, entry.plan or nothing)
    same = entry == base
    return Row(
        entry=entry,
        artifact=made,
        accuracy=float(np.mean(score(ours))),
        drop=None if same else paired_drop(score(theirs), score(ours)),
        agreement=None if same else agreement(theirs, ours),
        sqnr_db=None if same else sqnr_db(theirs, ours),
        latency=latency,
        size_ratio=made.bytes / places.artifact(entry.runtime, base.path, nothing).bytes,
    )


def sentence(error: PocketfitError) -> str:
    """The error's first line, with the last line of a child's log where there is one."""
    tail = getattr(error, "log_tail", "").strip().splitlines()[-1:]
    return " | ".join([str(error).splitlines()[0], *tail])


HEADINGS = (
    *("file", "made by", "MB", "x float", "zipped MB", "top-1 %", "drop, points [95 %]", "agree %", "SQNR dB"),
    "latency x float [95 %]",
)


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table with aligned columns; the file that pocketfit hands over is in bold."""
    lines = [list(HEADINGS), *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    lines.insert(1, ["-" * width for width in widths])
    drawn = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    failed = [f"{row.entry.runtime}: {row.entry.name} ({row.entry.tool}): {row.error}" for row in rows if row.error]
    return "\n".join([*("| " + " | ".join(line) + " |" for line in drawn), *(["", *failed] if failed else [])])


def _cells(row: Row) -> list[str]:
    name = f"{row.entry.runtime}: {row.entry.name}"
    name = f"**{name}**" if row.chosen else name
    if row.artifact is None or row.accuracy is None:
        return [name, row.entry.tool, "failed", *[""] * (len(HEADINGS) - 3)]
    drop = row.drop
    return [
        name,
        row.entry.tool,
        f"{row.artifact.bytes / 1e6:.2f}",
        f"{row.size_ratio:.3f}",
        f"{row.artifact.download_bytes / 1e6:.2f}",
        f"{100 * row.accuracy:.2f}",
        "" if drop is None else f"{drop.points:+.2f} [{drop.low:+.2f}, {drop.high:+.2f}]",
        "" if row.agreement is None else f"{100 * row.agreement:.1f}",
        "" if row.sqnr_db is None else f"{row.sqnr_db:.1f}",
        _time(row.latency),
    ]


def _time(latency: Mapping[str, Measurement]) -> str:
    if ratio := latency.get("latency_ratio"):
        return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    return f"1 ({latency['latency_ms'].value:.2f} ms)" if latency else ""


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All rows; a value that JSON has no word for raises ValueError."""
    return json.loads(json.dumps([row.to_json() for row in rows], allow_nan=False))  # type: ignore[no-any-return]
