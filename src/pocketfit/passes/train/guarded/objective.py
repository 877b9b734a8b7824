"""The loss of a training, and the score of a network on held-out samples.

    loss = (1 - alpha) CE + alpha D + feature_weight AT      (distillation.py has D and AT)

Where the spread of the teacher's logits is far from that of networks trained by cross-entropy, the logits of student
and teacher are multiplied by one factor first. Otherwise a temperature of 4 does not soften them as meant: the softmax
of logits a hundred times as large still consists of ones and zeros, that of a hundredth is the same for all classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pocketfit.core.plan.train import OptimizerName
from pocketfit.core.samples import Samples
from pocketfit.passes.train import distillation as distil
from pocketfit.passes.train.batches import as_tensor

SMALLEST_SPREAD, LARGEST_SPREAD = 0.5, 20.0  # ordinary standard deviations of logits over the classes
USUAL_SPREAD = 4.0  # that of networks trained by cross-entropy; 2.7 to 5.7 were seen
MOST_LOSS = 20.0  # the loss of one sample counts at most so much, so that it can't outweigh all others
BATCH_SIZE = 64  # samples at a time, where no gradients are needed
Asked = Callable[[Tensor], Tensor]  # inputs on the CPU -> logits, with attention maps behind them if any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings that `Train` and transfer share. All but the first three are about the teacher; the names mean what
    they mean in `Train`.
    """

    batch_size: int
    learning_rate: float
    seed: int
    temperature: float = 1.0
    alpha: float = 0.0
    label_smoothing: float = 0.0
    distillation: Literal["logits", "decoupled"] = "logits"
    beta: float = 0.0
    features: tuple[str, ...] = ()
    feature_weight: float = 0.0
    ema: float = 0.0
    optimizer: OptimizerName = "sgd"
    guarded: bool = True


def objective(
    logits: Tensor,
    labels: Tensor,
    recipe: Recipe,
    wanted: Tensor | None = None,
    maps: Sequence[Tensor] = (),
    scale: float = 1.0,
) -> Tensor:
    """The loss of logits [n, classes], a number.

    labels  [n], -1 where there is none
    wanted  the teacher's logits with the attention maps behind them, from `distillation.Teacher`; None: no teacher
    maps    the network's own attention maps
    scale   the factor on all logits
    """
    logits = scale * logits.float()
    loss = 0 * logits.sum()  # so that rows without any label have a gradient too, of zeros
    if recipe.alpha < 1:
        known = labels >= 0
        if known.any():
            cross_entropy = nn.functional.cross_entropy(
                logits[known], labels[known], label_smoothing=recipe.label_smoothing
            )
            loss = loss + (1 - recipe.alpha) * cross_entropy
    if wanted is None:
        return loss
    theirs, *their_maps = torch.split(wanted, [logits.shape[1], *(ours.shape[1] for ours in maps)], 1)
    if recipe.alpha > 0:
        softened = (logits / recipe.temperature, scale * theirs / recipe.temperature)
        if recipe.distillation == "decoupled":
            divergence = distil.decoupled(*softened, labels, recipe.beta)
        else:
            divergence = distil.divergence(*softened)
        loss = loss + recipe.alpha * recipe.temperature**2 * divergence
    return loss + recipe.feature_weight * distil.attention_loss(maps, their_maps) if maps else loss


def scale_of(logits: Tensor) -> float:
    """The factor that brings the spread of logits [n, classes] to USUAL_SPREAD; 1 where it is ordinary already."""
    spread = float(logits.float().var(1).mean().sqrt()) if logits.shape[1] > 1 else 1.0
    if SMALLEST_SPREAD <= spread <= LARGEST_SPREAD or not 0 < spread < math.inf:
        return 1.0
    return USUAL_SPREAD / spread


@dataclass(frozen=True)
class Score:
    """The score of each sample, [n]: 1 where the prediction is right, else 0; and the cross-entropy. Both are against
    the label, or against the teacher's logits where labels do not count or are missing."""

    right: NDArray[np.float64]
    loss: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.right)

    @property
    def share(self) -> float:
        """The share of right predictions."""
        return float(self.right.mean()) if len(self) else math.nan

    def worse_than(self, other: Score, errors: float, errors_of_loss: float = math.inf) -> bool:
        """Whether this score is worse than another by more than chance: fewer predictions are right; or no more are
        right, and the cross-entropy is higher. The cross-entropy shows a harm that a few hundred samples are too few to
        show as wrong predictions.

        errors          paired standard errors of the right predictions that count as more than chance
        errors_of_loss  those of the cross-entropy; inf: it does not count
        """
        if len(self) < 2:
            return False
        lost = _in_errors(other.right - self.right)
        return lost > errors or (lost >= -errors and _in_errors(self.loss - other.loss) > errors_of_loss)


def _in_errors(differences: NDArray[np.float64]) -> float:
    """The mean over its standard error."""
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(len(differences))
    if error > 0:
        return mean / error
    return 0.0 if mean == 0 else math.copysign(math.inf, mean)


class Exam:
    """The samples on which a network is scored while it trains.

    scale     the factor on all logits in this training
    constant  the loss of constant logits: all classes equally likely
    """

    def __init__(self, samples: Samples, classes: int, recipe: Recipe, teacher: Asked | None) -> None:
        labels = samples.labels if recipe.alpha < 1 or teacher is None else np.full(len(samples), -1)
        self._samples, self._wanted = samples, labels
        self._soft: Tensor | None = None  # targets [n, classes], where some are the teacher's
        self.scale, theirs, some = 1.0, None, samples.first(BATCH_SIZE)
        if teacher is not None:
            theirs = _all(teacher, samples if (labels < 0).any() else some)[:, :classes]
            self.scale = scale_of(theirs[: len(some)]) if recipe.alpha > 0 else 1.0
            if (labels < 0).any():
                self._wanted = np.where(labels < 0, theirs.argmax(1).numpy(), labels)
                self._soft = (self.scale * theirs).softmax(1)
                self._soft[labels >= 0] = nn.functional.one_hot(
                    torch.from_numpy(labels[labels >= 0]), theirs.shape[1]
                ).float()
            theirs = theirs[: len(some)]
        plain = replace(recipe, features=(), feature_weight=0.0)
        given = torch.from_numpy(np.ascontiguousarray(some.labels))
        self.constant = float(objective(torch.zeros(len(some), classes), given, plain, theirs, scale=self.scale))

    def score(self, network: Asked) -> Score:
        """The network's Score by the labels, or by the teacher's predictions where labels do not count or are missing.
        Samples with neither are left out. Logits that are not finite are wrong.
        """
        logits, known = self.scale * _all(network, self._samples), self._wanted >= 0
        rows = torch.from_numpy(known)
        logits, wanted = logits[rows], torch.from_numpy(self._wanted[known])
        finite = torch.isfinite(logits).all(1)
        right = (logits.argmax(1) == wanted) & finite
        target = wanted if self._soft is None else self._soft[rows]
        loss = nn.functional.cross_entropy(logits, target, reduction="none").nan_to_num(MOST_LOSS).clamp(max=MOST_LOSS)
        return Score(right.numpy().astype(np.float64), loss.numpy().astype(np.float64))


def _all(network: Asked, samples: Samples) -> Tensor:
    parts = [samples.inputs(slice(i, i + BATCH_SIZE)) for i in range(0, len(samples), BATCH_SIZE)]
    return torch.cat([network(as_tensor(part)).float().cpu() for part in parts])
