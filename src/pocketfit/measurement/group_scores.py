"""Scores of groups of samples, with and without a second file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.task.task import Group


@dataclass(frozen=True)
class GroupScore:
    """Mean score of one group of samples; `candidate` and `drop_points` are None without a second file."""

    name: str
    n: int
    baseline: float
    candidate: float | None = None
    drop_points: float | None = None


def per_group(
    groups: Sequence[Group], baseline: NDArray[np.float64], candidate: NDArray[np.float64] | None = None
) -> list[GroupScore]:
    """Mean score of every group; with a candidate, the groups that lost most come first.

    >>> groups = [Group("cat", np.array([0, 1])), Group("dog", np.array([2]))]
    >>> rows = per_group(groups, np.array([1.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0]))
    >>> [(row.name, row.drop_points) for row in rows]
    [('dog', 100.0), ('cat', 0.0)]
    """
    found = []
    for group in groups:
        before = float(baseline[group.rows].mean())
        after = None if candidate is None else float(candidate[group.rows].mean())
        drop = None if after is None else 100 * (before - after)
        found.append(GroupScore(group.name, len(group.rows), before, after, drop))
    return found if candidate is None else sorted(found, key=lambda row: -(row.drop_points or 0.0))
