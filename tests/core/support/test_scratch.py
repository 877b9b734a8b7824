"""What a killed process leaves is swept, and nothing that somebody still uses."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from pocketfit.core.support import scratch
from pocketfit.core.support.scratch import PREFIX, sweep, temporary_folder

HOLDER = """
import sys, time
from pocketfit.core.support.scratch import temporary_folder
with temporary_folder(sys.argv[1]) as folder:
    open(folder + "/file", "w").close()
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def nothing_swept_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "_swept", set())


def test_a_folder_is_gone_at_the_end(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as folder:
        Path(folder, "file").touch()
        assert [path.name for path in tmp_path.iterdir()] == [Path(folder).name]
    assert list(tmp_path.iterdir()) == []


def test_folders_of_the_killed_are_swept_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = []
    for holder in holders:
        assert holder.stdout is not None
        folders.append(Path(holder.stdout.readline().strip()))
    Path(tmp_path, f"{PREFIX}link").symlink_to(tmp_path.parent)
    holders[0].kill()
    holders[0].wait()
    with temporary_folder(tmp_path):
        assert not folders[0].exists()
        assert (folders[1] / "file").exists()
    assert tmp_path.parent.exists()
    holders[1].kill()
    for holder in holders:
        holder.communicate()
    started = time.monotonic()
    scratch._swept.clear()
    with temporary_folder(tmp_path) as folder:
        assert {path.name for path in tmp_path.iterdir()} == {Path(folder).name, f"{PREFIX}link"}
    assert time.monotonic() - started < 5


def test_a_folder_that_was_swept_before_it_was_held_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = tempfile.mkdtemp, []

    def swept_at_once(**settings: Any) -> str:
        made.append(make(**settings))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr(scratch.tempfile, "mkdtemp", swept_at_once)
    with temporary_folder(tmp_path) as folder:
        assert folder == made[1] and Path(folder).is_dir()


def test_halves_are_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    halves = [
        ".partial-x.tflite",
        "models/.partial-y.onnx",
        "pixels-1ab.partial",
        "key.partial123",
        ".plan.json.partial",
    ]
    kept = ["journal.jsonl", "models/a.tflite", "my.partially", "cache"]
    for name in (*halves, *kept):
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == sorted([*kept, "models"])
