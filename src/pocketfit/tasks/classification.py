"""Classification: one class a sample, from outputs [n, classes] that are logits or their softmax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec
from pocketfit.core.task.task import Form, Group, Kept, Metric, Targets
from pocketfit.core.task.task_list import TaskName
from pocketfit.tasks.common.class_names import label_mapping
from pocketfit.tasks.common.probabilities import as_logits

if TYPE_CHECKING:
    from torch import Tensor

NAME: TaskName = "classification"
TITLE = "Classes"
ANSWERS = "classes"
FORM: Form = "classes"
SOFTMAX = True
METRICS: Mapping[str, Metric] = {
    "accuracy": Metric("Accuracy", "the share of samples whose first choice is right"),
    "top5": Metric("Top-5 accuracy", "the share of samples whose label is among the first five choices"),
    "balanced-accuracy": Metric("Balanced accuracy", "the mean over the classes of the accuracy in each", alike=True),
}


def why_not(outputs: Sequence[TensorSpec], labels: Sequence[str]) -> str:
    shape = outputs[0].shape
    if len(shape) != 2:
        return (
            f"The network gives the shape [batch, {', '.join(map(str, shape[1:]))}], and a classifier gives"
            " [batch, classes]: say with --task what its outputs mean"
        )
    if shape[1] == 1:
        return (
            "The network gives one number for each sample (one logit, as for BCE), and a classifier one for each class:"
            " give --task binary"
        )
    if labels and len(labels) != shape[1]:
        return f"There are {len(labels)} labels, but the network has {shape[1]} outputs: give one label for each"
    return ""


def read_targets(samples: Samples, labels: Sequence[str]) -> Samples:
    mapping = label_mapping(samples.class_names, labels)
    table = np.array([*mapping, -1], np.int64)  # the last entry maps -1 (no label) to itself
    return replace(samples, labels=table[samples.labels], class_names=tuple(labels))


def kept(outputs: NDArray[np.float32]) -> Kept:
    return outputs


def answers(kept: Kept) -> Targets:
    return np.asarray(kept.argmax(axis=1))


def has_target(targets: Targets) -> NDArray[np.bool_]:
    known: NDArray[np.bool_] = targets >= 0
    return known


def scores(metric: str, kept: Kept, targets: Targets) -> NDArray[np.float64]:
    """1 where the label is among the k largest outputs; equal outputs rank in the order of their classes."""
    if kept.ndim != 2:
        raise UserError(f"Accuracy needs outputs [n, classes]; this file gives {list(kept.shape)}")
    if int(targets.max()) >= kept.shape[1]:
        raise UserError(f"A sample has label {int(targets.max())}, but the file names {kept.shape[1]} classes only")
    own = np.take_along_axis(kept, targets[:, None], axis=1)
    earlier = np.arange(kept.shape[1])[None, :] < targets[:, None]
    rank: NDArray[np.int64] = np.sum((kept > own) | ((kept == own) & earlier), axis=1)
    return (rank < (5 if metric == "top5" else 1)).astype(np.float64)


def same(one: Targets, other: Targets) -> NDArray[np.bool_]:
    agree: NDArray[np.bool_] = one == other
    return agree


def words(target: Targets, labels: Sequence[str]) -> str:
    return labels[int(target)] if 0 <= int(target) < len(labels) else "no answer"


def groups(samples: Samples, labels: Sequence[str]) -> list[Group]:
    """The classes that occur, in their order."""
    return [
        Group(labels[label] if label < len(labels) else str(label), np.flatnonzero(samples.labels == label))
        for label in np.unique(samples.labels[samples.labels >= 0]).tolist()
    ]


def loss(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy (Szegedy et al. 2016, section 7, has the smoothing)."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(as_logits(outputs), targets, label_smoothing=label_smoothing, reduction="none")


def distance(outputs: Tensor, theirs: Tensor, temperature: float = 1.0) -> Tensor:
    """T² KL(theirs_T || outputs_T) (Hinton et al. 2015, section 2)."""
    from torch.nn.functional import kl_div

    ours, wanted = (as_logits(x).div(temperature).log_softmax(-1) for x in (outputs, theirs))
    return temperature**2 * kl_div(ours, wanted, reduction="none", log_target=True).sum(-1)


def influence(outputs: Tensor) -> Tensor:
    return loss(outputs, outputs.detach().argmax(1))
