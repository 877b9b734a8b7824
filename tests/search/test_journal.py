"""The journal survives a kill at any byte, and says the same whatever the order of its lines."""

from __future__ import annotations

import json
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
from tests.search import builders

LIMITS = builders.budget(max_size="0.4x", max_drop="1pt", max_time="10min", max_trials=9)
TRIALS = [
    builders.baseline(),
    builders.trial(1, precision="int8"),
    builders.failed(2),
    builders.trial(3, precision="float16"),
]
AGAIN, BESIDE = (
    Measurement(quantity="latency_ratio", unit="x", value=0.44),
    Measurement(quantity="latency_ratio", unit="x", value=0.5),
)
LINES: list[journal.Line] = [
    builders.start(LIMITS),
    *map(builders.line, TRIALS),
    {"kind": "pace", "short_steps": 30, "long_steps": 150, "steps_per_s": 3.0, "verdict_s": 40.0},
    *({"kind": "time", "seconds": seconds} for seconds in (0.1, 0.7, 12.345, 1e-3, 400.1)),
    {"kind": "reading", "trial": 1, "reading": 1},
    {"kind": "reading", "trial": 1, "reading": 2},
    {"kind": "layers", "trial": 1, "reading": 1, "rows": [{"name": "a"}], "not_possible": []},
    {"kind": "layers", "trial": 1, "reading": 2, "rows": [{"name": "b"}], "not_possible": []},
    {"kind": "timing", "trial": 1, "measurements": {"latency_ratio": AGAIN.to_json()}},
    {"kind": "timing", "trial": 1, "because": "disturbed", "measurements": {"latency_ratio": BESIDE.to_json()}},
    builders.verdict(TRIALS[1], reading=2),
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


def deep(levels: int) -> bytes:
    return b'{"kind":"later","x":' + b"[" * levels + b"]" * levels + b"}"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (deep(100_000), "is nested too deep"),
        (deep(60), "is nested too deep"),
        ({"kind": "time"}, "'seconds' is missing"),
        ({"kind": "time", "seconds": -1}, "'seconds' is -1: give a number from 0"),
        (b'{"kind":"time","seconds":1e400}', "'seconds' is not finite"),
        (b'{"kind":"time","seconds":NaN}', "is no JSON: NaN is no number"),
        (b'{"kind":"time","seconds":1,"seconds":2}', 'the key "seconds" stands twice'),
        ({"kind": ["time"]}, "'kind' is missing"),
        ({"kind": "pace", "short_steps": 0, "long_steps": 5}, "'short_steps' is 0"),
        ({"kind": "reading", "trial": "1"}, "'trial' is \"1\": give a whole number"),
        ({**LINES[0], "budget": {"limits": []}}, "'budget.max_time_s' is missing"),
        ({**LINES[0], "inputs": {"metric": 3, "model": "x"}}, "'inputs.metric' is 3: give a text"),
        ({**builders.verdict(TRIALS[1]), "measurements": {"x": {}}}, "'measurements.x.quantity' is missing"),
        ({**builders.verdict(TRIALS[1]), "reading": 0}, "'reading' is 0"),
        ({"kind": "allocation", "by": "macs", "criterion": "l2", "keep": [[1.5, []]]}, r"'keep\[0\]\[0\]' is 1.5"),
        (
            {"kind": "sensitivity", "runtime": "../../x", "plan": "", "rows": []},
            "'runtime' is \"../../x\": give one of",
        ),
        ({"kind": "timing", "trial": 1}, "'measurements' is missing"),
        ({**LINES[2], "stage": "midnight"}, "'stage' is \"midnight\": give one of"),
        ({**LINES[2], "status": "failed"}, "'status' is \"failed\", and there is a file"),
        ({**LINES[2], "number": -1}, "'number' is -1"),
    ],
)
def test_a_line_that_nobody_wrote_so_is_refused_with_its_place(tmp_path: Path, line: Any, sentence: str) -> None:
    path = tmp_path / "journal.jsonl"
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    path.write_bytes(b'{"kind":"later","x":{"y":[1]}}\n' + raw + b"\n")
    with pytest.raises(UserError, match=rf"^Line 2 of .*journal\.jsonl .*{sentence}.*restore it or use another"):
        journal.read(path)


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (("artifact", "bytes"), -5, "'artifact.bytes' is -5: give a number from 1"),
        (("artifact", "path"), "../../x", "'artifact.path' is \"../../x\": give the name of a file below"),
        (("artifact", "path"), "/etc/passwd", "'artifact.path' is"),
        (("artifact", "runtime"), "onnxruntime", "'artifact.runtime' is \"onnxruntime\", and the plan is for litert"),
        (("plan", "export", "runtime"), "../../x", "'plan.export.runtime' is"),
        (("measurements", "size_bytes", "value"), -5, "'measurements.size_bytes.value' is -5: no size_bytes in B is"),
        (("measurements", "size_bytes", "quantity"), "x", "'measurements.size_bytes.quantity' is \"x\""),
        (("measurements", "latency_ms", "value"), 0, "'measurements.latency_ms.value' is 0"),
        (("measurements", "latency_ms", "low"), 1e9, "above 'high'"),
        (("measurements", "latency_ms", "value"), None, "'measurements.latency_ms.value' is null, and 'how' is"),
        (("measurements", "drop_points", "one_sided"), "x", 'one_sided\' is "x"'),
    ],
)
def test_a_trial_is_held_against_what_can_be(tmp_path: Path, place: tuple[str, ...], value: Any, sentence: str) -> None:
    path, line = tmp_path / "journal.jsonl", json.loads(json.dumps(LINES[2]))
    inner = line
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=f"^Line 1 of .*{sentence}"):
        journal.read(path)


def test_a_journal_is_about_one_run(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal.append(path, LINES[0])
    journal.append(path, builders.start(builders.budget(max_size="1MB")))
    with pytest.raises(UserError, match="says twice what its run is about"):
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
    with pytest.raises(UserError, match=r"^Line 2 of .*measurements"):
        journal.read(path)


@given(st.permutations(LINES))
def test_the_order_of_lines_does_not_matter(lines: list[journal.Line]) -> None:
    assert journal.digest(lines) == journal.digest(LINES)
