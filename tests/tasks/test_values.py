"""Numbers of the tasks of single values, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pocketfit.tasks import binary, multilabel, ordinal, regression


def test_ranking_precision_of_the_literature() -> None:
    """The example of scikit-learn's label_ranking_average_precision_score, whose result is 0.4166."""
    said, wanted = np.array([[0.75, 0.5, 1], [1, 0.2, 0.1]], np.float32), np.array([[1, 0, 0], [0, 0, 1]], np.int8)
    assert multilabel.scores("ranking-precision", said, wanted).mean() == pytest.approx(5 / 12)


def test_tags_that_nobody_knows_do_not_count() -> None:
    said, wanted = np.array([[9, 9, -9, -9]], np.float32), np.array([[1, -1, 1, 0]], np.int8)
    assert multilabel.scores("f1", said, wanted).tolist() == [pytest.approx(2 / 3)]
    assert multilabel.scores("exact-set", said, wanted).tolist() == [0.0]
    assert multilabel.scores("exact-set", said, np.array([[1, -1, -1, 0]], np.int8)).tolist() == [1.0]


def test_steps_and_classes_give_the_same_ordered_answers() -> None:
    steps, classes = (
        np.array([[5, 3, -2], [-1, -2, -3]], np.float32),
        np.array([[0, 1, 9, 0], [7, 0, 1, 0]], np.float32),
    )
    truth = np.array([[1, 1, 1], [0, 0, 0]], np.int8)
    for outputs in (steps, classes):
        assert ordinal.scores("accuracy", outputs, truth).tolist() == [0.0, 1.0]
        assert ordinal.scores("within-one", outputs, truth).tolist() == [1.0, 1.0]
        assert ordinal.scores("closeness", outputs, truth) == pytest.approx([1 - 1 / 9, 1])


def test_quadratic_kappa_is_that_of_the_table_of_counts() -> None:
    said, true = np.array([0, 1, 2, 2, 3, 0, 1]), np.array([0, 2, 2, 1, 3, 1, 1])
    table = np.zeros((4, 4))
    np.add.at(table, (said, true), 1)
    apart = (np.arange(4)[:, None] - np.arange(4)) ** 2
    by_chance = np.outer(table.sum(1), table.sum(0)) / table.sum()
    rows = [(places[:, None] > np.arange(3)).astype(np.int8) for places in (said, true)]
    distance, kappa = ordinal.figures(rows[0], rows[1], tuple("abcd"))
    assert distance.value == pytest.approx(3 / 7)
    assert kappa.value == pytest.approx(1 - (apart * table).sum() / (apart * by_chance).sum())


def test_r2_does_not_depend_on_units() -> None:
    draw = np.random.default_rng(0)
    wanted = draw.normal(size=(50, 2))
    said = wanted + 0.1 * draw.normal(size=wanted.shape)
    scores = regression.scores("r2", said.astype(np.float32), wanted)
    by_hand = 1 - ((said - wanted) ** 2).sum(0) / ((wanted - wanted.mean(0)) ** 2).sum(0)
    assert scores.mean() == pytest.approx(by_hand.mean(), abs=1e-5)
    other = regression.scores("r2", (said * (1000, 0.001)).astype(np.float32), wanted * (1000, 0.001))
    assert other == pytest.approx(scores, abs=1e-4)


def test_logits_and_sigmoids_give_one_probability() -> None:
    logits = np.array([-3.0, 0.5, 4.0], np.float32)
    shares = 1 / (1 + np.exp(-logits))
    assert binary.answers(logits) == pytest.approx(shares, abs=1e-6)
    assert binary.answers(shares.astype(np.float32)) == pytest.approx(shares, abs=1e-6)
    assert binary.scores("log-score", np.zeros(2, np.float32) + 0.5, np.array([0, 1])) == pytest.approx(
        [0, 0], abs=1e-6
    )
    assert binary.scores("accuracy", logits, np.array([0, 0, 1])).tolist() == [1.0, 0.0, 1.0]
