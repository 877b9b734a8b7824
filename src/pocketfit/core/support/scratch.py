"""Temporary files and folders that are removed even where the process that made them was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".pocketfit-scratch-"
HALVES = (".partial-*", "*.partial", "*.partial[0-9]*")  # files that a killed process may leave half written

_swept: set[str] = set()


@contextlib.contextmanager
def temporary_folder(parent: str | Path | None = None) -> Iterator[str]:
    """A folder in `parent` (the system's temporary folder without one) that is gone when the block ends.

    The process holds a lock on it. The first call removes those that nobody holds: kill -9 has left them behind.
    """
    place = str(parent or tempfile.gettempdir())
    if place not in _swept:
        _swept.add(place)
        _sweep_unheld(Path(place))
    folder, handle = _held(place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def sweep(folder: Path) -> None:
    """Remove the files that a killed process has left half written in `folder` and in its folders.

    The caller must hold the lock on the folder, so that no other process is writing there.
    """
    for pattern in HALVES:
        for path in (*folder.glob(pattern), *folder.glob(f"*/{pattern}")):
            if path.is_file():
                path.unlink(missing_ok=True)


def locked(handle: int) -> bool:
    """Try to lock this open file or folder; whether that worked. The lock is released when the file is closed.

    Windows has no such lock: there it never works.
    """
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody has it, or the file system has no locks
        return False
    return True


def _held(place: str) -> tuple[str, int | None]:
    """A new folder and, where there are locks, the handle that holds it."""
    while True:
        folder = tempfile.mkdtemp(prefix=PREFIX, dir=place)
        if sys.platform == "win32":
            return folder, None
        import fcntl

        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # another process, which was sweeping, has removed it already
            continue
        with contextlib.suppress(OSError):  # a file system without locks: no other process can lock the folder either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if Path(folder).is_dir():  # else another process locked it before us, and has removed it
            return folder, handle
        os.close(handle)


def _sweep_unheld(place: Path) -> None:
    if sys.platform == "win32":
        return
    for path in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or just gone
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if locked(handle):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)
