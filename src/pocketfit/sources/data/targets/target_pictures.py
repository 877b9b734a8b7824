"""Target pictures: what a network should make of each picture. They have its size, or a whole multiple of it.

A folder of pairs has the pictures in input/ and their targets in target/, under the same names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.cpus import usable
from pocketfit.core.support.text import some
from pocketfit.sources.data.listing import counted
from pocketfit.sources.data.manifest_rows import Row, Rows
from pocketfit.sources.data.picture_files import ROWS_PER_CHUNK, SUFFIXES, check_picture
from pocketfit.sources.data.targets.masks import upright_size
from pocketfit.sources.image_preprocess import BadPicture, decode, geometry, recolour

INPUTS, TARGETS = ("input", "inputs"), ("target", "targets")  # names of the two folders of pairs
MOST_TIMES = 16  # as large as its picture, along each side


@dataclass(frozen=True)
class Target:
    """What was found when a target picture was read: sha256 of its content, and how many times as large it is."""

    content: str
    times: int


@dataclass(frozen=True)
class TargetFiles:
    """Reader of target pictures: `paths` are relative to `root`; each is `times` as large as its picture."""

    root: Path
    paths: tuple[str, ...]
    contents: Sequence[str]
    times: int

    def read(self, rows: NDArray[np.int64], preprocess: Preprocess) -> Iterator[NDArray[Any]]:
        larger = enlarged(preprocess, self.times)

        def picture(row: int) -> NDArray[np.uint8]:
            try:
                return geometry(decode(self.root / self.paths[row], larger), larger)
            except BadPicture as error:
                raise UserError(f"{error}; it could be read when the data was opened: start again") from error

        with ThreadPoolExecutor(usable()) as pool:
            for start in range(0, len(rows), ROWS_PER_CHUNK):
                yield np.stack(list(pool.map(picture, rows[start : start + ROWS_PER_CHUNK].tolist())))

    def shape(self, preprocess: Preprocess) -> tuple[int, ...]:
        return preprocess.height * self.times, preprocess.width * self.times, preprocess.channels

    def dtype(self) -> type[np.uint8]:
        return np.uint8


@dataclass(frozen=True)
class TargetArrays:
    """Reader of targets in arrays: uint8 [n, h, w, C] each, `times` as large as their pictures, or float32
    [n, C, h, w], which stay as they are (times 0)."""

    blocks: tuple[NDArray[Any], ...]
    contents: Sequence[str]
    times: int

    def read(self, rows: NDArray[np.int64], preprocess: Preprocess) -> Iterator[NDArray[Any]]:
        starts = np.cumsum([0, *map(len, self.blocks)])
        larger = enlarged(preprocess, self.times) if self.times else preprocess
        for row in rows.tolist():
            block = int(np.searchsorted(starts, row, side="right")) - 1
            target = self.blocks[block][row - starts[block]]
            yield (geometry(recolour(target, larger), larger) if self.times else target)[np.newaxis]

    def shape(self, preprocess: Preprocess) -> tuple[int, ...]:
        if not self.times:
            return self.blocks[0].shape[1:]
        return preprocess.height * self.times, preprocess.width * self.times, preprocess.channels

    def dtype(self) -> type[np.uint8] | type[np.float32]:
        return np.uint8 if self.times else np.float32


def enlarged(preprocess: Preprocess, times: int) -> Preprocess:
    """The same geometry for pictures that are so many times as large."""
    return preprocess.at(preprocess.height * times, preprocess.width * times)


def times_as_large(target: Sequence[int], picture: Sequence[int]) -> int:
    """How many times as large a target of (height, width) is; 0 where it is no whole multiple of its picture.

    >>> times_as_large((24, 32), (12, 16)), times_as_large((24, 30), (12, 16))
    (2, 0)
    """
    times = target[0] // picture[0]
    fits = tuple(target) == (picture[0] * times, picture[1] * times)
    return times if fits and 1 <= times <= MOST_TIMES else 0


def times_of(keys: Sequence[str], pictures: Sequence[NDArray[Any]], targets: Sequence[NDArray[Any]]) -> int:
    """How many times as large the targets of all parts are, 0 for floats, which stay as they are. Raises UserError."""
    times = []
    for key, x, y in zip(keys, pictures, targets, strict=True):
        if y.shape[1:] != targets[0].shape[1:] or y.dtype != x.dtype:
            raise UserError(
                f"{key} has pictures of {y.dtype} {list(y.shape[1:])}, and x of {x.dtype} {list(x.shape[1:])}: all"
                " parts need one size, and x and y one kind of numbers"
            )
        times.append(times_as_large(y.shape[1:3], x.shape[1:3]) if y.dtype == np.uint8 else 0)
        if y.dtype == np.uint8 and times[-1] != max(times[0], 1):
            raise UserError(
                f"{key} has pictures of {list(y.shape[1:3])}, and those of x have {list(x.shape[1:3])}: a target is as"
                " large, or a whole number of times as large"
            )
    return times[0]


def checked_target(path: Path, picture: Path) -> Target | str:
    """What a target file holds, or why it cannot be used with this picture."""
    content, why = check_picture(path, path.stat().st_size)
    if why:
        return why
    try:
        own, size = upright_size(path), upright_size(picture)
    except (BadPicture, OSError) as error:
        return str(error)
    times = times_as_large(own, size)
    if not times:
        return (
            f"it is {own[1]} x {own[0]} pixels, and its picture is {size[1]} x {size[0]}: a target is as large, or a"
            f" whole number of times as large, up to {MOST_TIMES}"
        )
    return Target(content, times)


def same_times(path: Path | str, found: Sequence[Target]) -> int:
    """How many times as large as their pictures all targets are. Raises UserError where they differ."""
    seen = sorted({target.times for target in found})
    if len(seen) > 1:
        raise UserError(
            f"Targets of {path} are {' and '.join(map(str, seen))} times as large as their pictures: one network gives"
            " one size, so give those of one factor"
        )
    return seen[0]


def pairs_in(folder: Path) -> Rows | None:
    """The pairs of a folder with input/ and target/; None: it is no such folder. Raises UserError where no picture has
    its target."""
    named = {entry.name.lower(): entry for entry in os.scandir(folder) if entry.is_dir() and entry.name[:1] != "."}
    inputs, targets = (next((named[name] for name in names if name in named), None) for names in (INPUTS, TARGETS))
    if len(named) != 2 or inputs is None or targets is None:
        return None
    pictures, wanted = (_pictures(Path(entry.path)) for entry in (inputs, targets))
    rows = [
        Row(place, f"{inputs.name}/{pictures[name]}", f"{targets.name}/{wanted[name]}", "train", "")
        for place, name in enumerate(sorted(pictures.keys() & wanted.keys()), 1)
    ]
    if not rows:
        raise UserError(
            f"The folder {folder} has {inputs.name}/ and {targets.name}/, and no picture of the same name in both: a"
            " picture and its target have one name"
        )
    alone = sorted(pictures.keys() ^ wanted.keys())
    told = f"{counted(len(alone), 'picture has', 'pictures have')} no partner and"
    left = f"{told} {'is' if len(alone) == 1 else 'are'} left out: {some(alone)}"
    return Rows(rows, "target", "pair", (left,) if alone else ())


def _pictures(folder: Path) -> dict[str, str]:
    """The picture files below a folder: their relative path without the suffix -> with it."""
    found = {}
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[:1] != ".")
        for name in sorted(names):
            path = Path(here, name).relative_to(folder)
            if path.suffix.lower() in SUFFIXES and name[:1] != ".":
                found[path.with_suffix("").as_posix()] = path.as_posix()
    return found
