"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pocketfit.core.support.files import force, whole_or_not, write_json


def test_a_file_is_written_whole_or_not(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.onnx"

    def fail() -> None:
        with whole_or_not(path) as partial:
            partial.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert not list(path.parent.iterdir())
    with whole_or_not(path) as partial:
        assert partial.suffix == ".onnx"
        partial.write_text("whole")
    assert path.read_text() == "whole"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.onnx"]


def test_what_was_there_stays_until_the_new_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_json(path, {"ratio": 0.5})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"ratio": float("nan")})
    assert path.read_text() == '{\n "ratio": 0.5\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file.npy"
    with whole_or_not(path) as first, whole_or_not(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first", "the one that ended last"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, forced = tmp_path / "file.bin", list[tuple[int, bool]]()
    monkeypatch.setattr(os, "fsync", lambda handle: forced.append((os.fstat(handle).st_size, path.exists())))
    with whole_or_not(path) as partial:
        partial.write_bytes(bytes(5))
    assert forced == [(5, False)]


def test_all_files_of_a_folder_are_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: sizes.append(os.fstat(handle).st_size))
    (tmp_path / "inner").mkdir()
    (tmp_path / "a").write_bytes(bytes(1))
    (tmp_path / "inner" / "b").write_bytes(bytes(2))
    force(tmp_path)
    assert sorted(sizes) == [1, 2]


@pytest.mark.skipif(os.name != "posix", reason="rights as POSIX has them")
def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    """As much as the user's umask lets them: results are handed over."""
    path, plain = tmp_path / "whole", tmp_path / "plain"
    with whole_or_not(path):
        pass
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
