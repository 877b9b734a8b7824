"""The samples of a data source before anything is decoded: one row a sample, and remarks on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.preprocess import Preprocess

Part = Literal["train", "val", "test", "left out"]


class Reader(Protocol):
    """Reads the rows of a Listing."""

    def read(self, rows: NDArray[np.int64], preprocess: Preprocess) -> Iterator[NDArray[np.generic]]:
        """These rows in order, some at a time: uint8 [n, H, W, C] after the geometry half, or float32 [n, ...]."""
        ...

    def row_shape(self, preprocess: Preprocess) -> tuple[int, ...]: ...

    def row_dtype(self) -> type[np.uint8] | type[np.float32]: ...


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All readable samples of a data source.

    names     relative paths ("train/cat/1.jpg") or places in an array ("x_train[17]")
    contents  sha256 of each sample's content: the file's bytes, or the array row's bytes and shape
    labels    int64 [N], index into class_names
    parts     the part of the data that each sample came in; "train" where the data has no parts
    findings  sentences for the user
    """

    class_names: tuple[str, ...]
    names: Sequence[str]
    contents: Sequence[str]
    labels: NDArray[np.int64]
    parts: Sequence[Part]
    reader: Reader
    findings: tuple[str, ...] = ()


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
    labels, parts, names = listing.labels, listing.parts, listing.names
    at_odds = [(rows[0], row) for rows in copies for row in rows if labels[row] != labels[rows[0]]]
    if at_odds:
        one, other = at_odds[0]
        yield (
            f"{counted(len(at_odds), 'sample has', 'samples have')} the same content as one of another class, for"
            f" example {names[one]} ({listing.class_names[labels[one]]}) = {names[other]}"
            f" ({listing.class_names[labels[other]]}); no network can get both right"
        )
    repeated = []
    for rows in copies:
        first_of: dict[tuple[Part, int], int] = {}
        for row in rows:
            first = first_of.setdefault((parts[row], int(labels[row])), row)
            if first != row:
                repeated.append((first, row))
    if repeated:
        one, other = repeated[0]
        yield (
            f"{counted(len(repeated), 'sample repeats', 'samples repeat')} another one of the same class (same"
            f" content), for example {names[one]} = {names[other]}; copies are kept, always in the same split"
        )
