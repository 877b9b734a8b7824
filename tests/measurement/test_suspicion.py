"""Which answers get a sentence about the preprocessing or the order of the classes, and which must not."""

import numpy as np

from pocketfit.measurement import suspicion
from pocketfit.measurement.run_samples import Scores


def scores_of(predictions, labels, metric="accuracy"):
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    right = (predictions == labels).astype(np.float64)
    return Scores(values=right, answers=predictions.astype(np.int64), metric=metric, nan=0)


def test_a_network_that_guesses_is_suspicious_and_one_that_knows_is_not():
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 500)
    guessing = suspicion.suspicious(scores_of(random.integers(0, 10, 500), labels), labels, 10)
    assert "hardly above chance (10.0%)" in guessing
    assert "preprocessing is probably not the one" in guessing
    knowing = np.where(random.random(500) < 0.5, labels, random.integers(0, 10, 500))
    assert suspicion.suspicious(scores_of(knowing, labels), labels, 10) == ""


def test_always_the_same_answer_is_suspicious():
    labels = np.array([0] * 90 + [1] * 10)
    constant = suspicion.suspicious(scores_of(np.zeros(100), labels), labels, 2)
    assert "always naming the commonest class (90.0%)" in constant
    many = np.arange(300) % 3
    lopsided = np.where(np.arange(300) % 7 == 0, many, 1)
    words = suspicion.suspicious(scores_of(lopsided, many, metric="my:metric"), many, 3)
    assert "are class 1, which 33% of the samples are" in words


def test_nearly_all_of_one_class_is_no_reason_for_an_alarm():
    """Right in all, and right in most of the rare ones, where 99 % are of one class; never naming the rare ones is."""
    labels = np.array([0] * 198 + [1] * 2)
    assert suspicion.suspicious(scores_of(labels, labels), labels, 2) == ""
    assert suspicion.suspicious(scores_of(labels, labels), labels, 5) == ""
    uneven = np.array([0] * 950 + [1] * 50)
    found = np.where((np.arange(1000) % 5 > 0), uneven, 0)
    assert suspicion.suspicious(scores_of(found, uneven), uneven, 2) == ""
    assert "always naming the commonest" in suspicion.suspicious(scores_of(uneven * 0, uneven), uneven, 2)


def test_classes_in_another_order_are_said():
    """Folders 1 to 12 sorted as text, a network that was trained in number order."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 12, 240)
    as_text = np.array(sorted(range(1, 13), key=str)) - 1
    answers = np.where(random.random(240) < 0.9, as_text[labels], random.integers(0, 12, 240))
    told = suspicion.suspicious(scores_of(answers, labels), labels, 12)
    assert "if the classes stood in another order (samples of class 1 are mostly answered as class 9" in told
    assert "--labels" in told and "would be about 9" in told
    swapped = suspicion.suspicious(scores_of(1 - labels % 2, labels % 2), labels % 2, 2)
    assert "would be about 100%" in swapped


def test_chance_is_not_taken_for_an_order():
    """With a few samples a class some order always fits those that it was taken from."""
    random = np.random.default_rng(1)
    for _ in range(20):
        labels = random.integers(0, 100, 300)
        told = suspicion.suspicious(scores_of(random.integers(0, 100, 300), labels), labels, 100)
        assert "another order" not in told
