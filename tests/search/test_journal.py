"""The journal survives a kill at any byte, and says the same whatever the order of its lines."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketfit.core.errors import UserError
from pocketfit.core.measurement import Measurement
from pocketfit.core.trial import Trial
from pocketfit.search import journal

from . import made

LIMITS = made.budget(max_size="0.4x", max_drop="1pt", max_time="10min", max_trials=9)
TRIALS = [made.baseline(), made.trial(1, precision="int8"), made.failed(2), made.trial(3, precision="float16")]
AGAIN, BESIDE = Measurement("latency_ratio", "x", 0.44), Measurement("latency_ratio", "x", 0.5)
LINES: list[journal.Line] = [
    made.start(LIMITS),
    *map(made.line, TRIALS),
    {"kind": "pace", "steps_per_s": 3.0, "verdict_s": 40.0},
    *({"kind": "time", "seconds": seconds} for seconds in (0.1, 0.7, 12.345, 1e-3, 400.1)),
    {"kind": "reading", "trial": 1, "reading": 1},
    {"kind": "reading", "trial": 1, "reading": 2},
    {"kind": "layers", "trial": 1, "reading": 1, "rows": [{"name": "a"}], "not_possible": []},
    {"kind": "layers", "trial": 1, "reading": 2, "rows": [{"name": "b"}], "not_possible": []},
    {"kind": "timing", "trial": 1, "measurements": {"latency_ratio": AGAIN.to_json()}},
    {"kind": "timing", "trial": 1, "because": "disturbed", "measurements": {"latency_ratio": BESIDE.to_json()}},
    made.verdict(TRIALS[1], reading=2),
    {"kind": "what a later version writes", "x": 1},
]


def timed_again(trial: Trial) -> Trial:
    return replace(trial, measurements={**trial.measurements, "latency_ratio": AGAIN})


def test_lines_come_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert journal.read_lines(path) == []
    for line in LINES:
        journal.append(path, line)
    assert journal.read_lines(path) == LINES
    record = journal.read(path)
    assert record.trials == (TRIALS[0], timed_again(TRIALS[1]), *TRIALS[2:]), "what was measured with care counts"
    assert record.measured_again == record.calmer == {1}
    assert record.start == LINES[0] and record.budget == LIMITS
    assert record.readings == 2 and record.verdict is not None and record.verdict["reading"] == 2
    assert record.seconds == pytest.approx(413.246)
    assert record.pace == LINES[5]
    assert record.trial(3).plan.export.precision == "float16"


def test_each_line_is_on_the_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "journal.jsonl", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(path.read_bytes().count(b"\n")))
    journal.append(path, LINES[0])
    journal.append(path, LINES[1])
    assert synced == [1, 2]


def test_a_kill_at_any_byte_of_the_last_line_loses_that_line_only(tmp_path: Path) -> None:
    path, whole = tmp_path / "journal.jsonl", tmp_path / "whole.jsonl"
    for line in LINES[:2]:
        journal.append(whole, line)
    kept = whole.stat().st_size
    journal.append(whole, LINES[6])
    content = whole.read_bytes()
    for cut in range(kept, len(content)):
        path.write_bytes(content[:cut])
        assert journal.read_lines(path) == LINES[:2]
        journal.append(path, LINES[7])
        assert journal.read_lines(path) == [*LINES[:2], LINES[7]]


def test_nothing_that_json_cannot_hold_is_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal.append(path, LINES[0])
    with pytest.raises(ValueError, match="JSON"):
        journal.append(path, {"kind": "time", "seconds": float("nan")})
    assert journal.read_lines(path) == LINES[:1]


@pytest.mark.parametrize("line", [b"{torn", b"5", b'"text"', b"[]", b"\xff\xfe"])
def test_an_edited_journal_is_refused_with_its_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"kind":"time","seconds":1}\n' + line + b"\n")
    with pytest.raises(UserError, match=r"Line 2 of .*journal\.jsonl"):
        journal.read_lines(path)


@pytest.mark.parametrize("change", [{"plan": None}, {"measurements": 3}, {"artifact": {"path": "x"}}])
def test_a_trial_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "journal.jsonl"
    journal.append(path, {**LINES[2], **change})
    with pytest.raises(UserError, match="journal"):
        journal.read(path)


@pytest.mark.parametrize("change", [{"measurements": 3}, {"measurements": {"latency_ms": {"n": 1}}}])
def test_a_timing_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "journal.jsonl"
    timing = next(line for line in LINES if line["kind"] == "timing")
    for line in (LINES[2], {**timing, **change}):
        journal.append(path, line)
    with pytest.raises(UserError, match="timing of trial 1 cannot be read"):
        journal.read(path)


@given(st.permutations(LINES))
def test_the_order_of_lines_does_not_matter(lines: list[journal.Line]) -> None:
    assert journal.digest(lines) == journal.digest(LINES)
