"""Fidelity: how near the outputs are to those of the original network, whatever they mean. It needs no labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec
from pocketfit.core.task.task import Form, Group, Kept, Metric, Targets
from pocketfit.core.task.task_list import TaskName

if TYPE_CHECKING:
    from torch import Tensor

NAME: TaskName = "fidelity"
TITLE = "Fidelity"
ANSWERS = "outputs"
FORM: Form = "none"
SOFTMAX = False
METRICS: Mapping[str, Metric] = {
    "cosine": Metric("Cosine to the original", "the cosine of a sample's outputs and the original network's"),
    "nearness": Metric("Nearness to the original", "1 less the relative error of a sample's outputs, at least 0"),
}
AGREED = 0.1  # relative error up to which two outputs count as the same answer: 20 dB
TINY = 1e-12


def why_not(outputs: Sequence[TensorSpec], labels: Sequence[str]) -> str:
    return ""


def read_targets(samples: Samples, labels: Sequence[str]) -> Samples:
    return samples


def kept(outputs: NDArray[np.float32]) -> Kept:
    return outputs


def answers(kept: Kept) -> Targets:
    return kept


def has_target(targets: Targets) -> NDArray[np.bool_]:
    """Outputs of a network are targets; the -1 of samples without one are not."""
    return np.full(len(targets), targets.dtype.kind == "f")


def scores(metric: str, kept: Kept, targets: Targets) -> NDArray[np.float64]:
    ours, theirs = (np.asarray(x, np.float64).reshape(len(kept), -1) for x in (kept, targets))
    if metric == "nearness":
        return np.maximum(0.0, 1 - _relative_error(ours, theirs))
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    both_zero = (np.abs(ours).max(axis=1) == 0) & (np.abs(theirs).max(axis=1) == 0)
    return np.where(both_zero, 1.0, (ours * theirs).sum(axis=1) / np.maximum(lengths, TINY))


def same(one: Targets, other: Targets) -> NDArray[np.bool_]:
    ours, theirs = (np.asarray(x, np.float64).reshape(len(one), -1) for x in (other, one))
    agree: NDArray[np.bool_] = _relative_error(ours, theirs) <= AGREED
    return agree


def words(target: Targets, labels: Sequence[str]) -> str:
    """The first few numbers."""
    few = ", ".join(f"{value:.3g}" for value in np.ravel(target)[:4].tolist())
    return f"{few}, …" if np.size(target) > 4 else few


def groups(samples: Samples, labels: Sequence[str]) -> list[Group]:
    """The kinds of samples that the data name, in the order of the alphabet."""
    kinds = np.asarray(samples.kinds, str)
    return [Group(kind, np.flatnonzero(kinds == kind)) for kind in sorted(set(samples.kinds))]


def loss(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    return distance(outputs, targets)


def distance(outputs: Tensor, theirs: Tensor, temperature: float = 1.0) -> Tensor:
    """The squared error as a share of the power of theirs, 1 / SQNR. A sample with little power counts as one with a
    hundredth of the mean power, so that it can't outweigh all others."""
    power = theirs.flatten(1).square().sum(1)
    found: Tensor = (outputs - theirs).flatten(1).square().sum(1) / power.clamp(min=float(0.01 * power.mean()) + TINY)
    return found


def influence(outputs: Tensor) -> Tensor:
    """Half the power as a share of itself: its gradient is the outputs over their power."""
    power = outputs.detach().flatten(1).square().sum(1)
    found: Tensor = outputs.flatten(1).square().sum(1) / (2 * power.clamp(min=float(0.01 * power.mean()) + TINY))
    return found


def _relative_error(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    off = np.linalg.norm(ours - theirs, axis=1)
    return np.where(off == 0, 0.0, off / np.maximum(np.linalg.norm(theirs, axis=1), TINY))
