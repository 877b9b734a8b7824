"""The loss of a training, and the score of a network on held-out samples.

    loss = (1 - alpha) L + alpha D + feature_weight AT      (the task has L and D, distillation.py AT)

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
from torch import Tensor

from pocketfit import tasks
from pocketfit.core.plan.train import OptimizerName
from pocketfit.core.samples import Samples
from pocketfit.core.task.task import Task
from pocketfit.core.task.task_list import TaskKey
from pocketfit.passes.graph.feed import Fed, each, fed
from pocketfit.passes.train import distillation as distil
from pocketfit.passes.train.batches import as_tensor
from pocketfit.tasks.common.probabilities import as_logits

SMALLEST_SPREAD, LARGEST_SPREAD = 0.5, 20.0  # ordinary standard deviations of logits over the classes
USUAL_SPREAD = 4.0  # that of networks trained by cross-entropy; 2.7 to 5.7 were seen
MOST_LOSS = 20.0  # the loss of one sample counts at most so much, so that it can't outweigh all others
BATCH_SIZE = 64  # samples at a time, where no gradients are needed
Asked = Callable[[Fed], Tensor]  # inputs on the CPU -> outputs [n, ...]; a teacher's are [n, numbers], maps behind


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
    task: TaskKey = "classification"


def objective(
    outputs: Tensor,
    labels: Tensor,
    recipe: Recipe,
    wanted: Tensor | None = None,
    maps: Sequence[Tensor] = (),
    scale: float = 1.0,
    head: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """The loss of outputs [n, ...], a number.

    labels  targets of the recipe's task [n, ...], negative where a sample has none
    wanted  the teacher's outputs [n, numbers] with the attention maps behind them, from `distillation.Teacher`; None:
            no teacher
    maps    the network's own attention maps
    scale   the factor on all logits
    head    the loss of outputs and targets, [n], where layers behind the network learn with it; None: the task's
    """
    task = tasks.get(recipe.task)
    outputs = _scaled(task, outputs.float(), scale)
    loss = 0 * outputs.sum()  # so that rows without any label have a gradient too, of zeros
    if recipe.alpha < 1:
        known = torch.from_numpy(task.has_target(labels.cpu().numpy())).to(outputs.device)
        if known.any():
            ours, own = outputs[known], labels[known]
            each = task.loss(ours, own, recipe.label_smoothing) if head is None else head(ours, own)
            loss = loss + (1 - recipe.alpha) * each.mean()
    if wanted is None:
        return loss
    theirs, *their_maps = torch.split(wanted, [outputs[0].numel(), *(ours.shape[1] for ours in maps)], 1)
    if recipe.alpha > 0:
        theirs = _scaled(task, theirs.reshape(outputs.shape), scale)
        if recipe.distillation == "decoupled":
            softened = (outputs / recipe.temperature, theirs / recipe.temperature)
            divergence = recipe.temperature**2 * distil.decoupled(*softened, labels, recipe.beta)
        else:
            divergence = task.distance(outputs, theirs, recipe.temperature).mean()
        loss = loss + recipe.alpha * divergence
    return loss + recipe.feature_weight * distil.attention_loss(maps, their_maps) if maps else loss


def _scaled(task: Task, outputs: Tensor, scale: float) -> Tensor:
    return scale * as_logits(outputs) if task.SOFTMAX else outputs


def scale_of(logits: Tensor) -> float:
    """The factor that brings the spread of logits [..., classes] to USUAL_SPREAD; 1 where it is ordinary already."""
    spread = float(logits.float().var(-1).mean().sqrt()) if logits.shape[-1] > 1 else 1.0
    if SMALLEST_SPREAD <= spread <= LARGEST_SPREAD or not 0 < spread < math.inf:
        return 1.0
    return USUAL_SPREAD / spread


@dataclass(frozen=True)
class Score:
    """The score of each sample by its task's first metric, [n] (1: right), and its loss. Both are against the target,
    or against the teacher's outputs where targets do not count or are missing."""

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
    constant  the loss of constant outputs: of logits, all classes equally likely
    """

    def __init__(self, samples: Samples, shape: Sequence[int], recipe: Recipe, teacher: Asked | None) -> None:
        """shape: of one sample's outputs."""
        self._task = tasks.get(recipe.task)
        labels = samples.labels if recipe.alpha < 1 or teacher is None else np.full(len(samples), -1)
        self._samples, self._labels, self._shape = samples, labels, tuple(shape)
        self._known = self._task.has_target(labels)
        self._theirs: Tensor | None = None  # the teacher's outputs [n, ...], where targets are missing
        self.scale, some, theirs = 1.0, samples.first(BATCH_SIZE), None
        if teacher is not None:
            answered = _all(teacher, samples if not self._known.all() else some)[:, : math.prod(shape)]
            theirs = answered[: len(some)]
            if recipe.alpha > 0 and self._task.SOFTMAX:
                self.scale = scale_of(as_logits(self._laid_out(theirs)))
            if not self._known.all():
                self._theirs = self._laid_out(answered)
        plain = replace(recipe, features=(), feature_weight=0.0)
        given = torch.from_numpy(np.array(some.labels))
        nothing = torch.zeros(len(some), *shape)
        if theirs is not None and not self._task.SOFTMAX:  # the constant that is nearest to the teacher's outputs
            nothing += theirs.mean()
        self.constant = float(objective(nothing, given, plain, theirs, scale=self.scale))

    def score(self, network: Asked) -> Score:
        """The network's Score by the targets, or by the teacher's answers where targets do not count or are missing.
        Samples with neither are left out. Outputs that are not finite are wrong.
        """
        outputs = self._laid_out(_all(network, self._samples))
        found, rows = Score(np.zeros(len(outputs)), np.zeros(len(outputs))), self._known.copy()
        if rows.any():
            own = outputs[torch.from_numpy(rows)]
            targets = self._labels[rows]
            self._fill(found, rows, own, targets, self._task.loss(self._logits(own), torch.from_numpy(targets)))
        if self._theirs is not None and not rows.all():
            missing = torch.from_numpy(~rows)
            own, theirs = outputs[missing], self._theirs[missing]
            targets = self._task.answers(self._task.kept(theirs.numpy()))
            self._fill(found, ~rows, own, targets, self._task.distance(self._logits(own), self._logits(theirs)))
            rows[:] = True
        return Score(found.right[rows], found.loss[rows])

    def _fill(
        self, score: Score, rows: NDArray[np.bool_], outputs: Tensor, targets: NDArray[np.generic], loss: Tensor
    ) -> None:
        finite = torch.isfinite(outputs).flatten(1).all(1).numpy()
        metric = next(iter(self._task.METRICS))
        right = self._task.scores(metric, self._task.kept(outputs.nan_to_num().numpy()), targets)
        score.right[rows] = np.where(finite, right, 0.0)
        score.loss[rows] = loss.nan_to_num(MOST_LOSS).clamp(max=MOST_LOSS).numpy()

    def _laid_out(self, outputs: Tensor) -> Tensor:
        return outputs.reshape(len(outputs), *self._shape)

    def _logits(self, outputs: Tensor) -> Tensor:
        return _scaled(self._task, outputs, self.scale)


def _all(network: Asked, samples: Samples) -> Tensor:
    parts = [fed(samples, slice(i, i + BATCH_SIZE)) for i in range(0, len(samples), BATCH_SIZE)]
    return torch.cat([network(_as_in_training(part)).float().cpu().flatten(1) for part in parts])


def _as_in_training(inputs: Fed) -> Fed:
    return each(inputs, lambda tensor: as_tensor(tensor.numpy()))
