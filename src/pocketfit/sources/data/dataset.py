"""Data -> Samples: images or recordings of a folder (image_folder.py) or of a manifest (manifest.py), or arrays
(arrays.py), split by content (splits.py).

open_data(path) ──▶ Dataset ──split(name, preprocess)──▶ Samples
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from pocketfit.sources.data import arrays, box_files, image_folder, manifest, splits
from pocketfit.sources.data.listing import Listing, counted, inputs_for, with_identities, without_leaks
from pocketfit.sources.data.sound_files import Recordings
from pocketfit.sources.data.targets.read_targets import geometry_key, read_targets
from pocketfit.sources.data.targets.target_pictures import pairs_in
from pocketfit.sources.named_inputs import Kind, check_input

FORMS = (
    "a folder of images, by class, with input/ and target/, or without labels; one of recordings (.wav); a manifest"
    " (.jsonl, .json, .csv, .tsv, or PaddleOCR's .txt); boxes (COCO's .json, or folders images/ and labels/ as YOLO"
    " has them); or arrays (.npz, .npy)"
)
MANIFESTS = (".jsonl", ".json", ".csv", ".tsv", ".txt")
ARRAY_FILES: dict[str, Callable[[Path], Listing]] = {".npz": arrays.read_npz, ".npy": arrays.read_npy}
MOST_COPIES = 2  # samples for each different one; with more, an empty split is blamed on copies


@dataclass(frozen=True)
class Dataset:
    """Samples with targets of one form, or without any, each in one of four disjoint splits.

    class_names  sorted names of folders or labels, or as the arrays give them; a label is an index into it
    findings     sentences for the user: what was skipped, copied, missing
    sha256       of all content hashes, targets, class names, kinds and parts, whatever the order of the files
    """

    class_names: tuple[str, ...]
    findings: tuple[str, ...]
    sha256: str
    listing: Listing

    @property
    def form(self) -> Form:
        """The form of the targets; "none" where the samples have none."""
        return self.listing.form

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
        inputs: Sequence[TensorSpec] = (),
        limit: int | None = None,
        cache: Path | None = None,
        progress: Tick | None = None,
    ) -> Samples:
        """The samples of one split, geometry done, in an order in which any first n have about the classes' shares.
        Where there are no classes, they have the kinds' shares.

        inputs    those of the network, in whose order and dtypes the samples come; (): one input, or the data's order
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
        rows = members[splits.order(contents, self._strata()[members], split_seed)[:limit]]
        array, more = self._inputs(rows, inputs, self._pixels(rows, preprocess, cache, progress))
        return Samples(
            array=array,
            more=more,
            labels=read_targets(self.listing, rows, preprocess, cache),
            names=[self.listing.names[row] for row in rows],
            split=name,
            sha256=_hash(self._described(row) for row in rows.tolist()),
            preprocess=preprocess,
            class_names=self.class_names,
            texts=[self.listing.texts[row] for row in rows] if len(self.listing.texts) else (),
            kinds=[self.listing.kinds[row] for row in rows] if len(self.listing.kinds) else (),
        )

    def _inputs(
        self, rows: NDArray[np.int64], wanted: Sequence[TensorSpec], first: NDArray[np.generic]
    ) -> tuple[NDArray[np.generic], dict[str, NDArray[Any]]]:
        """(the network's first input, the further ones by name) for these rows."""
        found = {self.listing.given: first} | {name: array[rows] for name, array in self.listing.more.items()}
        if not wanted:
            return first, {name: array for name, array in found.items() if name != self.listing.given}
        made = [
            array if array.dtype == np.uint8 else array.astype(spec.dtype, copy=False)
            for spec, array in ((spec, found[name]) for spec, name in zip(wanted, self._names(wanted), strict=True))
        ]
        return made[0], {spec.name: array for spec, array in zip(wanted[1:], made[1:], strict=True)}

    def _names(self, wanted: Sequence[TensorSpec]) -> tuple[str, ...]:
        return inputs_for(self.listing, wanted)

    def _strata(self) -> NDArray[np.int64]:
        """The class or the identity of each sample; without these, the number of its kind."""
        who = self.listing.identities
        if who is not None and who.ndim == 1:
            return who
        if self.form == "classes" or not len(self.listing.kinds):
            return self.listing.labels
        return np.unique(np.asarray(self.listing.kinds), return_inverse=True)[1].astype(np.int64)

    def _described(self, row: int) -> str:
        """A sample's content and target, for hashes."""
        listing = self.listing
        target = json.dumps(listing.target(row)) if self.form not in ("classes", "none") else listing.labels[row]
        kind = f" {json.dumps(listing.kinds[row])}" if len(listing.kinds) else ""
        return f"{listing.contents[row]} {target}{kind}"

    def targets(self, name: str, split_seed: int) -> NDArray[np.int64]:
        """The classes, or the identities or pairs, of all samples of a split; no picture is read."""
        rows = np.array([row for row, split in enumerate(self._splits(split_seed)) if split == name], np.int64)
        who = self.listing.identities
        return self.listing.labels[rows] if who is None else who[rows]

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

    def check_fits(self, inputs: Sequence[TensorSpec], preprocess: Preprocess) -> None:
        """Raises UserError, with what to do, where a network or a file with these inputs can't take the samples.

        Images take the shape that `preprocess` gives them. Other tensors are fed as they are: they need the input's
        own shape, images channels first, whatever the layout of a file.
        """
        reader = self.listing.reader
        if reader is NOTHING:
            return
        if isinstance(reader, Recordings) and preprocess.sound is None:
            raise UserError(
                "The data are recordings, and the preprocessing is one for images: give --preprocess log-mel, mfcc,"
                ' waveform, or a JSON file with "sound"'
            )
        if preprocess.sound is not None and reader.row_dtype() is np.uint8:
            raise UserError("The data are images, and the preprocessing is one for recordings: give .wav files")
        several: Kind = "several" if self.listing.more else ""
        kind: Kind = "recordings" if isinstance(reader, Recordings) else several
        for number, (spec, name) in enumerate(zip(inputs, self._names(inputs), strict=True)):
            if name != self.listing.given:
                array = self.listing.more[name]
                check_input(spec, array.shape[1:], array.dtype.type, name, kind)
                continue
            if number and reader.row_dtype() is np.uint8:
                raise UserError(
                    f"The data's images are for the network's input '{spec.name}', which is not its first one: let"
                    " the network take them first, or give float arrays of its shape"
                )
            check_input(spec, reader.row_shape(preprocess), reader.row_dtype(), name, kind)

    def _splits(self, split_seed: int) -> list[str]:
        """The split of each row; "left out" for those that would leak."""
        given = {splits.GIVEN_AS[part] for part in set(self.listing.parts) & set(splits.GIVEN_AS)}
        return [
            splits.assign(drawn, split_seed, given) if part == "train" else splits.GIVEN_AS.get(part, part)
            for drawn, part in zip(self.listing.together or self.listing.contents, self.listing.parts, strict=True)
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

        if cache is not None and (dtype is np.uint8 or isinstance(reader, Recordings)):
            key = _hash([geometry_key(preprocess), *(self.listing.contents[row] for row in rows)])
            return stored_array(Path(cache) / f"pixels-{key[:32]}.npy", shape, dtype, chunks)
        array, start = np.empty(shape, dtype), 0
        for chunk in chunks():
            array[start : start + len(chunk)] = chunk
            start += len(chunk)
        return array


def open_data(path: str | Path, *, cache: Path | None = None, progress: Tick | None = None) -> Dataset:
    """Data in any of the forms of FORMS.

    cache     a folder for the hashes of the files: a second start does not read them again
    progress  is called with (done, total) files
    Raises UserError; what is broken is left out and said in `findings`.
    """
    path = Path(path)
    if path.is_dir() and (listed := _manifests_in(path)):
        if len(listed) > 1:
            raise UserError(f"The folder {path} has several manifests ({some(listed)}): give the one that counts")
        path = path / listed[0]
    if (boxes := box_files.found(path)) is not None:
        return _dataset(box_files.read(boxes, cache=cache, progress=progress), str(path))
    if path.is_dir() and (pairs := pairs_in(path)) is not None:
        return _dataset(manifest.read_named(path, path, pairs, cache=cache, progress=progress), str(path))
    if path.is_dir():
        return _dataset(image_folder.read_folder(path, cache=cache, progress=progress), str(path))
    if not os.path.lexists(path):
        raise UserError(f"The data {path} does not exist: give {FORMS}")
    # Others, such as pipes, may wait for ever when they are opened.
    if path.is_file():
        if path.suffix.lower() in MANIFESTS:
            return _dataset(manifest.read_manifest(path, cache=cache, progress=progress), str(path))
        if path.suffix.lower() in ARRAY_FILES:
            return _dataset(ARRAY_FILES[path.suffix.lower()](path), str(path))
        if zipfile.is_zipfile(path):
            return _dataset(arrays.read_npz(path), str(path))
    raise UserError(f"The data {path} is none of these: {FORMS}")


def from_arrays(
    x: NDArray[Any] | Mapping[str, NDArray[Any]],
    y: NDArray[Any] | None = None,
    *,
    class_names: Sequence[str] = (),
    x_test: NDArray[Any] | Mapping[str, NDArray[Any]] | None = None,
    y_test: NDArray[Any] | None = None,
) -> Dataset:
    """Arrays as data. Where test arrays are given, they are the verdict split. Raises UserError.

    x  uint8 [N, H, W] or [N, H, W, C], or float [N, ...] or whole numbers [N, n] that are fed as they are; of networks
       with several inputs a mapping of such arrays by the inputs' names
    y  whole numbers [N] (classes) or [N, H, W] (masks), strings [N] (texts), 0 and 1 [N, K] (tags), floats [N, ...]
       (numbers), or pictures as x; None: no labels
    """
    suffix = "" if x_test is None else "_train"
    given: dict[str, Any] = _named(x, suffix)
    given |= {f"y{suffix}": y} if y is not None else {}
    given |= _named(x_test, "_test") if x_test is not None else {}
    given |= {"y_test": y_test} if y_test is not None else {}
    given |= {"class_names": list(class_names)} if len(class_names) else {}
    return _dataset(arrays.from_mapping({key: np.asarray(value) for key, value in given.items()}), "the arrays")


def for_form(data: Dataset, wanted: Form) -> Dataset:
    """The data with their classes as identities where a task reads these, else the data as they are. Identities that
    are missing in the training part are kept: such a network is asked about people that it has never seen."""
    if wanted != "identities" or data.form != "classes":
        return data
    listing = data.listing if data.listing.whole is None else without_leaks(data.listing.whole)
    names = [listing.class_names[label] for label in listing.labels.tolist()]
    found = with_identities(replace(listing, class_names=()), names)
    return replace(data, class_names=(), listing=found, findings=found.findings, sha256=_hash([data.sha256, wanted]))


def _named(x: NDArray[Any] | Mapping[str, NDArray[Any]], suffix: str) -> dict[str, Any]:
    named = dict(x) if isinstance(x, Mapping) else {"x": x}
    return {f"{name if len(named) > 1 else 'x'}{suffix}": array for name, array in named.items()}


def _manifests_in(folder: Path) -> list[str]:
    """The names of the files called "manifest" that lie directly in a folder."""
    return [f"manifest{suffix}" for suffix in MANIFESTS if (folder / f"manifest{suffix}").is_file()]


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
    if listing.form != "classes":
        if "train" not in listing.parts and listing.form != "identities":  # pairs may be for the test alone
            raise UserError(f"{source} has no readable samples to train on")
        about = json.dumps([listing.form, listing.class_names, len(listing.kinds) > 0])
        described = (
            json.dumps([content, listing.target(row), part, listing.kinds[row] if len(listing.kinds) else ""])
            for row, (content, part) in enumerate(zip(listing.contents, listing.parts, strict=True))
        )
        return Dataset(listing.class_names, listing.findings, _hash([about, *sorted(described)]), listing)
    return _with_classes(listing, source)


def _with_classes(listing: Listing, source: str) -> Dataset:
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
    kinds = listing.kinds
    described = (
        f"{content} {names[label]} {part}{f' {json.dumps(kinds[row])}' if len(kinds) else ''}"
        for row, (content, label, part) in enumerate(
            zip(listing.contents, listing.labels.tolist(), listing.parts, strict=True)
        )
    )
    return Dataset(names, findings, _hash([json.dumps(names), *sorted(described)]), listing)


def _hash(lines: Sequence[str] | Iterator[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode(errors="surrogatepass") + b"\n")  # file names need not be UTF-8
    return digest.hexdigest()
