"""The samples of a data source before anything is decoded: one row a sample, and remarks on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.signature import TensorSpec
from pocketfit.core.support.text import readable, some
from pocketfit.core.task.task import Form

Part = Literal["train", "val", "test", "left out"]
NO_LABEL = -1
MANY = 100  # identities, from which on each goes to one split as a whole; of fewer the small splits would have none
ANOTHER = {
    "classes": "of another class",
    "texts": "with another text",
    "masks": "with another mask",
    "identities": "of another identity",
    "boxes": "with other boxes",
    "tags": "with other tags",
    "numbers": "with another number",
    "pictures": "with another target",
}
SAME = {
    "classes": " of the same class",
    "texts": " with the same text",
    "masks": " with the same mask",
    "identities": " of the same identity",
    "boxes": " with the same boxes",
    "tags": " with the same tags",
    "numbers": " with the same number",
    "pictures": " with the same target",
    "none": "",
}


class Reader(Protocol):
    """Reads the rows of a Listing."""

    def read(self, rows: NDArray[np.int64], preprocess: Preprocess) -> Iterator[NDArray[np.generic]]:
        """These rows in order, some at a time: uint8 [n, H, W, C] after the geometry half, or numbers [n, ...]."""
        ...

    def row_shape(self, preprocess: Preprocess) -> tuple[int, ...]: ...

    def row_dtype(self) -> type[np.generic]: ...


class Masks(Protocol):
    """Reads the masks of a Listing's rows: the class of each pixel."""

    @property
    def contents(self) -> Sequence[str]:
        """What each mask is known by: the sha256 of its content, and what its numbers mean where that differs."""
        ...

    @property
    def highest(self) -> int:
        """The highest class in any of them."""
        ...

    def read(self, rows: NDArray[np.int64], preprocess: Preprocess) -> Iterator[NDArray[np.int16]]:
        """These rows in order, some at a time: int16 [n, H, W] after the geometry half, -1 where no class is known."""
        ...

    def shape(self, preprocess: Preprocess) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Boxes:
    """The objects of one picture.

    size  (height, width) of the picture, upright
    rows  float64 [k, 6]: x1, y1, x2, y2 in its pixels, index into class_names, and 1 for a crowd
    """

    size: tuple[int, int]
    rows: NDArray[np.float64]

    @property
    def content(self) -> str:
        """A hash of them, whatever their order."""
        ordered = sorted(self.rows.round(3).tolist())
        return hashlib.sha256(repr((self.size, ordered)).encode()).hexdigest()


class TargetPictures(Protocol):
    """Reads the pictures that a network should make of a Listing's rows."""

    @property
    def contents(self) -> Sequence[str]:
        """The sha256 of each one's content."""
        ...

    def read(self, rows: NDArray[np.int64], preprocess: Preprocess) -> Iterator[NDArray[Any]]:
        """These rows in order, some at a time: uint8 [n, H, W, C] after the geometry half, or float32 [n, C, H, W]."""
        ...

    def shape(self, preprocess: Preprocess) -> tuple[int, ...]:
        """Of one row."""
        ...

    def dtype(self) -> type[np.uint8] | type[np.float32]: ...


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All readable samples of a data source. They have targets of one form: labels, texts, masks, tags, numbers,
    pictures, or none.

    names     relative paths ("train/cat/1.jpg") or places in an array ("x_train[17]")
    contents  sha256 of each sample's content: the file's bytes, or the array row's bytes and shape
    labels    int64 [N], index into class_names; NO_LABEL where targets are of another form
    parts     the part of the data that each sample came in; "train" where the data has no parts
    findings  sentences for the user
    texts     the text of each sample; (): the targets are no texts
    masks     their reader; None: the targets are no masks
    boxes     of each picture; None: the targets are no boxes
    values    tags int8 [N, class_names], 1 where a sample has it, -1 where nobody knows; or numbers float32 [N, k];
              None: the targets are neither
    pictures  the reader of target pictures; None: the targets are none
    kinds     a word for each sample, by which reports group them; (): the data name none
    identities  int64 [N], who or what is seen, or [N, 1 + k], pairs (tasks/common/verification.py); None: neither
    together  a text for each sample; samples with the same one go to the same split; (): each goes alone
    whole     the samples with those of classes that have none to train on, all parts; None: there are no such classes
    given     what the data call the input that `reader` reads, "": nothing that counts
    more      further inputs by name, [N, ...]
    """

    class_names: tuple[str, ...]
    names: Sequence[str]
    contents: Sequence[str]
    labels: NDArray[np.int64]
    parts: Sequence[Part]
    reader: Reader
    findings: tuple[str, ...] = ()
    texts: Sequence[str] = ()
    masks: Masks | None = None
    boxes: Sequence[Boxes] | None = None
    kinds: Sequence[str] = ()
    identities: NDArray[np.int64] | None = None
    together: Sequence[str] = ()
    whole: Listing | None = None
    given: str = ""
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    values: NDArray[np.int8] | NDArray[np.float32] | None = None
    pictures: TargetPictures | None = None

    @property
    def form(self) -> Form:
        """The form of the targets."""
        values = None if self.values is None else self.values.dtype
        has: dict[Form, bool] = {
            "masks": self.masks is not None,
            "boxes": self.boxes is not None,
            "pictures": self.pictures is not None,
            "tags": values == np.int8,
            "numbers": values == np.float32,
            "texts": len(self.texts) > 0,
            "identities": self.identities is not None,
            "classes": len(self.labels) > 0 and len(self.class_names) > 0,
        }
        return next((form for form, there in has.items() if there), "none")

    def target(self, row: int) -> str:
        """What a sample's answer is compared with, as a text that differs where targets do."""
        contents = self.masks or self.pictures
        if contents is not None:
            return contents.contents[row]
        if self.boxes is not None:
            return self.boxes[row].content
        if self.values is not None:
            return self._numbers(self.values[row])
        if len(self.texts):
            return self.texts[row]
        if self.identities is not None:
            return json.dumps(self.identities[row].tolist())
        return self.class_names[self.labels[row]] if self.class_names else ""

    def _numbers(self, values: NDArray[Any]) -> str:
        """The names of a sample's tags, or its numbers."""
        if values.dtype == np.int8:
            return json.dumps([self.class_names[place] for place in np.flatnonzero(values == 1)])
        return json.dumps([float(f"{number:.7g}") for number in values.tolist()])


def inputs_for(listing: Listing, wanted: Sequence[TensorSpec]) -> tuple[str, ...]:
    """For each input of a network or a file, the name under which the listing has it.

    Names count; an input that no array is named after gets the one array that is left over, if it is one.
    Raises UserError where they don't match one by one.
    """
    names = [listing.given, *listing.more]
    own = [spec.name for spec in wanted]
    if len(names) == 1 == len(own):
        return (names[0],)
    left, missing = [name for name in names if name not in own], [name for name in own if name not in names]
    if len(names) != len(own) or len(left) > 1:
        have = some([name or "x" for name in names], 8)
        raise UserError(
            f"The network takes {counted(len(own), 'input')} ({some(own, 8)}), and the data give {have}: give an .npz"
            " file with an array for each input under its name"
        )
    return tuple(name if name in names else left[0] for name in own) if missing else tuple(own)


def counted(number: int, one: str, many: str = "") -> str:
    """
    >>> counted(1, "sample"), counted(2000, "sample")
    ('1 sample', '2,000 samples')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def without_leaks(listing: Listing) -> Listing:
    """The listing without copies between its parts, and with findings about all copies.

    Samples of test are left out of val and train, samples of val are left out of train.
    """
    parts, findings = list(listing.parts), list(listing.findings)
    rows_of: dict[str, list[int]] = {}
    for row, content in enumerate(listing.contents):
        rows_of.setdefault(content, []).append(row)
    copies = [rows for rows in rows_of.values() if len(rows) > 1]
    orders: tuple[tuple[Part, Part], ...] = (("test", "train"), ("test", "val"), ("val", "train"))
    for held, trained in orders:
        pairs = [
            (row, other)
            for rows in copies
            for row in rows
            if parts[row] == held
            for other in rows
            if parts[other] == trained
        ]
        if pairs:
            total, common = parts.count(held), len({row for row, _ in pairs})
            row, other = pairs[0]
            findings.append(
                f"{common:,} of the {counted(total, f'{held} sample')} {'is' if common == 1 else 'are'} also in the"
                f" {trained} part (same content), for example {listing.names[row]} = {listing.names[other]};"
                f" {'it is' if common == 1 else 'they are'} left out of the {trained} part"
            )
        for _, other in pairs:
            parts[other] = "left out"
    return replace(listing, parts=parts, findings=(*findings, *_about_copies(listing, copies)))


def _about_copies(listing: Listing, copies: list[list[int]]) -> Iterator[str]:
    parts, names = listing.parts, listing.names
    paired = listing.identities is not None and listing.identities.ndim == 2  # each picture has its own pairs
    targets = {row: "" if paired else listing.target(row) for rows in copies for row in rows}
    at_odds = [(rows[0], row) for rows in copies for row in rows if targets[row] != targets[rows[0]]]
    if at_odds:
        one, other = (
            names[row] if listing.form in ("masks", "boxes", "pictures") else f"{names[row]} ({readable(targets[row])})"
            for row in at_odds[0]
        )
        yield (
            f"{counted(len(at_odds), 'sample has', 'samples have')} the same content as one {ANOTHER[listing.form]},"
            f" for example {one} = {other}; no network can get both right"
        )
    repeated = []
    for rows in copies:
        first_of: dict[tuple[Part, str], int] = {}
        for row in rows:
            first = first_of.setdefault((parts[row], targets[row]), row)
            if first != row:
                repeated.append((first, row))
    if repeated:
        first, again = repeated[0]
        yield (
            f"{counted(len(repeated), 'sample repeats', 'samples repeat')} another one{SAME[listing.form]} (same"
            f" content), for example {names[first]} = {names[again]}; copies are kept, always in the same split"
        )


def with_identities(listing: Listing, names: Sequence[str]) -> Listing:
    """The listing with the identity of each sample, by its name, and a finding about how they are split."""
    known, numbers = np.unique(np.asarray(names, str), return_inverse=True)
    many = len({who for who, part in zip(names, listing.parts, strict=True) if part == "train"}) >= MANY
    together = [hashlib.sha256(f"identity {name}".encode()).hexdigest() for name in names] if many else ()
    findings = listing.findings
    if not many and "test" not in listing.parts:
        findings = (
            *findings,
            f"There are {counted(len(known), 'identity', 'identities')}, fewer than {MANY}: their pictures are spread"
            " over all splits, so that the test split shows no identity that training has not seen. Say with 'split'"
            " which pictures are for the test.",
        )
    return replace(listing, identities=numbers.astype(np.int64), together=together, findings=findings)
