"""The verdict split is read once: a run that is killed behind the reading takes the scores that it has kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Silent
from pocketfit.measurement.run_samples import Scores
from pocketfit.report.run.run_data import _classes
from pocketfit.search import journal
from pocketfit.search.run import file_quantities, loop
from pocketfit.search.run.clock import Clock
from pocketfit.search.run.job import Job
from pocketfit.search.run.verdict import layer_report, scores_once, verdict
from pocketfit.sources.data.dataset import from_arrays
from tests.search import builders
from tests.search.run.test_job import job


class Killed(BaseException):
    pass


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Job, Path, list[str]]:
    """A job whose search is over, its journal, and which files have been read on the verdict split."""
    a_job, path, read = job(tmp_path), tmp_path / "journal.jsonl", []
    a_job.cache.mkdir()
    for trial in (builders.baseline(), builders.trial(1, precision="int8")):
        journal.append(path, {"kind": "trial", **trial.to_json()})

    def score(_: Job, runtime: str, file: Path, samples: Samples, *words: Any) -> Scores:
        assert samples.split == "verdict"
        read.append(file.name)
        right = (np.arange(len(samples)) % 10 > ("fp32" not in file.name)).astype(np.float64)
        return Scores(values=right, answers=samples.labels.copy(), metric="accuracy", nan=0)

    monkeypatch.setattr(verdict, "scored", score)
    monkeypatch.setattr(verdict, "carried_out", lambda *_: a_job.model)
    monkeypatch.setattr(file_quantities.memory, "footprint", lambda *_, **__: {})
    ratio = builders.trial(1).measurements["latency_ratio"]
    monkeypatch.setattr(verdict, "timing", lambda *_: ({"latency_ratio": ratio}, {}))
    monkeypatch.setattr(layer_report, "layers_line", lambda *_: {"kind": "layers", "trial": 1, "rows": []})
    return a_job, path, read


def decide(a_job: Job, path: Path) -> None:
    loop._verdict(a_job, path, Clock(path, 0.0, None), Silent())


def test_a_kill_behind_the_reading_reads_nothing_twice(
    begun: tuple[Job, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    a_job, path, read = begun

    def kill(*words: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(verdict, "timing", kill)
        decide(a_job, path)
    assert len(read) == 2 and journal.read(path).verdict is None
    decide(a_job, path)
    record = journal.read(path)
    assert len(read) == 2 and record.readings == 1
    assert record.verdict is not None and record.verdict["reading"] == 1
    lost = 100 * (record.verdict["before"] - record.verdict["after"])
    assert lost > 0 and record.verdict["drop"]["points"] == pytest.approx(lost)


def test_a_reading_that_was_interrupted_is_done_again_and_counted(
    begun: tuple[Job, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    a_job, path, read = begun
    score = verdict.scored

    def kill(*words: Any) -> Any:
        if read:
            raise Killed
        return score(*words)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(verdict, "scored", kill)
        decide(a_job, path)
    decide(a_job, path)
    assert len(read) == len(set(read)) == 2, "what had been read of the one file was taken"
    assert journal.read(path).readings == 2


def test_scores_come_back_as_they_were_and_only_for_the_same_file(begun: tuple[Job, Path, list[str]]) -> None:
    a_job, _, _ = begun
    labels = np.arange(6) % 2
    scores = Scores(
        values=np.linspace(0, 1, 6),
        answers=labels,
        metric="balanced-accuracy",
        nan=3,
        strata=labels,
        by_class=labels / 7,
    )
    balanced = replace(a_job, metric="balanced-accuracy")
    scores_once.keep(balanced, builders.trial(1), scores)
    found = scores_once.kept(balanced, builders.trial(1))
    assert found is not None and (found.nan, found.metric) == (3, "balanced-accuracy")
    for name in ("values", "answers", "strata", "by_class"):
        assert np.array_equal(getattr(found, name), getattr(scores, name))
    assert scores_once.kept(a_job, builders.trial(1)) is None, "another metric"
    assert scores_once.kept(balanced, builders.trial(2, precision="int8")) is None, "another file"
    (path,) = a_job.cache.glob("verdict-*")
    path.write_bytes(path.read_bytes()[:50])
    assert scores_once.kept(balanced, builders.trial(1)) is None, "damaged"


def test_a_class_without_samples_has_no_share(begun: tuple[Job, Path, list[str]]) -> None:
    """The test part lacks the class: 0 of 0 is nothing, and neither 0 % nor left out."""
    a_job, path, _ = begun
    pixels = np.random.default_rng(1).integers(0, 256, (90, 8, 8, 3), np.uint8)
    data = from_arrays(
        pixels,
        np.arange(90) % 3,
        class_names=("bird", "cat", "dog"),
        x_test=255 - pixels[:40],
        y_test=np.arange(40) % 2,
    )
    decide(replace(a_job, data=data), path)
    record = journal.read(path)
    assert record.verdict is not None
    rows = {row["label"]: (row["n"], row["before"], row["after"]) for row in record.verdict["per_class"]}
    assert rows["dog"] == (0, None, None) and rows["bird"][0] == rows["cat"][0] == 20
    shown = {row["label"]: row["before"] for row in _classes(record.verdict)}
    assert shown["dog"] == "no samples" and shown["bird"].endswith("%")
