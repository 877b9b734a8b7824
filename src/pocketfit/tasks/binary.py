"""One number a sample, [n, 1] or [n]: the logit or the sigmoid of the second of two classes.

The answer of a network is the probability itself, so that two networks can be compared without labels.
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
from pocketfit.tasks.common.probabilities import NEAR, sigmoid_divergence, sigmoid_logits, sigmoids

if TYPE_CHECKING:
    from torch import Tensor

NAME: TaskName = "binary"
TITLE = "Yes or no"
ANSWERS = "classes"
FORM: Form = "classes"
SOFTMAX = False
METRICS: Mapping[str, Metric] = {
    "accuracy": Metric("Accuracy", "the share of samples on whose side of the threshold the output lies"),
    "balanced-accuracy": Metric(
        "Balanced accuracy", "the mean over the two classes of the accuracy in each", alike=True
    ),
    "log-score": Metric("Log score", "1 less the divergence from the target in bits: 0 is a coin, 1 is sure and right"),
}
THRESHOLD = 0.5


def why_not(outputs: Sequence[TensorSpec], labels: Sequence[str]) -> str:
    shape = outputs[0].shape[1:]
    if shape not in ((), (1,)):
        return (
            f"The network gives the shape [batch, {', '.join(map(str, shape))}], and the task 'binary' is one number a"
            " sample: say with --task what its outputs mean"
        )
    if len(labels) not in (0, 2):
        return (
            f"The network gives one number for each sample, which tells two classes apart, and there are {len(labels)}:"
            " give --labels with the two names, first the one that 0 stands for"
        )
    return ""


def read_targets(samples: Samples, labels: Sequence[str]) -> Samples:
    """int64 [n]: 0, 1, or -1."""
    table = np.array([*label_mapping(samples.class_names, labels), -1], np.int64)
    return replace(samples, labels=table[samples.labels], class_names=tuple(labels))


def kept(outputs: NDArray[np.float32]) -> Kept:
    if outputs.size != len(outputs):
        raise UserError(f"The task 'binary' needs outputs [n, 1] or [n]; this file gives {list(outputs.shape)}")
    return outputs.reshape(-1)


def answers(kept: Kept) -> Targets:
    """Probabilities of the second class, float32 [n]."""
    return sigmoids(kept)


def has_target(targets: Targets) -> NDArray[np.bool_]:
    known: NDArray[np.bool_] = targets >= 0
    return known


def scores(metric: str, kept: Kept, targets: Targets) -> NDArray[np.float64]:
    share, wanted = sigmoids(kept).astype(np.float64), np.asarray(targets, np.float64)
    if metric != "log-score":
        return same(share, wanted).astype(np.float64)
    divergence = np.zeros(len(wanted))
    for ours, theirs in ((share, wanted), (1 - share, 1 - wanted)):
        ratio = np.maximum(theirs, 1e-30) / np.clip(ours, NEAR, 1 - NEAR)
        divergence += theirs * np.log2(ratio)
    return np.minimum(1 - divergence, 1.0)


def same(one: Targets, other: Targets) -> NDArray[np.bool_]:
    agree: NDArray[np.bool_] = (one > THRESHOLD) == (other > THRESHOLD)
    return agree


def words(target: Targets, labels: Sequence[str]) -> str:
    named = labels if len(labels) == 2 else ("0", "1")
    return named[int(float(target) > THRESHOLD)] if float(target) >= 0 else "no answer"


def groups(samples: Samples, labels: Sequence[str]) -> list[Group]:
    """The two classes."""
    rows = [np.flatnonzero(samples.labels == label) for label in (0, 1)]
    named = labels if len(labels) == 2 else ("0", "1")
    return [Group(name, own) for name, own in zip(named, rows, strict=True) if len(own)]


def figures(answers: Targets, targets: Targets, labels: Sequence[str]) -> list[Figure]:
    """Precision and recall of the second class, where it occurs."""
    name = labels[1] if len(labels) == 2 else "1"
    said, true = answers > THRESHOLD, targets > THRESHOLD
    both = int((said & true).sum())
    counts = {"Precision": int(said.sum()), "Recall": int(true.sum())}
    return [Figure(f"{what} of {name}", both / max(count, 1), "share") for what, count in counts.items()]


def loss(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    logits = sigmoid_logits(outputs.reshape(-1))
    wanted = targets.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    return binary_cross_entropy_with_logits(logits, wanted, reduction="none")


def distance(outputs: Tensor, theirs: Tensor, temperature: float = 1.0) -> Tensor:
    """T² KL(theirs_T || outputs_T) of yes and no."""
    return sigmoid_divergence(outputs.reshape(-1), theirs.reshape(-1), temperature)


def influence(outputs: Tensor) -> Tensor:
    return loss(outputs, (sigmoid_logits(outputs.detach().reshape(-1)) > 0).to(outputs.dtype))
