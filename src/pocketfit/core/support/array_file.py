"""Caches between starts: decoded images by content, and hashes of files by size and time.

All cached files may be deleted at any time. They appear whole or not at all, also after kill -9 or on a full disk. All
arrays of a folder together take no more than MOST_BYTES, or only the newest is kept where it alone is larger.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.support.files import whole_or_not

Number = TypeVar("Number", bound=np.generic)
ARRAYS = ("pixels-*.npy", "answers-*.npy")  # images, and a teacher's logits for them
HEADER_BYTES = 128  # of a small .npy file
MOST_BYTES = 4 * 2**30  # of the arrays in one folder


def stored_array(
    path: Path, shape: tuple[int, ...], dtype: type[Number], make: Callable[[], Iterable[NDArray[Number]]]
) -> NDArray[Number]:
    """The array at `path` as a memory map; where it does not exist yet, its rows come from `make`, some at a time.

    The arrays of the folder that were used longest ago are removed to make room; a map that is in use stays readable.
    Raises UserError where the folder cannot be written.
    """
    found = _mapped(path, shape, dtype)
    if found is not None:
        with contextlib.suppress(OSError):  # a cache of somebody else's may be read, too
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        return found
    _make_room(path.parent, HEADER_BYTES + math.prod(shape) * np.dtype(dtype).itemsize)
    with _whole_file(path) as file:
        # Written, not mapped: on a full disk a write raises an error, a mapped page ends the process (SIGBUS).
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in make():
            file.write(np.ascontiguousarray(chunk, dtype).data)
    written = _mapped(path, shape, dtype)
    if written is None:
        raise UserError(f"The cache file {path} cannot be read back: is its disk full or damaged?")
    return written


def forget_arrays(folder: Path) -> None:
    """Remove all arrays of a folder."""
    _make_room(folder, MOST_BYTES)


def _make_room(folder: Path, needed_bytes: int) -> None:
    """Remove arrays, the longest unused first, until so many bytes fit."""
    with contextlib.suppress(OSError):  # Windows keeps files that are in use
        stats = {path: path.stat() for kind in ARRAYS for path in folder.glob(kind)}
        total = sum(stat.st_size for stat in stats.values())
        for path in sorted(stats, key=lambda path: stats[path].st_atime_ns):
            if total + needed_bytes <= MOST_BYTES:
                return
            path.unlink(missing_ok=True)
            total -= stats[path].st_size


def _mapped(path: Path, shape: tuple[int, ...], dtype: type[Number]) -> NDArray[Number] | None:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):  # not there, or damaged: a cache is made again
        return None
    return array if isinstance(array, np.memmap) and array.shape == shape and array.dtype == dtype else None


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    try:
        with whole_or_not(path) as partial, partial.open("wb") as file:
            yield file
    except OSError as error:
        raise UserError(f"The cache {path} cannot be written: {error.strerror or error}") from error


class FileHashes:
    """Cached results for the files under one root: (size, time of change) -> (content hash, why it cannot be read).

    Without a folder nothing is stored.
    """

    VERSION = 2  # raise it when other files count as readable

    def __init__(self, folder: Path | None, root: Path) -> None:
        name = hashlib.sha256(str(root).encode(errors="surrogateescape")).hexdigest()[:16]
        self.path = None if folder is None else folder / f"files-{name}.json"
        self.known: dict[str, list[Any]] = {}
        if self.path is None:
            return
        with contextlib.suppress(OSError, ValueError):  # not there, or damaged: a cache is made again
            data = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(data, dict) and data.get("version") == self.VERSION:
                self.known = data["files"]

    def get(self, name: str, stat: os.stat_result) -> tuple[str, str] | None:
        entry = self.known.get(name)
        if entry is None or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
            return None
        return entry[2], entry[3]

    def save(self, files: dict[str, tuple[os.stat_result, str, str]]) -> None:
        """Store the results for exactly these files: name -> (stat, content hash, why it cannot be read)."""
        known = {name: [stat.st_size, stat.st_mtime_ns, sha, why] for name, (stat, sha, why) in files.items()}
        if self.path is None or known == self.known:
            return
        with _whole_file(self.path) as file:
            file.write(json.dumps({"version": self.VERSION, "files": known}).encode())
