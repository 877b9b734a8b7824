"""Labelled data -> Samples: a folder of images (image_folder.py) or arrays (arrays.py), split by content (splits.py).

open_data(path) ──▶ Dataset ──split(name, preprocess)──▶ Samples
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import SPLITS, Samples, split_words
from pocketfit.core.signature import TensorSpec
from pocketfit.core.support.array_file import stored_array
from pocketfit.core.support.progress import Tick
from pocketfit.core.support.text import some
from pocketfit.core.task.task import Form
from pocketfit.sources.data import arrays, image_folder, splits
from pocketfit.sources.data.listing import Listing, counted, without_leaks

GEOMETRY = ("height", "width", "resize", "resize_px", "filter", "colour", "background")
MOST_COPIES = 2  # samples for each different one; with more, an empty split is blamed on copies
GEOMETRY_VERSION = 1  # to be raised when the pixels that preprocess.geometry gives change


@dataclass(frozen=True)
class Dataset:
    """Labelled samples, each in one of four disjoint splits.

    class_names  sorted folder names, or as the arrays give them; a label is an index into it
    findings     sentences for the user: what was skipped, copied, missing
    sha256       of all content hashes, class names and parts, whatever the order of the files
    """

    class_names: tuple[str, ...]
    findings: tuple[str, ...]
    sha256: str
    listing: Listing

    def split_counts(self, split_seed: int) -> dict[str, int]:
        """How many samples each split has: {"train": 700, "calibration": 50, "search": 100, "verdict": 150}."""
        counts = Counter(self._splits(split_seed))
        return {name: counts[name] for name in SPLITS}

    def split(
        self,
        name: str,
        preprocess: Preprocess,
        *,
        split_seed: int,
        limit: int | None = None,
        cache: Path | None = None,
        progress: Tick | None = None,
    ) -> Samples:
        """The samples of one split, geometry done, in an order in which any first n have about the classes' shares.

        limit     only that many, the first ones
        cache     a folder for the pixels; they come back as a memory map and are decoded once
        progress  is called with (done, total) samples
        Raises UserError where the split is empty.
        """
        if name not in SPLITS:
            raise ValueError(f"'{name}' is none of the splits {', '.join(SPLITS)}")
        members = np.array([row for row, split in enumerate(self._splits(split_seed)) if split == name], np.int64)
        if self.listing.reader is NOTHING:
            raise UserError(
                f"This asks for the {split_words(name)} split of the data, and no data were given: give --data"
            )
        if not len(members):
            raise UserError(self.why_empty(name))
        contents = [self.listing.contents[row] for row in members]
        rows = members[splits.order(contents, self.listing.labels[members], split_seed)[:limit]]
        return Samples(
            array=self._pixels(rows, preprocess, cache, progress),
            labels=self.listing.labels[rows],
            names=[self.listing.names[row] for row in rows],
            split=name,
            sha256=_hash(f"{self.listing.contents[row]} {self.listing.labels[row]}" for row in rows),
            preprocess=preprocess,
            class_names=self.class_names,
        )

    @property
    def form(self) -> Form:
        """The form of the targets."""
        return "none" if self.listing.reader is NOTHING else "classes"

    def check_splits(self, split_seed: int, names: Sequence[str] = SPLITS) -> None:
        """Raises UserError where one of these splits would be empty."""
        counts = self.split_counts(split_seed)
        for name in names:
            if not counts[name]:
                raise UserError(self.why_empty(name))

    def why_empty(self, split: str) -> str:
        """Why a split has no sample, and what to do."""
        parted = [c for c, part in zip(self.listing.contents, self.listing.parts, strict=True) if part == "train"]
        total, different = len(parted), len(set(parted))
        if different * MOST_COPIES < total:
            only = "only 1 is different from all others" if different == 1 else f"only {different:,} are different"
            return (
                f"The {split_words(split)} split is empty: of {counted(total, 'sample')} {only}, and copies always go"
                " to the same split: give a hundred or more different samples"
            )
        number = f"{counted(total, 'sample')} {'is' if total == 1 else 'are'}"
        return f"The {split_words(split)} split is empty: {number} too few to be split, give a hundred or more"

    def check_fits(self, spec: TensorSpec, preprocess: Preprocess) -> None:
        """Raises UserError, with what to do, where a network or a file with this input can't take the samples.

        Images take the shape that `preprocess` gives them. Float tensors are fed as they are: they need the input's
        own shape, images channels first, whatever the layout of a file.
        """
        reader = self.listing.reader
        if reader is NOTHING:
            return
        own, row, pictures = spec.shape[1:], reader.row_shape(preprocess), reader.row_dtype() is np.uint8
        wanted = (own[2], *own[:2]) if spec.layout == "NHWC" and len(own) == 3 else own
        takes = f"the network takes {list(wanted)} a sample"
        if pictures and not _same((row[2], *row[:2]), wanted):
            raise UserError(
                f"The data are images, which the preprocessing makes {[row[2], *row[:2]]} (channels, height, width),"
                f" and {takes}: make the two agree (--preprocess, --input-shape), or give float arrays of its shape"
            )
        if not pictures and not _same(row, wanted) and not _same(row, own):
            raise UserError(f"The data's float arrays have {list(row)} a sample, and {takes}: {_mend(row, wanted)}")

    def _splits(self, split_seed: int) -> list[str]:
        """The split of each row; "left out" for those that would leak."""
        given = {splits.GIVEN_AS[part] for part in set(self.listing.parts) & set(splits.GIVEN_AS)}
        return [
            splits.assign(content, split_seed, given) if part == "train" else splits.GIVEN_AS.get(part, part)
            for content, part in zip(self.listing.contents, self.listing.parts, strict=True)
        ]

    def _pixels(
        self, rows: NDArray[np.int64], preprocess: Preprocess, cache: Path | None, progress: Tick | None
    ) -> NDArray[np.generic]:
        reader = self.listing.reader
        shape, dtype = (len(rows), *reader.row_shape(preprocess)), reader.row_dtype()

        def chunks() -> Iterator[NDArray[np.generic]]:
            done = 0
            for chunk in reader.read(rows, preprocess):
                yield chunk
                done += len(chunk)
                if progress is not None:
                    progress(done, len(rows))

        if cache is not None and dtype is np.uint8:
            geometry = {key: getattr(preprocess, key) for key in GEOMETRY}
            key = _hash([f"{GEOMETRY_VERSION} {json.dumps(geometry)}", *(self.listing.contents[row] for row in rows)])
            return stored_array(Path(cache) / f"pixels-{key[:32]}.npy", shape, dtype, chunks)
        array, start = np.empty(shape, dtype), 0
        for chunk in chunks():
            array[start : start + len(chunk)] = chunk
            start += len(chunk)
        return array


def _same(shape: Sequence[int | None], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(b is None or a == b for a, b in zip(shape, wanted, strict=True))


def _mend(row: tuple[int, ...], wanted: Sequence[int | None]) -> str:
    """What to do so that arrays of one row shape fit another, for the end of a sentence."""
    for order in permutations(range(len(row))) if len(row) == 3 else ():
        if _same([row[axis] for axis in order], wanted):
            return f"turn them with x.transpose(0, {', '.join(str(axis + 1) for axis in order)})"
    if _same((1, *row), wanted):
        return "add the channel with x[:, None]"
    if _same(row, (1, *wanted)) or _same(row, (*wanted, 1)):
        return f"drop the side of 1 with x.reshape({', '.join(map(str, (-1, *wanted)))})"
    if len(row) == len(wanted) == 3:
        return "give arrays of that size, or say with --input-shape what the network shall take"
    return "give arrays of that shape"


def open_data(path: str | Path, *, cache: Path | None = None, progress: Tick | None = None) -> Dataset:
    """A folder of images by class, with train/, val/ and test/ inside or not, or an .npz file of arrays.

    cache     a folder for the hashes of the files: a second start does not read them again
    progress  is called with (done, total) files
    Raises UserError; broken images are left out and said in `findings`.
    """
    path = Path(path)
    if path.is_dir():
        return _dataset(image_folder.read_folder(path, cache=cache, progress=progress), str(path))
    if not os.path.lexists(path):
        raise UserError(f"The data {path} does not exist: give a folder of images by class, or an .npz file")
    # Others, such as pipes, may wait for ever when they are opened.
    if path.is_file() and (path.suffix == ".npz" or zipfile.is_zipfile(path)):
        return _dataset(arrays.read_npz(path), str(path))
    mend = ": numpy.savez('data.npz', x=x, y=y) packs x with its labels" if path.suffix == ".npy" else ""
    raise UserError(f"The data {path} is neither a folder of images by class nor an .npz file{mend}")


def from_arrays(
    x: NDArray[Any],
    y: NDArray[Any],
    *,
    class_names: Sequence[str] = (),
    x_test: NDArray[Any] | None = None,
    y_test: NDArray[Any] | None = None,
) -> Dataset:
    """Arrays as data: x uint8 [N, H, W] or [N, H, W, C], or float [N, ...] that is fed as it is; y whole numbers [N].

    Where test arrays are given, they are the verdict split. Raises UserError.
    """
    given: dict[str, Any] = {"x_train": x, "y_train": y} if x_test is not None else {"x": x, "y": y}
    given |= {"x_test": x_test} if x_test is not None else {}
    given |= {"y_test": y_test} if y_test is not None else {}
    given |= {"class_names": list(class_names)} if len(class_names) else {}
    return _dataset(arrays.from_mapping({key: np.asarray(value) for key, value in given.items()}), "the arrays")


class _Nothing:
    """The reader of a Dataset without samples."""

    def read(self, rows: NDArray[np.int64], preprocess: Preprocess) -> Iterator[NDArray[np.generic]]:
        return iter(())

    def row_shape(self, preprocess: Preprocess) -> tuple[int, ...]:
        return ()

    def row_dtype(self) -> type[np.uint8]:
        return np.uint8


NOTHING = _Nothing()


def no_data(class_names: Sequence[str] = ()) -> Dataset:
    """A Dataset without samples; asking it for some raises UserError."""
    listing = Listing(
        class_names=tuple(class_names), names=(), contents=(), labels=np.zeros(0, np.int64), parts=(), reader=NOTHING
    )
    return Dataset(listing.class_names, (), _hash(["no data"]), listing)


def _dataset(listing: Listing, source: str) -> Dataset:
    listing = without_leaks(listing)
    present = set(listing.labels[[part == "train" for part in listing.parts]].tolist())
    names, empty = listing.class_names, []
    for index, name in enumerate(names):
        if index not in present:
            empty.append(name)
    if len(present) < 2:
        only = f"only the class '{names[present.pop()]}'" if present else "no class"
        raise UserError(f"{source} has readable samples of {only} to train on; a classifier needs two classes or more")
    findings = listing.findings
    if empty:
        number = counted(len(empty), "class has", "classes have")
        findings = (*findings, f"{number} no samples to train on: {some(empty)}")
    described = (
        f"{content} {names[label]} {part}"
        for content, label, part in zip(listing.contents, listing.labels.tolist(), listing.parts, strict=True)
    )
    return Dataset(names, findings, _hash([json.dumps(names), *sorted(described)]), listing)


def _hash(lines: Sequence[str] | Iterator[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode(errors="surrogatepass") + b"\n")  # file names need not be UTF-8
    return digest.hexdigest()
