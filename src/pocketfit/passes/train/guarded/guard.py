"""Training under a guard: a few held-out samples show whether it helps, and where it does harm it is taken back.

    before     the network is scored on the held-out samples: a training never ends worse than that
    meanwhile  losses that rise far above their lowest make the guard score again at once; where the score has fallen,
               the best weights so far come back, momentum is forgotten, and the learning rate becomes a quarter
    at the end the last weights are handed over, unless earlier ones were better by more than chance

Each scoring is a forward pass over the held-out samples: at the start, at the end, and every LOOK_EVERY steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pocketfit.core.support.processes import rank
from pocketfit.passes.train import data_parallel
from pocketfit.passes.train.ema import Average
from pocketfit.passes.train.guarded.objective import Score

HELD, HELD_SHARE = 384, 1 / 8  # held-out samples: at most so many, and at most this share of all
FEWEST_HELD = 8  # fewer held-out samples say nothing
SLOWER = 0.25  # the learning rate after a fall, as a share of that before
MOST_FALLS = 3
WINDOW = 5  # steps over which losses are averaged
RISE = 3.0  # times the lowest average loss: from here on the guard scores at once
CONSTANT_SHARE = 0.25  # share of the loss of constant logits: a loss below it raises no alarm
FALL_SHARE, FALL_ERRORS = 0.10, 3.0  # a fall: so many fewer right predictions, as a share and in standard errors
WORSE_ERRORS, WORSE_ERRORS_OF_LOSS = 1.0, 2.0  # standard errors by which earlier weights must be better to be preferred
LOOK_EVERY = 200  # steps between two scorings
NO_SCORE = Score(np.zeros(0), np.zeros(0))


def held_rows(count: int) -> int:
    """How many of `count` samples are held out.

    >>> held_rows(10_000), held_rows(400), held_rows(40)
    (384, 50, 0)
    """
    held = min(HELD, int(count * HELD_SHARE))
    return held if held >= FEWEST_HELD else 0


@dataclass(frozen=True)
class Moment:
    """Weights and buffers at one step, with their score."""

    step: int
    score: Score
    tensors: tuple[Tensor, ...]


class Guard:
    """The guard of one training; `start` is the Moment before it, `best` the best one so far.

    ask       scores the network as it is now on the guard's samples
    constant  the loss of constant logits
    rate      the learning rate of the training, for sentences
    average   the running average of the weights, where that will be handed over
    held      whether the guard's samples are held out; else they are trained with, too
    """

    _lowest: float  # of the averages since the last fall
    _patience: int  # steps
    _quiet_until: int  # the step

    def __init__(
        self,
        network: nn.Module,
        ask: Callable[[], Score],
        *,
        constant: float,
        rate: float,
        average: Average | None,
        held: bool = True,
    ) -> None:
        self._network, self._ask, self._constant, self._rate = network, ask, constant, rate
        self._which = "that it was not trained with" if held else "that it was trained with"
        self._average = average
        self.start = self.best = self._moment(0, self._score())
        self.falls: list[int] = []  # the steps at which the training fell
        self._forget()

    @property
    def slower(self) -> float:
        """The factor on the learning rate."""
        return float(SLOWER ** len(self.falls))

    @property
    def gave_up(self) -> bool:
        return len(self.falls) > MOST_FALLS

    def fell(self, step: int, loss: float) -> bool:
        """Check the training after a step; where it has fallen, put the best weights back and return True.

        loss  the step's loss over the whole batch; NaN where its gradients were not finite
        """
        self._losses.append(loss)
        due = step % LOOK_EVERY == 0
        if math.isfinite(loss):
            alarmed = self._alarmed(step)
            if not due and not alarmed:
                return False
            with self._handed_over():
                score = self._score()
                if not self._has_fallen(score):
                    if score.share >= self.best.score.share:
                        self.best = self._moment(step, score)
                    if not due:  # a false alarm: the next one has to wait twice as long
                        self._patience *= 2
                        self._quiet_until = step + self._patience
                    return False
        self.falls.append(step)
        self._put_back(self.best)
        self._forget()
        if self._average is not None:
            self._average.restart()
        return True

    def catch_up(self, change: Callable[[], None]) -> None:
        """Change the network, and take the change back where the guard's samples lose by it."""
        before = self._moment(0, self._score())
        change()
        after = self._score()
        if len(after) and not after.loss.mean() <= before.score.loss.mean():
            self._put_back(before)

    def finish(self, step: int) -> tuple[str, ...]:
        """Give the network its best weights, the last ones (or their average) unless earlier ones were better; returns
        sentences about it.
        """
        last = self._moment(step, self._score())
        chosen = last
        broken = data_parallel.from_first(not _finite(last.tensors))
        for earlier in (self.best, self.start):
            if broken or chosen.score.worse_than(earlier.score, WORSE_ERRORS, WORSE_ERRORS_OF_LOSS):
                chosen, broken = earlier, False
        if chosen is not last:
            self._put_back(chosen)
        return tuple(self._words(chosen, last))

    def _words(self, chosen: Moment, last: Moment) -> list[str]:
        said = []
        if self.falls:
            times = "" if len(self.falls) == 1 else f", and {len(self.falls) - 1} more"
            ended = "it was ended" if self.gave_up else f"it went on with a rate of {self._rate * self.slower:.2g}"
            said.append(
                f"Training with a rate of {self._rate:g} made the network fall at step {self.falls[0]}{times}: its best"
                f" weights were put back, and {ended}"
            )
        if chosen is last or chosen.step == last.step:
            return said
        after, held = f"after {last.step} steps", f"of {len(last.score)} samples {self._which}"
        if chosen.step == 0:
            kept = "the network is as it was before this training"
        else:
            kept = f"the weights of step {chosen.step} were kept"
        found = "not finite" if not _finite(last.tensors) else f"{last.score.share:.1%} right {held}"
        said.append(f"Training made it worse: {after} {found}, {chosen.score.share:.1%} at step {chosen.step}; {kept}")
        return said

    def _score(self) -> Score:
        """The score in the first process: weights are the same in all, statistics of batch norms are those of each."""
        return data_parallel.from_first(self._ask() if rank().first else NO_SCORE)

    def _alarmed(self, step: int) -> bool:
        if len(self._losses) < WINDOW:
            return False
        average = sum(self._losses) / WINDOW
        self._lowest = min(self._lowest, average)
        if step < self._quiet_until:
            return False
        return average > max(RISE * self._lowest, CONSTANT_SHARE * self._constant)

    def _has_fallen(self, score: Score) -> bool:
        if not len(score):  # no samples to score: the loss alone decides
            return sum(self._losses) / len(self._losses) > max(RISE * self._lowest, self._constant)
        best = self.best.score
        return best.share - score.share > FALL_SHARE and score.worse_than(best, FALL_ERRORS)

    def _handed_over(self) -> AbstractContextManager[None]:
        return nullcontext() if self._average is None else self._average.shown()

    def _forget(self) -> None:
        """Forget the losses before a fall: they say nothing about those after it."""
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._lowest, self._patience, self._quiet_until = math.inf, WINDOW, 0

    def _moment(self, step: int, score: Score) -> Moment:
        return Moment(step, score, tuple(tensor.detach().clone() for tensor in self._tensors()))

    @torch.no_grad()
    def _put_back(self, moment: Moment) -> None:
        for tensor, kept in zip(self._tensors(), moment.tensors, strict=True):
            tensor.copy_(kept)

    def _tensors(self) -> tuple[Tensor, ...]:
        return (*self._network.parameters(), *self._network.buffers())


def _finite(tensors: tuple[Tensor, ...]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor.is_floating_point())
