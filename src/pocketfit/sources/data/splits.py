"""Which split a sample belongs to: a function of its content hash and the split seed, and of nothing else.

Adding files, renaming them or another training seed moves no sample from one split to another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

SHARES = {"verdict": 0.15, "search": 0.10, "calibration": 0.05}  # "train" gets the rest
GIVEN_AS = {"test": "verdict", "val": "search"}  # part of the data -> the split that it becomes


def position(content_sha256: str, split_seed: int) -> float:
    """Where a sample lies in [0, 1): the first 53 bits of sha256("<split seed>:<content hash>").

    >>> round(position("00" * 32, split_seed=0), 3)
    0.39
    """
    digest = hashlib.sha256(f"{split_seed}:{content_sha256}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def assign(content_sha256: str, split_seed: int, given: Collection[str] = ()) -> str:
    """The split of a sample that the data does not assign itself: "train", "calibration", "search" (the field's
    validation split) or "verdict" (its test split).

    given  the splits that are parts of the data already: their shares go to "train"
    """
    place, limit = position(content_sha256, split_seed), 0.0
    for split, share in SHARES.items():
        if split not in given:
            limit += share
            if place < limit:
                return split
    return "train"


def order(contents: Sequence[str], labels: NDArray[np.int64], split_seed: int) -> NDArray[np.int64]:
    """The rows in an order in which the first n are a random draw with about the classes' shares, for every n.

    Within a class the smallest positions come first; row k of a class with n rows stands at (k + 0.5) / n.

    >>> order(["a", "b", "c"], np.array([0, 0, 1]), split_seed=0).tolist()
    [0, 2, 1]
    """
    places = np.array([position(content, split_seed) for content in contents])
    by_class = np.lexsort((places, labels))
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    share = np.empty(len(labels))
    share[by_class] = (rank + 0.5) / np.repeat(counts, counts)
    return np.lexsort((places, share))
