"""Segmentation: a class for each place, from outputs [n, 1, H, W] (one map, foreground or not) or [n, classes, H, W].

One map holds probabilities, as sigmoid gives them, or logits; a map whose numbers all lie from 0 to 1 is taken for
probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec
from pocketfit.core.task.task import Form, Group, Kept, Metric, Targets
from pocketfit.core.task.task_list import TaskName

if TYPE_CHECKING:
    from torch import Tensor

NAME: TaskName = "segmentation"
TITLE = "Segmentation maps"
ANSWERS = "maps"
FORM: Form = "masks"
SOFTMAX = False  # classes lie along axis 1, and a single map has none
METRICS: Mapping[str, Metric] = {
    "iou": Metric("IoU", "intersection over union, the mean over the classes of a picture, then over the pictures"),
    "pixel-accuracy": Metric("Pixel accuracy", "the share of places whose class is right"),
}
IGNORED = -1
MOST_CLASSES = 255
LEAST = 1e-4  # a probability nearer to 0 or 1 counts as this near
AGREED = 0.95  # IoU from which two maps count as the same answer
SAME_SIZE = "the mask of a sample has the size of the network's map"


def why_not(outputs: Sequence[TensorSpec], labels: Sequence[str]) -> str:
    shape = outputs[0].shape
    if len(shape) != 4 or (shape[1] or 1) > MOST_CLASSES:
        return (
            f"The network gives the shape [batch, {', '.join(map(str, shape[1:]))}], and a segmentation gives"
            f" [batch, classes, height, width] with at most {MOST_CLASSES} classes: say with --task what its outputs"
            " mean"
        )
    return ""


def read_targets(samples: Samples, labels: Sequence[str]) -> Samples:
    return samples


def kept(outputs: NDArray[np.float32]) -> Kept:
    """The class of each place, uint8 [n, H, W]."""
    if outputs.ndim != 4:
        raise UserError(f"Segmentation needs outputs [n, classes, H, W]; this file gives {list(outputs.shape)}")
    if outputs.shape[1] > 1:
        return np.asarray(outputs.argmax(axis=1), np.uint8)
    flat = outputs.reshape(len(outputs), -1)
    shares = (flat.min(axis=1) >= 0) & (flat.max(axis=1) <= 1)
    return (outputs[:, 0] > np.where(shares, 0.5, 0.0)[:, None, None]).astype(np.uint8)


def answers(kept: Kept) -> Targets:
    return kept.astype(np.int16)  # with room for -1


def has_target(targets: Targets) -> NDArray[np.bool_]:
    known: NDArray[np.bool_] = (targets.reshape(len(targets), -1) != IGNORED).any(axis=1)
    return known


def scores(metric: str, kept: Kept, targets: Targets) -> NDArray[np.float64]:
    """Places whose target is -1 do not count. A picture in which neither has the foreground scores 1."""
    if kept.shape != targets.shape:
        raise UserError(
            f"The masks are {_words(targets.shape[1:])} and the file's maps {_words(kept.shape[1:])}: {SAME_SIZE}"
        )
    counted = targets != IGNORED
    if metric == "pixel-accuracy":
        right = ((kept == targets) & counted).reshape(len(kept), -1).sum(axis=1)
        return np.asarray(right / np.maximum(counted.reshape(len(kept), -1).sum(axis=1), 1))
    highest = int(max(kept.max(initial=0), targets.max(initial=0)))
    found = np.zeros((len(kept), highest + 1))
    present = np.zeros((len(kept), highest + 1), bool)
    for label in range(highest + 1):
        ours, theirs = (kept == label) & counted, (targets == label) & counted
        both, either = (x.reshape(len(kept), -1).sum(axis=1) for x in (ours & theirs, ours | theirs))
        found[:, label], present[:, label] = both / np.maximum(either, 1), either > 0
    if highest <= 1:  # foreground alone: the background is most of such a picture, and says little
        return np.where(present[:, -1] if highest else False, found[:, -1], 1.0)
    return np.asarray((found * present).sum(axis=1) / np.maximum(present.sum(axis=1), 1))


def same(one: Targets, other: Targets) -> NDArray[np.bool_]:
    agree: NDArray[np.bool_] = scores("iou", one, other) >= AGREED
    return agree


def words(target: Targets, labels: Sequence[str]) -> str:
    """The share of the picture that each class has."""
    counted = max(int((target != IGNORED).sum()), 1)
    shares = {int(label): float((target == label).sum()) / counted for label in np.unique(target) if label > 0}
    named = [f"{labels[i] if i < len(labels) else f'class {i}'} {share:.1%}" for i, share in shares.items()]
    return ", ".join(named) or "background only"


def groups(samples: Samples, labels: Sequence[str]) -> list[Group]:
    """The kinds of pictures that the data name, in the order of the alphabet."""
    kinds = np.asarray(samples.kinds, str)
    return [Group(kind, np.flatnonzero(kinds == kind)) for kind in sorted(set(samples.kinds))]


def loss(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The mean over the places of the cross-entropy, binary for one map."""
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    counted = targets != IGNORED
    if outputs.shape[1] == 1:
        each = binary_cross_entropy_with_logits(
            _logits(outputs)[:, 0], targets.clamp(min=0).to(outputs.dtype), reduction="none"
        )
    else:
        each = cross_entropy(
            outputs,
            targets.long(),
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
            reduction="none",
        )
    return (each * counted).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)


def distance(outputs: Tensor, theirs: Tensor, temperature: float = 1.0) -> Tensor:
    """The mean over the places of T² KL(theirs_T || outputs_T); one map is a distribution over two classes."""
    from torch.nn.functional import kl_div

    ours, wanted = (_log_shares(x, temperature) for x in (outputs, theirs))
    return temperature**2 * kl_div(ours, wanted, reduction="none", log_target=True).sum(1).flatten(1).mean(1)


def influence(outputs: Tensor) -> Tensor:
    logits = _logits(outputs) if outputs.shape[1] == 1 else outputs
    seen = logits.detach()
    return loss(logits, (seen[:, 0] > 0).long() if outputs.shape[1] == 1 else seen.argmax(1))


def _logits(outputs: Tensor) -> Tensor:
    """Logits of one map [n, 1, H, W]."""
    seen = outputs.detach()
    if float(seen.min()) < 0 or float(seen.max()) > 1:
        return outputs
    return outputs.clamp(LEAST, 1 - LEAST).logit()


def _log_shares(outputs: Tensor, temperature: float) -> Tensor:
    from torch import cat
    from torch.nn.functional import logsigmoid

    if outputs.shape[1] > 1:
        return outputs.div(temperature).log_softmax(1)
    logits = _logits(outputs) / temperature
    return cat([logsigmoid(logits), logsigmoid(-logits)], 1)


def _words(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
