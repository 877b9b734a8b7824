"""The journal: one JSON object a line, fsynced. Everything that is decided or shown is a function of its lines.

kinds  "start"    what this run is about: inputs, budget, environment, findings (once)
       "trial"    a Trial
       "pace"     how many steps the plans train, at which rate and why, and how fast training goes here if a time limit
                  asked for it (once)
       "sensitivity"  which layers cost how much when quantized, and why (once a runtime and its weights' bits)
       "allocation"  how many channels each group keeps at each ratio of pruning (once)
       "timing"   the latency of a trial, measured again with more care, or (because: "disturbed") as other work ran
                  beside it; it takes the place of the trial's own
       "time"     seconds that one working session has used (they add up over resumes)
       "layers"   the per-layer table of the chosen trial
       "reading"  the verdict split is about to be read for a trial
       "verdict"  what that reading gave
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pocketfit.core.budget import Budget
from pocketfit.core.errors import UserError
from pocketfit.core.measurement import Measurement
from pocketfit.core.support.json_file import parse, read_bytes
from pocketfit.core.support.schema import reading
from pocketfit.core.trial import Trial
from pocketfit.search.journal_lines import check_line

Line = dict[str, Any]
MOST_BYTES = 2**30
CHANGED = "the journal has been changed: restore it or use another output folder"


@dataclass(frozen=True, kw_only=True)
class Record:
    """The journal's lines, sorted into what they say; the order of the lines does not matter."""

    start: Line | None
    trials: tuple[Trial, ...]
    seconds: float
    readings: int
    verdict: Line | None
    layers: Line | None
    pace: Line | None = None
    sensitivity: Mapping[tuple[str, bool], Line] = field(default_factory=dict)  # by runtime and "4-bit weights"
    allocation: Line | None = None
    measured_again: frozenset[int] = frozenset()  # numbers of trials whose latency was measured again, with care
    calmer: frozenset[int] = frozenset()  # numbers of trials measured again because other work ran beside them

    @property
    def budget(self) -> Budget:
        return Budget.from_json(self.start["budget"]) if self.start else Budget()

    def trial(self, number: int) -> Trial:
        return next(trial for trial in self.trials if trial.number == number)


def append(path: Path, line: Line) -> None:
    """Add one line and force it to the disk. A torn line that a kill left at the end is cut off first."""
    with path.open("ab+") as file:
        _cut_torn_line(file)
        file.write(json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[Line]:
    """All whole lines; a torn last line (the trial in flight at a kill) is left out.

    Raises UserError, naming the line and the place in it, where a line is not as `append` wrote it: somebody edited the
    file (search/journal_lines.py says what may stand in a line).
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[list[Line], list[Trial]]:
    """The lines, and the trials among them in their order."""
    if not path.is_file():
        return [], []
    lines: list[Line] = []
    trials: list[Trial] = []
    for number, raw in enumerate(read_bytes(path, "journal", MOST_BYTES).split(b"\n")[:-1], 1):
        source = f"Line {number} of {path}"
        line = parse(raw, source, CHANGED)
        with reading(source, CHANGED):
            trial = check_line(line)
        lines.append(line)
        trials += [] if trial is None else [trial]
    if sum(line["kind"] == "start" for line in lines) > 1:
        raise UserError(f"{path} says twice what its run is about; {CHANGED}")
    if len({trial.number for trial in trials}) != len(trials):
        raise UserError(f"{path} has two trials of the same number; {CHANGED}")
    return lines, trials


def digest(lines: Iterable[Line], trials_read: Iterable[Trial] = ()) -> Record:
    """Lines in any order -> Record with the trials by number.

    trials_read  the trials among the lines, in their order, where they have been parsed already
    """
    read_before = iter(trials_read)
    start, verdict, layers, pace, allocation = None, None, None, None, None
    trials: dict[int, Trial] = {}
    sensitivity: dict[tuple[str, bool], Line] = {}
    again: dict[int, Line] = {}
    calmer: dict[int, Line] = {}
    seconds: list[float] = []
    readings = 0
    for line in lines:
        match line.get("kind"):
            case "start":
                start = line
            case "trial":
                trial = next(read_before, None) or _trial(line)
                trials[trial.number] = trial
            case "time":
                seconds.append(line["seconds"])
            case "reading":
                readings += 1
            case "verdict":
                verdict = line if verdict is None or line["reading"] < verdict["reading"] else verdict
            case "layers":
                layers = line if layers is None or line.get("reading", 0) > layers.get("reading", 0) else layers
            case "pace":
                pace = line
            case "allocation":
                allocation = line
            case "timing":
                (calmer if line.get("because") == "disturbed" else again)[line["trial"]] = line
            case "sensitivity":
                sensitivity[line["runtime"], line.get("weights") == "int4"] = line
    total_s = math.fsum(seconds)  # exact, so that the order of the lines does not show in the last digit
    ordered = tuple(_timed(_timed(trials[n], calmer.get(n)), again.get(n)) for n in sorted(trials))
    return Record(
        start=start,
        trials=ordered,
        seconds=total_s,
        readings=readings,
        verdict=verdict,
        layers=layers,
        pace=pace,
        sensitivity=sensitivity,
        allocation=allocation,
        measured_again=frozenset(again.keys() & trials.keys()),
        calmer=frozenset(calmer.keys() & trials.keys()),
    )


def read(path: Path) -> Record:
    """The record of the journal at `path`."""
    return digest(*_read(path))


def _timed(trial: Trial, again: Line | None) -> Trial:
    """The trial with the latency that was measured again."""
    if again is None:
        return trial
    try:
        read = {name: Measurement.from_json(m) for name, m in again["measurements"].items()}
    except UserError as error:
        raise UserError(f"The journal's timing of trial {trial.number} can't be read: {error}; {CHANGED}") from error
    return replace(trial, measurements={**trial.measurements, **read})


def _trial(line: Line) -> Trial:
    try:
        return Trial.from_json(line)
    except UserError as error:
        raise UserError(f"The journal's trial {line.get('number')} can't be read: {error}; {CHANGED}") from error


def _cut_torn_line(file: Any) -> None:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    if whole != size:
        file.truncate(whole)
    file.seek(0, os.SEEK_END)
