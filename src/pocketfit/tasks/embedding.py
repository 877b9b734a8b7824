"""Embeddings: outputs [n, width] whose direction says who or what it is. Two pictures are compared by the cosine.

With identities (a folder by class, or a manifest's `identity`) or pairs as targets, the score is the true accept rate
at a false accept rate; every picture has a share in it (common/verification.py). Without them it is the cosine to the
original network's embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.samples import Samples, split_words
from pocketfit.core.signature import TensorSpec
from pocketfit.core.task.task import Form, Group, Kept, Metric, Targets
from pocketfit.core.task.task_list import TaskName
from pocketfit.tasks.common import verification
from pocketfit.tasks.common.verification import OperatingPoint, Pairs

if TYPE_CHECKING:
    from torch import Tensor

NAME: TaskName = "embedding"
TITLE = "Embeddings"
ANSWERS = "embeddings"
FORM: Form = "identities"
SOFTMAX = False
FARS = {f"tar-at-far-1e-{digits}": 10.0**-digits for digits in (2, 1, 3, 4, 5)}
METRICS: Mapping[str, Metric] = {
    **{
        name: Metric(
            f"TAR at FAR {100 * far:g} %",
            f"the share of the genuine pairs that are accepted where {100 * far:g} % of the impostor pairs are",
            of="labels",
        )
        for name, far in FARS.items()
    },
    "cosine": Metric(
        "Cosine to the original", "the cosine of a sample's embedding and the original network's", of="original"
    ),
}
AGREED = 0.98  # cosine from which two embeddings count as the same answer
JUDGED = ("search", "verdict")  # splits whose pairs are counted
TINY = 1e-12


def why_not(outputs: Sequence[TensorSpec], labels: Sequence[str]) -> str:
    shape = outputs[0].shape
    if len(shape) != 2 or (shape[1] or 2) < 2:
        return (
            f"The network gives the shape [batch, {', '.join(map(str, shape[1:]))}], and embeddings are [batch, width]"
            " with a width of 2 or more: say with --task what its outputs mean"
        )
    return ""


def read_targets(samples: Samples, labels: Sequence[str]) -> Samples:
    """The same samples. Raises UserError where a split that is judged has no genuine or no impostor pairs."""
    if samples.split in JUDGED:
        genuine, impostors = Pairs(samples.labels).counts
        if not genuine or not impostors:
            which = "impostor" if genuine else "genuine"
            means = "two different identities" if genuine else "the same identity"
            raise UserError(
                f"The {split_words(samples.split)} split has no {which} pair (two pictures of {means}), and"
                " verification needs both kinds: give more pictures of more identities, or say with 'split' which"
                " pictures are for the test"
            )
    return samples


def kept(outputs: NDArray[np.float32]) -> Kept:
    """The embeddings at length 1, float32 [n, width]; one of zeros stays so."""
    if outputs.ndim != 2:
        raise UserError(f"Embeddings are outputs [n, width]; this file gives {list(outputs.shape)}")
    lengths = np.linalg.norm(outputs.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(outputs / np.maximum(lengths, TINY), np.float32)


def answers(kept: Kept) -> Targets:
    return kept


def has_target(targets: Targets) -> NDArray[np.bool_]:
    """Embeddings of a network are targets; of whole numbers the first one is -1 where there is none."""
    if targets.dtype.kind == "f":
        return np.ones(len(targets), bool)
    return np.asarray(targets.reshape(len(targets), -1)[:, 0] >= 0)


def scores(metric: str, kept: Kept, targets: Targets) -> NDArray[np.float64]:
    """The share of each sample in the TAR. Against embeddings of the original network, and for want of identities
    every metric is that: the cosine."""
    if targets.dtype.kind == "f":
        return _cosines(kept, targets)
    found = operating_point(metric, kept, targets)
    return np.zeros(len(kept)) if found is None else found.values


def operating_point(metric: str, kept: Kept, targets: Targets) -> OperatingPoint | None:
    """The threshold for the metric's FAR; None without genuine or without impostor pairs."""
    return verification.operating_point(kept, Pairs(targets), FARS[metric])


def too_few(metric: str, targets: Targets, split: str) -> str:
    """A sentence where the impostor pairs are too few for the metric's FAR; ""."""
    impostors, far = Pairs(targets).counts[1], FARS.get(metric, 1.0)
    if impostors >= verification.pairs_needed(far):
        return ""
    return (
        f"A FAR of {100 * far:g} % needs {verification.pairs_needed(far):,} impostor pairs or more, and the"
        f" {split_words(split)} split has {impostors:,}: the threshold for it is little more than the most similar of"
        " them"
    )


def same(one: Targets, other: Targets) -> NDArray[np.bool_]:
    agree: NDArray[np.bool_] = _cosines(one, other) >= AGREED
    return agree


def words(target: Targets, labels: Sequence[str]) -> str:
    """An identity's number, how many pairs a picture is in, or the first few numbers of an embedding."""
    if target.dtype.kind == "f":
        return ", ".join(f"{value:.3g}" for value in np.ravel(target)[:4].tolist()) + ", …"
    if target.ndim:
        return f"in {int((target[1:] >= 0).sum())} pairs"
    return f"identity {int(target)}"


def groups(samples: Samples, labels: Sequence[str]) -> list[Group]:
    """None: a sample's score is its share in one number over pairs, which means nothing for some samples alone."""
    return []


def loss(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Of identities the angular margin among the batch's means; of listed pairs 1 - cos where both are the same, and
    the positive part of cos where not, the mean over a sample's pairs in the batch; of embeddings the distance."""
    from torch.nn.functional import normalize

    from pocketfit.tasks.common import angular_margin

    if targets.is_floating_point():
        return distance(outputs, targets)
    if targets.ndim == 1:
        return angular_margin.among_means(outputs, targets)
    ours = normalize(outputs)
    cosines = ours @ ours.T
    codes, own = targets[:, 1:], targets[:, 0]
    listed = (codes // 2)[:, :, None] == own[None, None, :]
    genuine = (listed & (codes % 2 == 1)[:, :, None]).any(1).to(ours.dtype)
    impostors = (listed & (codes % 2 == 0)[:, :, None]).any(1).to(ours.dtype)
    each = genuine * (1 - cosines) + impostors * cosines.clamp(min=0)
    return each.sum(1) / (genuine + impostors).sum(1).clamp(min=1)


def distance(outputs: Tensor, theirs: Tensor, temperature: float = 1.0) -> Tensor:
    """2 (1 - cos): the squared distance of two embeddings of length 1."""
    from torch.nn.functional import cosine_similarity

    found: Tensor = 2 * (1 - cosine_similarity(outputs, theirs, dim=1))
    return found


def influence(outputs: Tensor) -> Tensor:
    """Half the power as a share of itself: its gradient is the outputs over their power."""
    power = outputs.detach().square().sum(1)
    found: Tensor = outputs.square().sum(1) / (2 * power.clamp(min=float(0.01 * power.mean()) + TINY))
    return found


def _cosines(one: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.float64]:
    ours, theirs = (np.asarray(x, np.float64) for x in (one, other))
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    both_zero = (np.abs(ours).max(axis=1) == 0) & (np.abs(theirs).max(axis=1) == 0)
    return np.where(both_zero, 1.0, (ours * theirs).sum(axis=1) / np.maximum(lengths, TINY))
