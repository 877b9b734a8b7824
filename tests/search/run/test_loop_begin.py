"""Where a run may begin: in an empty folder, one that a kill has left, or one in which nothing has worked."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketfit.core.errors import UserError
from pocketfit.core.support.array_file import stored_array
from pocketfit.core.support.progress import Silent
from pocketfit.search import journal
from pocketfit.search.propose.space import Proposal
from pocketfit.search.run import begin, loop
from pocketfit.search.run import run_trial as attempts
from pocketfit.search.run.job import Job
from tests.search import builders
from tests.search.run.test_job import job


def test_what_a_kill_has_left_is_no_foreign_folder(tmp_path: Path) -> None:
    begin.check_out(tmp_path / "new")
    for name in (".lock", "journal.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "journal.jsonl").write_bytes(b'{"kind": "sta')
    (tmp_path / "cache").mkdir()
    begin.check_out(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds something else .* \(thesis\.tex\); nothing was changed"):
        begin.check_out(tmp_path)
    journal.append(tmp_path / "journal.jsonl", builders.start(builders.budget()))
    begin.check_out(tmp_path)  # with a run in it the folder is the run's


def begun(a_job: Job, *trials: Any) -> None:
    path = a_job.out / "journal.jsonl"
    begin.begin(a_job, path, Silent())
    for trial in trials:
        journal.append(path, {"kind": "trial", **trial.to_json()})


def ended(a_job: Job, monkeypatch: pytest.MonkeyPatch) -> journal.Record:
    """What the journal holds after a run whose search and verdict do nothing."""
    for module, names in (
        (loop, ("_search", "_verdict", "check_resumed")),
        (begin, ("check_layers", "check_criterion")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, lambda *_: None)
    loop.fit_job(a_job, lambda *_, **__: None)
    return journal.read(a_job.out / "journal.jsonl")


def test_a_run_of_other_inputs_makes_room_where_nothing_of_it_has_worked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a metric that fails on the first file, say: the folder must not refuse every other one."""
    first = job(tmp_path, metric="top5")
    begun(first, builders.failed(0, stage="baseline"))
    record = ended(replace(first, metric="accuracy"), monkeypatch)
    assert record.start is not None and record.start["inputs"]["metric"] == "accuracy" and record.trials == ()


def test_a_run_in_which_something_worked_belongs_to_its_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = job(tmp_path, metric="top5")
    begun(first, builders.baseline(), builders.failed(1))
    with pytest.raises(UserError, match=r"belongs to another run \(different: metric\)"):
        ended(replace(first, metric="accuracy"), monkeypatch)
    assert len(ended(first, monkeypatch).trials) == 2


def test_the_pictures_that_were_kept_are_gone_when_the_run_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_job = job(tmp_path)
    begun(a_job, builders.baseline())
    a_job.samples("search", a_job.model.preprocess, Silent())
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / ".partial-1.tflite").touch()
    assert list(a_job.cache.glob("pixels-*.npy"))
    ended(a_job, monkeypatch)
    assert not list(a_job.cache.iterdir()) and not list((tmp_path / "models").iterdir())


def test_a_full_disk_is_no_fault_of_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the run without a failed trial, also where it became a sentence on its way: the same command goes on."""
    a_job, full = job(tmp_path), OSError(errno.ENOSPC, "No space left on device")
    proposal = Proposal(builders.baseline().plan, "baseline")

    def fail(*words: Any) -> Any:
        raise full

    monkeypatch.setattr(attempts, "export", fail)
    with pytest.raises(OSError, match="No space left"):
        attempts.attempt(a_job, proposal, 0, (), Silent())
    with pytest.raises(UserError, match="cannot be written: No space left"):
        stored_array(tmp_path / "pixels-1.npy", (1,), np.uint8, fail)

    def fail_in_words(*words: Any) -> Any:
        stored_array(tmp_path / "pixels-1.npy", (1,), np.uint8, fail)

    monkeypatch.setattr(attempts, "export", fail_in_words)
    with pytest.raises(UserError, match="cannot be written"):
        attempts.attempt(a_job, proposal, 0, (), Silent())
    full = FileNotFoundError(errno.ENOENT, "ours")
    monkeypatch.setattr(attempts, "export", fail)
    assert attempts.attempt(a_job, proposal, 0, (), Silent()).error == "FileNotFoundError: [Errno 2] ours"
