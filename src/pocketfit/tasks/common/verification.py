"""Verification: are two pictures of the same identity? Their embeddings' cosine is compared with a threshold.

A pair is genuine (the same identity) or an impostor pair. At a false accept rate (FAR) the threshold is the smallest
with which no larger share of the impostor pairs is accepted; the true accept rate (TAR) is the share of the genuine
pairs that lie above it (ISO/IEC 19795-1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

ROWS = 512  # embeddings that are compared with all others at a time
NORMAL = 1.96  # two-sided 95 %
ENOUGH = 3.0  # impostor pairs times FAR: with fewer, none may be accepted by chance alone (the rule of three)


@dataclass(frozen=True)
class Pairs:
    """Which pictures are compared, from targets int64 [n], their identities, or [n, 1 + k], which list the pairs: first
    a picture's own number, then 2 * (number of the other picture) + (1 where both are the same), -1 for no more.

    Of listed pairs those count whose two pictures are there.
    """

    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def listed(self) -> bool:
        return self.targets.ndim == 2

    @cached_property
    def counts(self) -> tuple[int, int]:
        """How many pairs are genuine and how many are impostor pairs."""
        if self.listed:
            same = self._list[2]
            return int(same.sum()), int((~same).sum())
        each = np.unique(self.targets[self.targets >= 0], return_counts=True)[1]
        total, genuine = int(each.sum()), int((each * (each - 1) // 2).sum())
        return genuine, total * (total - 1) // 2 - genuine

    @cached_property
    def _list(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """(rows, rows of the others, whether they are the same) of listed pairs, each pair once."""
        own, others = self.targets[:, 0], self.targets[:, 1:]
        rows, places = np.nonzero((others >= 0) & (own[:, None] >= 0))
        codes = others[rows, places]
        order = np.argsort(own, kind="stable")
        found = np.searchsorted(own, codes // 2, sorter=order)
        partner = order[np.minimum(found, len(own) - 1)] if len(own) else found
        there = own[partner] == codes // 2
        once = there & (own[rows] < codes // 2)
        return rows[once], partner[once], (codes % 2 == 1)[once]

    def compared(self, embeddings: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.int64], ...]]:
        """(rows, rows of the others, same, cosines float32) of all pairs, some at a time. An embedding that holds a
        NaN is like no other one."""
        if self.listed:
            left, right, same = self._list
            cosines = np.einsum("ij,ij->i", embeddings[left], embeddings[right])
            yield left, right, same, np.nan_to_num(cosines, nan=-1.0)  # type: ignore[misc]
            return
        known = np.flatnonzero(self.targets >= 0)
        ours, who = embeddings[known], self.targets[known]
        for start in range(0, len(known), ROWS):
            cosines = ours[start : start + ROWS] @ ours[start:].T
            left, right = np.nonzero(np.triu(np.ones(cosines.shape, bool), 1))
            same = who[start + left] == who[start + right]
            yield known[start + left], known[start + right], same, np.nan_to_num(cosines[left, right], nan=-1.0)


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A threshold on the cosine, above which two pictures count as the same, and what it does on these pairs.

    low, high  between which the threshold for this FAR lies (95 %), for all that these pairs say
    far        the share of the impostor pairs that are accepted; at most the asked one
    values     float64 [n], one a picture, whose mean is the TAR and whose variance is that of a TAR over pictures
    """

    asked: float
    threshold: float
    low: float
    high: float
    tar: float
    far: float
    genuine: int
    impostors: int
    values: NDArray[np.float64]

    def to_json(self) -> dict[str, float]:
        """All but the values."""
        return {key: value for key, value in vars(self).items() if key != "values"}


def operating_point(embeddings: NDArray[np.float32], pairs: Pairs, asked: float) -> OperatingPoint | None:
    """The threshold for a FAR, chosen on the impostor pairs; None without genuine or without impostor pairs.

    embeddings  float32 [n, width] of length 1

    A picture is in many pairs, so that pairs are not independent and pictures are. `values` are the linear parts of the
    jackknife's pseudo-values over pictures (Arvesen 1969): TAR + n (a - TAR g) / G - s n (b - FAR m) / M, with a of a
    picture's g genuine pairs accepted and b of its m impostor pairs; G and M are the numbers of all pairs, and s is the
    slope of the TAR over the FAR, by which the threshold's own chance counts. Identities are taken as given.
    """
    genuine, impostors = pairs.counts
    if not genuine or not impostors:
        return None
    allowed = _allowed(asked, impostors)
    sorted_top = _highest(embeddings, pairs, min(impostors, 2 * max(allowed, 1) + 1))
    threshold = _behind(sorted_top, allowed)
    near = [_behind(sorted_top, count) for count in (allowed // 2, 2 * max(allowed, 1))]
    each = np.zeros((4, len(pairs)))  # genuine, accepted; impostors, accepted
    passed = np.zeros(2)
    for left, right, same, cosines in pairs.compared(embeddings):
        above = cosines > threshold
        for row, chosen in enumerate((same, same & above, ~same, ~same & above)):
            each[row] += np.bincount(left[chosen], minlength=len(pairs))
            each[row] += np.bincount(right[chosen], minlength=len(pairs))
        passed += [float((same & (cosines > other)).sum()) for other in near]
    tar, far = each[1].sum() / each[0].sum(), each[3].sum() / each[2].sum()
    between = (2 * max(allowed, 1) - allowed // 2) / impostors
    slope = (passed[1] - passed[0]) / genuine / between
    off_far = len(pairs) * (each[3] - far * each[2]) / impostors
    values = tar + len(pairs) * (each[1] - tar * each[0]) / genuine - slope * off_far
    error = max(float(off_far.std()) / math.sqrt(len(pairs)), math.sqrt(asked * (1 - asked) / impostors))
    wide = _highest(embeddings, pairs, min(impostors, _allowed(asked + NORMAL * error, impostors) + 1))
    return OperatingPoint(
        asked=asked,
        threshold=threshold,
        low=_behind(wide, _allowed(asked + NORMAL * error, impostors)),
        high=_behind(wide, _allowed(max(asked - NORMAL * error, 0.0), impostors)),
        tar=float(tar),
        far=float(far),
        genuine=genuine,
        impostors=impostors,
        values=values,
    )


def pairs_needed(far: float) -> int:
    """How many impostor pairs a FAR needs.

    >>> pairs_needed(1e-5)
    300000
    """
    return math.ceil(round(ENOUGH / far, 6))


def _allowed(far: float, impostors: int) -> int:
    """How many impostor pairs may be accepted."""
    return math.floor(far * impostors + 1e-9)


def _behind(highest: NDArray[np.float32], count: int) -> float:
    """The threshold above which `count` of these cosines lie, or fewer where some are equal; -1: below all."""
    return float(highest[count]) if count < len(highest) else -1.0


def _highest(embeddings: NDArray[np.float32], pairs: Pairs, count: int) -> NDArray[np.float32]:
    """The highest `count` cosines of the impostor pairs, the highest first."""
    best = np.zeros(0, np.float32)
    for _, _, same, cosines in pairs.compared(embeddings):
        best = np.concatenate([best, cosines[~same].astype(np.float32)])
        if len(best) > count:
            best = np.partition(best, len(best) - count)[len(best) - count :]
    return np.sort(best)[::-1]
