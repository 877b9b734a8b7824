"""A training that is looked after: it never ends worse than it began, and says what befell it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.passes.train.ema import Average
from pocketfit.passes.train.guarded import guard as guarding
from pocketfit.passes.train.guarded.guard import LOOK_EVERY, MOST_FALLS, SLOWER, WINDOW, Guard
from pocketfit.passes.train.guarded.objective import Score

COUNT = 400


def score(share: float) -> Score:
    """Answers of which this share is right; the same samples are hard in each."""
    right = (np.arange(COUNT) < round(share * COUNT)).astype(np.float64)
    return Score(right, 2 - right)


class Watched:
    """A network of one number, which is also the share of right answers."""

    def __init__(self, start: float, *, ema: float = 0.0, answers: Callable[[float], Score] = score) -> None:
        self.network = nn.Linear(1, 1, bias=False)
        self.looks = 0
        self.answers = answers
        self.value = start
        self.average = Average(self.network, ema) if ema else None
        self.guard = Guard(self.network, self.ask, constant=2.0, rate=0.02, average=self.average)

    def ask(self) -> Score:
        self.looks += 1
        return self.answers(self.value)

    @property
    def value(self) -> float:
        return float(self.network.weight.detach())

    @value.setter
    def value(self, value: float) -> None:
        with torch.no_grad():
            self.network.weight.fill_(value)


def test_an_undisturbed_training_hands_over_its_last_weights_without_a_word() -> None:
    watched = Watched(0.5)
    for step in range(1, 101):
        watched.value = 0.5 + step / 300
        assert not watched.guard.fell(step, 1.0 / step)
    assert watched.guard.finish(100) == ()
    assert watched.value == pytest.approx(0.5 + 100 / 300) and watched.looks == 2, "at the start and at the end"


def test_a_collapse_is_noticed_within_a_few_steps_and_taken_back() -> None:
    watched = Watched(0.9)
    for step in range(1, 11):
        watched.guard.fell(step, 0.1)
    watched.value = 0.2
    fallen = [step for step in range(11, 11 + WINDOW) if watched.guard.fell(step, 1.9)]
    assert fallen and watched.value == pytest.approx(0.9)
    assert watched.guard.slower == SLOWER
    (said,) = watched.guard.finish(20)
    assert said == (
        f"Training with a rate of 0.02 made the network fall at step {fallen[0]}: its best weights were put back, and"
        " it went on with a rate of 0.005"
    )


def test_high_losses_whose_answers_hold_are_a_false_alarm() -> None:
    """Then the next look is waited for longer and longer."""
    watched = Watched(0.9)
    for step in range(1, 11):
        watched.guard.fell(step, 0.1)
    assert not any(watched.guard.fell(step, 1.9) for step in range(11, 111))
    assert 3 <= watched.looks <= 1 + math.ceil(math.log2(100 / WINDOW)), "at 13, 23, 43 and 83, not every time"
    assert watched.guard.finish(111) == ()


def test_what_is_not_finite_is_taken_back_at_once() -> None:
    watched = Watched(0.9)
    watched.guard.fell(1, 0.1)
    watched.value = math.nan
    assert watched.guard.fell(2, math.nan) and watched.value == pytest.approx(0.9)


def test_after_a_few_falls_the_best_weights_are_it() -> None:
    watched = Watched(0.9)
    for step in range(1, MOST_FALLS + 2):
        assert not watched.guard.gave_up
        watched.value = 0.1
        assert watched.guard.fell(step, math.nan)
    assert watched.guard.gave_up
    (said,) = watched.guard.finish(MOST_FALLS + 1)
    assert watched.value == pytest.approx(0.9)
    assert said.endswith(f"at step 1, and {MOST_FALLS} more: its best weights were put back, and it was ended")


def test_a_training_that_made_it_worse_is_returned_as_it_began() -> None:
    watched = Watched(0.9)
    watched.value = 0.85
    (said,) = watched.guard.finish(60)
    assert watched.value == pytest.approx(0.9)
    assert said == (
        "Training made it worse: after 60 steps 85.0% right of 400 samples that it was not trained with, 90.0% at step"
        " 0; the network is as it was before this training"
    )


def test_what_differs_by_chance_is_no_loss() -> None:
    """One sample of 400 more is wrong, another one is right: the training counts."""
    first, then = score(0.9), score(0.9)
    then.right[[0, 1, 399]] = 1 - then.right[[0, 1, 399]]
    answers = iter([first, then])
    watched = Watched(0.9, answers=lambda value: next(answers))
    watched.value = 0.7
    assert watched.guard.finish(60) == () and watched.value == pytest.approx(0.7)


def test_a_cross_entropy_that_rose_tells_a_loss_that_is_too_small_to_be_counted() -> None:
    first = score(0.9)
    answers = iter([first, Score(first.right, first.loss + 0.5)])
    watched = Watched(0.9, answers=lambda value: next(answers))
    watched.value = 0.7
    assert "as it was before" in watched.guard.finish(60)[0] and watched.value == pytest.approx(0.9)


def test_the_best_moment_is_kept() -> None:
    watched = Watched(0.5)
    for step in range(1, 2 * LOOK_EVERY):
        watched.value = 0.9 if step <= LOOK_EVERY else 0.7
        watched.guard.fell(step, 0.1)
    (said,) = watched.guard.finish(2 * LOOK_EVERY - 1)
    assert watched.value == pytest.approx(0.9)
    assert said.endswith(f"90.0% at step {LOOK_EVERY}; the weights of step {LOOK_EVERY} were kept")


def test_of_an_average_the_average_is_looked_at_and_restarts_after_a_fall() -> None:
    watched = Watched(0.8, ema=0.9)
    assert watched.average is not None
    for step in range(1, LOOK_EVERY + 1):
        watched.value = 0.9
        watched.average.update()
        watched.guard.fell(step, 0.1)
    assert watched.value == pytest.approx(0.9), "behind a look the weights are the network's own again"
    assert watched.guard.best.score.share == pytest.approx(0.9, abs=0.01)
    watched.value = 0.1
    watched.average.update()
    assert watched.guard.fell(LOOK_EVERY + 1, math.nan)
    watched.average.hand_over()
    assert watched.value == pytest.approx(0.9, abs=0.01)


def test_without_samples_to_spare_the_losses_alone_speak() -> None:
    assert guarding.held_rows(40) == 0
    watched = Watched(0.9, answers=lambda value: guarding.NO_SCORE)
    for step in range(1, 11):
        assert not watched.guard.fell(step, 0.1)
    watched.value = 0.1
    fallen = [step for step in range(11, 20) if watched.guard.fell(step, 10.0)]
    assert fallen and watched.value == pytest.approx(0.9)
    watched.value = 0.8
    assert len(watched.guard.finish(20)) == 1 and watched.value == pytest.approx(0.8)
