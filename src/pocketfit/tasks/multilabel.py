"""Several tags a sample, or none, from outputs [n, tags]: the logit or the sigmoid of each tag on its own."""

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
from pocketfit.tasks.common.probabilities import sigmoid_divergence, sigmoid_logits, sigmoids

if TYPE_CHECKING:
    from torch import Tensor

NAME: TaskName = "multilabel"
TITLE = "Tags"
ANSWERS = "tags"
FORM: Form = "tags"
SOFTMAX = False
METRICS: Mapping[str, Metric] = {
    "ranking-precision": Metric(
        "Ranking precision", "how far the tags of a sample come before all others (label-ranking average precision)"
    ),
    "f1": Metric("F1", "twice the tags found over those found and those wanted, the mean over the samples"),
    "exact-set": Metric("Exact set", "the share of samples whose tags are all found, and no other"),
}
THRESHOLD = 0.5
NO_TAG = "no tag"


def why_not(outputs: Sequence[TensorSpec], labels: Sequence[str]) -> str:
    shape = outputs[0].shape
    if len(shape) != 2:
        return (
            f"The network gives the shape [batch, {', '.join(map(str, shape[1:]))}], and a network of tags gives"
            " [batch, tags]: say with --task what its outputs mean"
        )
    if labels and len(labels) != shape[1]:
        return f"There are {len(labels)} labels, but the network has {shape[1]} outputs: give one label for each"
    return ""


def read_targets(samples: Samples, labels: Sequence[str]) -> Samples:
    """int8 [n, tags]: 1 where a sample has the tag, 0 where not, -1 where the data do not know the tag. Raises
    UserError for a tag that the network does not know."""
    known = np.full((len(samples), len(labels)), -1, np.int8)
    known[:, label_mapping(samples.class_names, labels)] = samples.labels
    return replace(samples, labels=known, class_names=tuple(labels))


def kept(outputs: NDArray[np.float32]) -> Kept:
    if outputs.ndim != 2:
        raise UserError(f"Tags need outputs [n, tags]; this file gives {list(outputs.shape)}")
    return outputs


def answers(kept: Kept) -> Targets:
    """The tags whose probability is above 0.5, int8 [n, tags]."""
    return (sigmoids(kept) > THRESHOLD).astype(np.int8)


def has_target(targets: Targets) -> NDArray[np.bool_]:
    return np.asarray((targets.reshape(len(targets), -1) >= 0).any(axis=1))


def scores(metric: str, kept: Kept, targets: Targets) -> NDArray[np.float64]:
    """Tags that the data do not know do not count. A sample without tags has all of them, and F1 1 where none is said.

    The ranking precision is the mean over a sample's tags of (own tags) / (all tags) among those that are at least as
    probable (Schapire and Singer 2000; scikit-learn's label_ranking_average_precision_score).
    """
    if targets.shape != kept.shape:
        raise UserError(f"The data have {targets.shape[1]} tags, but the file gives {kept.shape[1]} numbers a sample")
    if metric == "ranking-precision":
        return np.array([_ranking(row, own) for row, own in zip(kept, targets, strict=True)])
    said, known = answers(kept), targets >= 0
    if metric == "exact-set":
        return np.asarray(((said == targets) | ~known).all(axis=1), np.float64)
    wanted = targets == 1
    said = (said == 1) & known
    total = said.sum(axis=1) + wanted.sum(axis=1)
    return np.asarray(np.where(total > 0, 2 * (said & wanted).sum(axis=1) / np.maximum(total, 1), 1.0))


def _ranking(outputs: NDArray[np.float32], targets: Targets) -> float:
    own, every = np.sort(outputs[targets == 1]), np.sort(outputs[targets >= 0])
    if not len(own):
        return 1.0
    among_own = len(own) - np.searchsorted(own, own)
    among_all = len(every) - np.searchsorted(every, own)
    return float((among_own / among_all).mean())


def same(one: Targets, other: Targets) -> NDArray[np.bool_]:
    return np.asarray((one == other).all(axis=1))


def words(target: Targets, labels: Sequence[str]) -> str:
    named = [labels[i] if i < len(labels) else str(i) for i in np.flatnonzero(target == 1).tolist()]
    return ", ".join(named) or NO_TAG


def groups(samples: Samples, labels: Sequence[str]) -> list[Group]:
    """The samples that have each tag, and those without any; none where the data have no tags."""
    if samples.labels.ndim != 2:
        return []
    rows = [(labels[tag], np.flatnonzero(samples.labels[:, tag] == 1)) for tag in range(len(labels))]
    rows.append((NO_TAG, np.flatnonzero(~(samples.labels == 1).any(axis=1))))
    return [Group(name, own) for name, own in rows if len(own)]


def figures(answers: Targets, targets: Targets, labels: Sequence[str]) -> list[Figure]:
    """F1 of each tag that some sample has, over the samples of which it is known."""
    found = []
    for tag, name in enumerate(labels):
        known = targets[:, tag] >= 0
        said, wanted = answers[known, tag] == 1, targets[known, tag] == 1
        if wanted.any():
            f1 = 2 * float((said & wanted).sum()) / float(said.sum() + wanted.sum())
            found.append(Figure(f"F1 of {name}", f1, "share"))
    return found


def loss(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy, the mean over the tags that are known."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    logits, known = sigmoid_logits(outputs), targets >= 0
    wanted = targets.clamp(min=0).to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    each = binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (each * known).sum(1) / known.sum(1).clamp(min=1)


def distance(outputs: Tensor, theirs: Tensor, temperature: float = 1.0) -> Tensor:
    """T² KL(theirs_T || outputs_T) of yes and no, the mean over the tags."""
    return sigmoid_divergence(outputs, theirs, temperature).mean(1)


def influence(outputs: Tensor) -> Tensor:
    return loss(outputs, (sigmoid_logits(outputs.detach()) > 0).to(outputs.dtype))
