"""Ordered classes: from outputs [n, K] (logits of the classes, or their softmax) or [n, K - 1] (CORAL: logits or
probabilities of "more than class k"; Cao, Mirjalili and Raschka 2020).

Targets are those K - 1 steps as 0 and 1, so that a loss knows K. Without targets, outputs that fall from step to step
in every sample are steps: CORAL's do, by its theorem 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec
from pocketfit.core.task.task import Figure, Form, Group, Kept, Metric, Targets
from pocketfit.core.task.task_list import TaskName
from pocketfit.tasks.common.class_names import label_mapping
from pocketfit.tasks.common.probabilities import as_logits, sigmoid_divergence, sigmoid_logits, sigmoids

if TYPE_CHECKING:
    from torch import Tensor

NAME: TaskName = "ordinal"
TITLE = "Ordered classes"
ANSWERS = "classes"
FORM: Form = "classes"
SOFTMAX = False  # of one of the two kinds of outputs only
METRICS: Mapping[str, Metric] = {
    "accuracy": Metric("Accuracy", "the share of samples whose class is right"),
    "within-one": Metric("Within one class", "the share of samples whose class is right or a neighbour"),
    "closeness": Metric("Closeness", "1 less the squared distance in classes over the largest that there is"),
}
RISES = 1e-3  # of the outputs' span: so much an output may rise above the one before


def why_not(outputs: Sequence[TensorSpec], labels: Sequence[str]) -> str:
    shape = outputs[0].shape
    if len(shape) != 2 or (shape[1] or 0) < 2:
        return (
            f"The network gives the shape [batch, {', '.join(map(str, shape[1:]))}], and one for ordered classes gives"
            " [batch, classes] or [batch, classes - 1]: say with --task what its outputs mean"
        )
    if labels and len(labels) - (shape[1] or 0) not in (0, 1):
        return (
            f"There are {len(labels)} classes and {shape[1]} outputs: ordered classes need one output for each class,"
            " or one for each step between two (one less)"
        )
    return ""


def read_targets(samples: Samples, labels: Sequence[str]) -> Samples:
    """int8 [n, classes - 1]: whether a sample is above each class; -1 where it has none."""
    table = np.array([*label_mapping(samples.class_names, labels), -1], np.int64)
    return replace(samples, labels=_steps(table[samples.labels], len(labels)), class_names=tuple(labels))


def _steps(places: NDArray[np.int64], classes: int) -> NDArray[np.int8]:
    """
    >>> _steps(np.array([0, 2, -1]), 3).tolist()
    [[0, 0], [1, 1], [-1, -1]]
    """
    above = (places[:, None] > np.arange(classes - 1)).astype(np.int8)
    return np.where(places[:, None] < 0, np.int8(-1), above)


def kept(outputs: NDArray[np.float32]) -> Kept:
    if outputs.ndim != 2:
        raise UserError(f"Ordered classes need outputs [n, numbers]; this file gives {list(outputs.shape)}")
    return outputs


def answers(kept: Kept) -> Targets:
    classes = kept.shape[1] + _falls(kept)
    return _steps(_places(kept, classes), classes)


def _falls(outputs: NDArray[np.float32]) -> bool:
    """Whether the outputs of every sample fall from step to step."""
    seen = np.nan_to_num(outputs)
    span = float(np.ptp(seen)) if seen.size else 0.0
    return bool((np.diff(seen, axis=1) <= RISES * span).all())


def _places(kept: Kept, classes: int) -> NDArray[np.int64]:
    """The class of each sample, [n]."""
    if kept.shape[1] == classes:
        return np.asarray(kept.argmax(axis=1), np.int64)
    if kept.shape[1] != classes - 1:
        raise UserError(
            f"There are {classes} ordered classes, and the file gives {kept.shape[1]} numbers a sample: {classes} or"
            f" {classes - 1} are needed"
        )
    if not _falls(kept):
        raise UserError(
            f"The {kept.shape[1]} outputs for {classes} ordered classes do not fall from step to step, so they are no"
            " probabilities of 'more than class k', as CORAL gives them: give a network with one output for each class"
        )
    return np.asarray((sigmoids(kept) > 0.5).sum(axis=1), np.int64)


def has_target(targets: Targets) -> NDArray[np.bool_]:
    return np.asarray((targets.reshape(len(targets), -1) >= 0).all(axis=1))


def scores(metric: str, kept: Kept, targets: Targets) -> NDArray[np.float64]:
    steps = targets.shape[1]
    away = np.abs(_places(kept, steps + 1) - (targets > 0).sum(axis=1))
    if metric == "closeness":
        return np.asarray(1 - (away / steps) ** 2)
    return np.asarray(away <= (1 if metric == "within-one" else 0), np.float64)


def same(one: Targets, other: Targets) -> NDArray[np.bool_]:
    return np.asarray((one > 0).sum(axis=1) == (other > 0).sum(axis=1))


def words(target: Targets, labels: Sequence[str]) -> str:
    if target.min() < 0:
        return "no answer"
    place = int((target > 0).sum())
    return labels[place] if place < len(labels) else f"class {place}"


def groups(samples: Samples, labels: Sequence[str]) -> list[Group]:
    """The classes that occur, in their order."""
    places = np.where(has_target(samples.labels), (samples.labels.reshape(len(samples), -1) > 0).sum(axis=1), -1)
    rows = [(name, np.flatnonzero(places == place)) for place, name in enumerate(labels)]
    return [Group(name, own) for name, own in rows if len(own)]


def figures(answers: Targets, targets: Targets, labels: Sequence[str]) -> list[Figure]:
    """The mean distance in classes, and Cohen's kappa with quadratic weights (Cohen 1968)."""
    said, true = (steps.sum(axis=1, where=steps > 0) for steps in (answers, targets))
    away = np.abs(said.astype(np.float64) - true)
    by_chance = float(((said[:, None].astype(np.float64) - true[None]) ** 2).mean())
    kappa = 1 - float((away**2).mean()) / by_chance if by_chance > 0 else 1.0
    return [Figure("Mean distance in classes", float(away.mean())), Figure("Quadratic weighted kappa", kappa)]


def loss(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of classes, or the mean binary cross-entropy of the steps (CORAL, equation 4)."""
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    if outputs.shape[1] == targets.shape[1] + 1:
        places = (targets > 0).sum(1)
        return cross_entropy(as_logits(outputs), places, label_smoothing=label_smoothing, reduction="none")
    logits = sigmoid_logits(outputs)
    wanted = targets.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    return binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)


def distance(outputs: Tensor, theirs: Tensor, temperature: float = 1.0) -> Tensor:
    """T² KL(theirs_T || outputs_T): of the classes, or the mean over the steps."""
    from torch.nn.functional import kl_div

    if _falls(theirs.detach().cpu().float().numpy()):
        return sigmoid_divergence(outputs, theirs, temperature).mean(1)
    ours, wanted = (as_logits(x).div(temperature).log_softmax(-1) for x in (outputs, theirs))
    return temperature**2 * kl_div(ours, wanted, reduction="none", log_target=True).sum(-1)


def influence(outputs: Tensor) -> Tensor:
    """The loss by the network's own answers."""
    from torch import from_numpy

    own = answers(outputs.detach().cpu().float().numpy())
    return loss(outputs, from_numpy(own).to(outputs.device))
