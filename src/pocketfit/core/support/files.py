"""Output: folders that are checked before any work, files that are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pocketfit.core.errors import UserError
from pocketfit.core.support.scratch import locked, sweep
from pocketfit.core.support.text import readable

PROBE_BYTES = 2**20
LONGEST_NAME = 255 - 20  # bytes; files beside a folder have its name and a suffix
# Names of what the verbs write into an output folder; anything else there is the user's own.
OF_A_RUN = (".lock", "cache", "journal.jsonl", "result.json", "plan.json", "report.html", "models", "bundle")
OF_APPLY = (".lock", "cache", "*.tflite", "*.onnx", "*.xml", "*.bin", "*.pt2")
OF_LOOKS = ("cache", "explain.json", "explain.html", "sensitivity.json", "sensitivity.html", "prune.json")


def check_folder(out: Path, own: Collection[str] = ()) -> None:
    """Refuse, before any work, an output folder that can't be written, or that holds other files than `own`. Nothing in
    the folder is changed.

    own  patterns of the names that may be in it: "*.onnx"
    """
    with _said(out):
        if os.path.lexists(out) and not out.is_dir():
            raise UserError(f"{out} is a file; nothing was changed: give another output folder")
        foreign = [path.name for path in (out.iterdir() if out.is_dir() else ()) if not _is_own(path.name, own)]
        if foreign:
            raise UserError(
                f"{out} holds something else than what would be written there ({readable(min(foreign))}); nothing was"
                " changed: give another output folder"
            )
        check_writable(out)


def check_file(path: Path, keys: Collection[str]) -> None:
    """Refuse, before any work, a path for a JSON file that can't be written, or at which another kind of file lies.

    keys  keys of the object in such a file: a file without them is the user's own
    """
    with _said(path):
        if path.is_dir():
            raise UserError(f"{path} is a folder; nothing was changed: give a file")
        if os.path.lexists(path):
            there = None
            with suppress(ValueError, RecursionError):
                there = json.loads(path.read_bytes()) if path.is_file() else None
            if not isinstance(there, dict) or not set(keys) <= there.keys():
                raise UserError(f"{path} is there already and something else; nothing was changed: give another file")
        check_writable(path.parent)
        with _removed(path.parent):
            _probe(path.parent, path.name)


def check_writable(folder: Path) -> None:
    """Refuse a folder, existing or not, in which no file can be made: no rights, no space, an impossible name."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        name = readable(str(folder))
        raise UserError(f"The name {name} is not UTF-8, and runtimes open no such files: give another name") from error
    with _said(folder):
        if len(os.fsencode(folder.name)) > LONGEST_NAME:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with _removed(folder):
            _probe(folder, "")


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON; it is forced to the disk before it replaces an earlier file."""
    with whole_or_not(path) as partial, partial.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, allow_nan=False)
        file.write("\n")


@contextmanager
def whole_or_not(path: Path, beside: Collection[str] = ()) -> Iterator[Path]:
    """An empty file beside `path` to write to; it becomes `path`, forced to the disk, when the block ends well, and is
    removed when it doesn't. Folders on the way to it are made.

    Its name keeps the extension: converters choose their format by it.

    beside  suffixes of files that come with it: what the block writes under them goes the same way, before `path`
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{secrets.token_hex(4)}{path.suffix}")
    partial.touch(exist_ok=False)  # not mkstemp, whose files are for the owner only
    try:
        yield partial
        for suffix in (*beside, path.suffix):
            force(partial.with_suffix(suffix))
            partial.with_suffix(suffix).replace(path.with_suffix(suffix))
    finally:
        for suffix in (*beside, path.suffix):
            partial.with_suffix(suffix).unlink(missing_ok=True)


def force(path: Path) -> None:
    """A file, or all files of a folder, to the disk."""
    for file in (path, *path.rglob("*")):
        if file.is_file():
            handle = os.open(file, os.O_RDWR)  # Windows forces no file that is open for reading only
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold the folder for one run: a second run is refused. The lock of a killed run does not count.

    Files that a killed run left half written are removed. A folder that is still empty at the end is removed, too.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a+") as file:
        if os.name == "posix":  # Windows has no flock; there, two runs in one folder are the user's care
            if not locked(file.fileno()):
                raise UserError(f"Another run is working in {out}: wait for it, or give another output folder")
            sweep(out)
        try:
            yield
        except BaseException:
            if {path.name for path in out.rglob("*")} <= {".lock", "cache"}:
                shutil.rmtree(out, ignore_errors=True)
            raise


def _is_own(name: str, own: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in (*own, ".partial-*", "*.partial*"))


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Turn the system's errors about a path into one sentence."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        if error.errno == errno.ENOTDIR and error.filename:
            cause = f"{error.filename} is a file"
        raise UserError(
            f"{readable(str(path))} cannot be written ({readable(cause)}); nothing was changed: give another output"
            " folder"
        ) from error


@contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """Make a folder with its parents; those that did not exist are removed when the block ends."""
    missing = []
    while not folder.is_dir():
        if os.path.lexists(folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        missing.append(folder)
        folder = folder.parent
    with ExitStack() as made:
        for path in reversed(missing):
            path.mkdir()
            made.callback(path.rmdir)
        yield


def _probe(folder: Path, name: str) -> None:
    """Write a file of PROBE_BYTES whose name is no shorter, and remove it."""
    handle, path = tempfile.mkstemp(prefix=".partial-", suffix=name[len(".partial-") + 8 :], dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        Path(path).unlink()
