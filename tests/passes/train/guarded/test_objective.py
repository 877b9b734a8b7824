"""What a training aims at, on whatever scale a network answers, and how well it does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.passes.train.guarded.objective import MOST_LOSS, USUAL_SPREAD, Exam, Recipe, Score, objective, scale_of

DISTILLED = Recipe(batch_size=16, learning_rate=0.02, seed=0, temperature=4.0, alpha=0.9)
LABELLED = Recipe(batch_size=16, learning_rate=0.02, seed=0)


def logits(count: int = 60, classes: int = 5, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(count, classes, generator=torch.Generator().manual_seed(0))


def samples(labels: np.ndarray) -> Samples:
    """Samples that are numbered: their only value is their row."""
    rows = np.arange(len(labels), dtype=np.float32)[:, None]
    return Samples(
        array=rows,
        labels=labels.astype(np.int64),
        names=[""] * len(labels),
        split="train",
        sha256="00",
        preprocess=Preprocess(),
    )


@pytest.mark.parametrize("spread", [0.6, 2.7, 5.7, 18.0])
def test_ordinary_answers_are_left_as_they_are(spread: float) -> None:
    assert scale_of(logits(spread=spread)) == 1.0


@pytest.mark.parametrize("factor", [1e-6, 0.01, 100.0, 1e6])
def test_answers_of_another_size_are_learned_from_as_those_of_a_usual_one(factor: float) -> None:
    """The loss is that of the same answers at the usual spread, whatever the size."""
    teacher, student = logits(), logits() + 0.3 * logits(spread=1.0).flip(0)
    usual = USUAL_SPREAD / float(teacher.var(1).mean().sqrt())
    labels = teacher.argmax(1)
    wanted = objective(student, labels, DISTILLED, teacher, scale=usual)
    found = objective(factor * student, labels, DISTILLED, factor * teacher, scale=scale_of(factor * teacher))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_answers_that_say_nothing_have_no_scale() -> None:
    assert scale_of(torch.zeros(4, 3)) == scale_of(torch.full((4, 3), math.nan)) == scale_of(torch.ones(4, 1)) == 1.0


def test_an_exam_is_marked_by_the_labels() -> None:
    answers = logits()
    labels = answers.argmax(1).numpy().copy()
    labels[:15] = (labels[:15] + 1) % 5
    exam = Exam(samples(labels), (5,), LABELLED, None)
    score = exam.score(lambda rows: answers[rows[:, 0].long()])
    assert score.share == 0.75 and not score.right[:15].any() and score.right[15:].all()
    wanted = torch.nn.functional.cross_entropy(answers, torch.from_numpy(labels), reduction="none")
    np.testing.assert_allclose(score.loss, wanted.numpy(), rtol=1e-6)
    assert exam.constant == pytest.approx(math.log(5))


def test_where_labels_are_missing_or_do_not_count_it_is_marked_by_the_teacher() -> None:
    teacher = logits()
    labels = (teacher.argmax(1).numpy() + 1) % 5

    def taught(rows: torch.Tensor) -> torch.Tensor:
        return teacher[rows[:, 0].long()]

    assert Exam(samples(labels), (5,), DISTILLED, taught).score(taught).share == 0.0
    partly = np.where(np.arange(60) < 20, -1, labels)
    assert Exam(samples(partly), (5,), DISTILLED, taught).score(taught).share == pytest.approx(1 / 3)
    whole = Recipe(batch_size=16, learning_rate=0.02, seed=0, temperature=4.0, alpha=1.0)
    assert Exam(samples(labels), (5,), whole, taught).score(taught).share == 1.0
    assert len(Exam(samples(partly), (5,), LABELLED, None).score(taught)) == 40, "the others are not marked"


def test_what_is_not_finite_is_wrong() -> None:
    answers = logits()
    labels = answers.argmax(1).numpy()
    answers[3, 0] = math.nan
    score = Exam(samples(labels), (5,), LABELLED, None).score(lambda rows: answers[rows[:, 0].long()])
    assert score.right.sum() == 59 and score.right[3] == 0 and score.loss[3] == MOST_LOSS


def test_fewer_right_answers_are_worse_beyond_chance() -> None:
    many, few = np.ones(400), np.ones(400)
    few[:40] = 0
    loss = np.zeros(400)
    assert Score(few, loss).worse_than(Score(many, loss), 3.0)
    assert not Score(many, loss).worse_than(Score(few, loss), 0.0)
    noisy = few.copy()
    noisy[360:] = 0
    noisy[:39] = 1
    other = np.ones(400)
    other[:39] = 0
    assert not Score(noisy, loss).worse_than(Score(other, loss), 1.0), "two more of 80 that differ"
    assert not Score(np.zeros(1), np.ones(1)).worse_than(Score(np.ones(1), np.ones(1)), 0.0), "one says nothing"


def test_a_cross_entropy_that_has_risen_is_worse_unless_more_answers_are_right() -> None:
    before, risen = np.linspace(0, 1, 400), np.linspace(0, 1.5, 400)
    same, more = np.ones(400), np.ones(400)
    same[:40] = 0
    assert Score(same, risen).worse_than(Score(same, before), 1.0, 2.0)
    assert not Score(same, risen).worse_than(Score(same, before), 1.0), "where it does not count"
    assert not Score(same, before).worse_than(Score(same, risen), 1.0, 2.0)
    assert not Score(more, risen).worse_than(Score(same, before), 1.0, 2.0)
