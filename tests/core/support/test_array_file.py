import errno
import os

import numpy as np
import pytest

from pocketfit.core.errors import UserError
from pocketfit.core.support.array_file import FileHashes, forget_arrays, stored_array


def chunks(calls):
    def make():
        calls.append(1)
        yield np.arange(6, dtype=np.uint8).reshape(2, 3)
        yield np.full((1, 3), 9, np.uint8)

    return make


def test_an_array_is_made_once_and_mapped(tmp_path):
    calls = []
    for _ in range(2):
        array = stored_array(tmp_path / "new" / "a.npy", (3, 3), np.uint8, chunks(calls))
        assert isinstance(array, np.memmap)
        assert array.tolist() == [[0, 1, 2], [3, 4, 5], [9, 9, 9]]
    assert len(calls) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.npy"]


def test_a_damaged_or_other_array_is_made_again(tmp_path):
    path, calls = tmp_path / "a.npy", []
    stored_array(path, (3, 3), np.uint8, chunks(calls))
    path.write_bytes(path.read_bytes()[:-2])
    assert stored_array(path, (3, 3), np.uint8, chunks(calls))[2, 2] == 9
    np.save(path, np.zeros((2, 2), np.uint8))
    assert stored_array(path, (3, 3), np.uint8, chunks(calls))[2, 2] == 9
    assert len(calls) == 3


def test_nothing_is_left_behind_when_making_fails(tmp_path):
    def make():
        yield np.zeros((1, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored_array(tmp_path / "a.npy", (3, 3), np.uint8, make)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_and_a_folder_that_is_none_are_sentences(tmp_path):
    def full():
        yield np.zeros((1, 3), np.uint8)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"a\.npy cannot be written: No space left on device"):
        stored_array(tmp_path / "a.npy", (3, 3), np.uint8, full)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/a\.npy cannot be written"):
        stored_array(tmp_path / "file" / "a.npy", (3, 3), np.uint8, chunks([]))


def test_hashes_hold_while_size_and_time_do(tmp_path):
    file = tmp_path / "1.jpg"
    file.write_bytes(b"abc")
    FileHashes(tmp_path / "c", tmp_path).save({"1.jpg": (file.stat(), "hash", "")})
    assert FileHashes(tmp_path / "c", tmp_path).get("1.jpg", file.stat()) == ("hash", "")
    assert FileHashes(tmp_path / "c", tmp_path / "other").get("1.jpg", file.stat()) is None
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert FileHashes(tmp_path / "c", tmp_path).get("1.jpg", file.stat()) is None


def test_a_damaged_index_counts_as_none(tmp_path):
    file = tmp_path / "1.jpg"
    file.touch()
    hashes = FileHashes(tmp_path / "c", tmp_path)
    hashes.save({"1.jpg": (file.stat(), "hash", "")})
    for content in ("{", "[]", '{"version": 0, "files": {}}'):
        hashes.path.write_text(content)
        assert FileHashes(tmp_path / "c", tmp_path).get("1.jpg", file.stat()) is None


def test_the_longest_unused_arrays_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr("pocketfit.core.support.array_file.MOST_BYTES", 3 * (128 + 3))

    def use(name):
        return stored_array(tmp_path / f"pixels-{name}.npy", (1, 3), np.uint8, lambda: [np.full((1, 3), 7, np.uint8)])

    (tmp_path / "search-scores-litert.npy").write_bytes(b"0" * 500)
    first = use("a")
    use("b")
    for age, name in ((9, "a"), (5, "b")):
        os.utime(tmp_path / f"pixels-{name}.npy", ns=(0, 10**18 - age))
    use("a")
    use("c")
    use("d")
    assert sorted(path.stem for path in tmp_path.iterdir()) == [
        "pixels-a",
        "pixels-c",
        "pixels-d",
        "search-scores-litert",
    ]
    use("e")
    assert first.tolist() == [[7, 7, 7]], "a map that is in use stays readable"
    forget_arrays(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["search-scores-litert.npy"]
