"""Regression: one or several numbers a sample, in the units of the data, from outputs [n, ...].

Scores and losses compare errors with the spread of the targets, each number with its own, so that units do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec
from pocketfit.core.task.task import Figure, Form, Group, Kept, Metric, Targets
from pocketfit.core.task.task_list import TaskName
from pocketfit.tasks.common.kinds import by_kind

if TYPE_CHECKING:
    from torch import Tensor

NAME: TaskName = "regression"
TITLE = "Numbers"
ANSWERS = "numbers"
FORM: Form = "numbers"
SOFTMAX = False
METRICS: Mapping[str, Metric] = {
    "r2": Metric("R²", "1 less the squared error over the variance of the targets (coefficient of determination)"),
    "error-share": Metric(
        "1 - relative MAE", "1 less the absolute error over the mean distance of the targets from their median"
    ),
}
AGREED = 0.1  # of the spread: two numbers that are nearer count as the same answer
TINY = 1e-6  # a spread below this share of the numbers' size is none
QUARTERS = 4
ROWS_A_QUARTER = 5


def why_not(outputs: Sequence[TensorSpec], labels: Sequence[str]) -> str:
    return ""


def read_targets(samples: Samples, labels: Sequence[str]) -> Samples:
    return samples


def kept(outputs: NDArray[np.float32]) -> Kept:
    """The numbers of each sample, float32 [n, k]."""
    return outputs.reshape(len(outputs), -1)


def answers(kept: Kept) -> Targets:
    return kept


def has_target(targets: Targets) -> NDArray[np.bool_]:
    """Numbers are targets; the -1 of samples without one are no floats."""
    return np.full(len(targets), targets.dtype.kind == "f")


def scores(metric: str, kept: Kept, targets: Targets) -> NDArray[np.float64]:
    """The mean over a sample's numbers; below 0 where the error is larger than the spread."""
    ours, theirs = np.asarray(kept, np.float64), np.asarray(targets, np.float64)
    if ours.shape != theirs.shape:
        raise UserError(f"The data have {theirs.shape[1]} numbers a sample, and the file gives {ours.shape[1]}")
    error = np.abs(ours - theirs)
    if metric == "r2":
        return np.asarray((1 - (error / spread(theirs)) ** 2).mean(axis=1))
    off = np.abs(theirs - np.median(theirs, axis=0)).mean(axis=0)
    return np.asarray((1 - error / _sound(off, theirs)).mean(axis=1))


def spread(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """The standard deviation of each number over the samples, [k]; of a constant its size."""
    return _sound(numbers.std(axis=0), numbers)


def _sound(spread: NDArray[np.float64], numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    size = np.abs(numbers).mean(axis=0)
    return np.where(spread > TINY * size, spread, np.where(size > 0, size, 1.0))


def same(one: Targets, other: Targets) -> NDArray[np.bool_]:
    first = np.asarray(one, np.float64)
    return np.asarray((np.abs(first - other) <= AGREED * spread(first)).all(axis=1))


def words(target: Targets, labels: Sequence[str]) -> str:
    """The first few numbers."""
    few = ", ".join(f"{value:.4g}" for value in np.ravel(target)[:4].tolist())
    return f"{few}, …" if np.size(target) > 4 else few


def groups(samples: Samples, labels: Sequence[str]) -> list[Group]:
    """The kinds that the data name; without any, quarters of the samples by the first number."""
    if len(samples.kinds):
        return by_kind(samples)
    first = np.asarray(samples.labels, np.float64).reshape(len(samples), -1)[:, 0]
    if samples.labels.dtype.kind != "f" or len(first) < QUARTERS * ROWS_A_QUARTER:
        return []
    parts = np.array_split(np.argsort(first, kind="stable"), QUARTERS)
    return [Group(f"{first[rows[0]]:.4g} to {first[rows[-1]]:.4g}", np.sort(rows)) for rows in parts]


def figures(answers: Targets, targets: Targets, labels: Sequence[str]) -> list[Figure]:
    """The mean absolute error of each number, in its own unit, for up to eight numbers; else that of all together."""
    error = np.abs(np.asarray(answers, np.float64) - targets)
    count = error.shape[1]
    if count == 1 or count > 8:
        of = "" if count == 1 else f" of all {count} numbers"
        return [
            Figure(f"Mean absolute error{of}", float(error.mean())),
            Figure(f"Root mean squared error{of}", float(np.sqrt((error**2).mean()))),
        ]
    names = labels if len(labels) == count else [f"number {place}" for place in range(1, count + 1)]
    return [
        Figure(f"Mean absolute error of {name}", float(each)) for name, each in zip(names, error.mean(0), strict=True)
    ]


def loss(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Smooth L1 (Girshick 2015, equation 3) of errors in units of the batch's spread, the mean over the numbers."""
    from torch.nn.functional import smooth_l1_loss

    ours, theirs = outputs.flatten(1), targets.to(outputs.dtype).flatten(1)
    scale = _spread(theirs)
    return smooth_l1_loss(ours / scale, theirs / scale, reduction="none").mean(1)


def distance(outputs: Tensor, theirs: Tensor, temperature: float = 1.0) -> Tensor:
    """The squared error in units of the batch's spread, the mean over the numbers."""
    ours, wanted = outputs.flatten(1), theirs.flatten(1)
    return ((ours - wanted) / _spread(wanted)).square().mean(1)


def influence(outputs: Tensor) -> Tensor:
    """Half the squared distance from the mean, in units of the spread."""
    ours = outputs.flatten(1)
    seen = ours.detach()
    centre = seen.mean(0) if len(seen) > 1 else 0 * seen
    return ((ours - centre) / _spread(seen)).square().mean(1) / 2


def _spread(numbers: Tensor) -> Tensor:
    """As `spread`; a batch of few samples says little of it, so that the numbers' size counts as well."""
    from torch import where

    seen = numbers.detach()
    size = seen.abs().mean(0)
    found = seen.std(0, unbiased=False)
    if len(seen) < ROWS_A_QUARTER:
        found = found.maximum(size)
    found = where(found > TINY * size, found, size)
    return where(found > 0, found, 1.0)
