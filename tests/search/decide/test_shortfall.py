"""Why limits cannot be met: the binding limit, the nearest points, and what to relax by how much."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketfit.core.trial import Trial
from pocketfit.search.decide.check_limits import check
from pocketfit.search.decide.shortfall import Shortfall, explain_shortfall, say
from tests.search import builders

BASE = builders.baseline()


def explained(trials: list[Trial], **words: str) -> Shortfall:
    found = explain_shortfall(trials, builders.budget(**words))
    assert found is not None
    return found


def test_one_binding_limit() -> None:
    trials = [
        BASE,
        builders.trial(1, size=0.3, latency=0.5, drop=0.4),
        builders.trial(2, size=0.12, latency=0.4, drop=2.3),
    ]
    found = explained(trials, max_size="0.2x", max_drop="1pt")
    assert found.binding == ("size", "drop"), "without either, a plan would do"
    small, accurate = trials[2].plan.code, trials[1].plan.code
    assert found.sentences == (
        f"--max-size 0.2x alone can be met: {small} reaches 0.12x.",
        f"With every other limit as it is, --max-size would have to be 0.3x instead of 0.2x ({accurate}).",
        f"--max-drop 1pt alone can be met: {BASE.plan.code} reaches 0pt.",
        f"With every other limit as it is, --max-drop would have to be 2.3pt instead of 1pt ({small}).",
        f"Nearest to all limits together is {accurate}: --max-size 0.3x instead of 0.2x.",
    )


def test_a_limit_that_nothing_reaches() -> None:
    found = explained([BASE, builders.trial(1, size=0.301, latency=0.5)], max_size="50kB", max_latency="0.6x")
    assert found.binding == ("size",)
    assert found.sentences[0].startswith("--max-size 50kB was not reached by any plan: the nearest is")
    assert found.sentences[0].endswith("with 0.31MB.")
    assert "--max-size would have to be 0.31MB instead of 50kB" in found.sentences[1]
    assert "--max-latency" in found.sentences[2] and len(found.sentences) == 4


def test_two_limits_at_once() -> None:
    found = explained([BASE, builders.trial(1, size=0.3, latency=0.5)], max_size="0.1x", max_latency="0.1x")
    assert found.binding == ()
    assert found.sentences[-1] == "No single limit is in the way: at least two would have to be relaxed together."


def test_what_was_not_measured_is_said() -> None:
    trials = [
        builders.trial(0, size=1, latency=1, drop=0, stage="baseline", memory=None),
        builders.trial(1, memory=None),
    ]
    found = explained(trials, max_memory="30MB")
    assert found.sentences[0] == "--max-memory 30MB: nothing can be said, because there is no /proc here."
    assert not any("With every other limit" in sentence for sentence in found.sentences)


def test_nothing_to_explain() -> None:
    assert explain_shortfall([BASE, builders.trial(1)], builders.budget(max_size="0.5x")) is None
    assert explain_shortfall([], builders.budget(max_size="0.5x")) is None
    assert explain_shortfall([builders.failed(0, stage="baseline")], builders.budget(max_size="0.5x")) is None


@given(
    st.floats(0.011, 3),
    st.floats(0.011, 3),
    st.floats(0, 30),
    st.sampled_from([{"max_size": "0.01x"}, {"max_size": "1kB"}, {"max_latency": "0.01x"}, {"max_latency": "9us"}]),
)
def test_a_relaxed_limit_would_be_met(size: float, latency: float, drop: float, words: dict[str, Any]) -> None:
    """What is said to be enough is enough: the quoted number is rounded to the lenient side."""
    trial = builders.trial(1, size=size, latency=latency, drop=drop)
    (stand,) = check(trial, BASE, builders.budget(**words))
    (option,) = words
    assert all(c.met for c in check(trial, BASE, builders.budget(**{option: say(stand)})))
    (stand,) = check(trial, BASE, builders.budget(min_accuracy="99.9%"))
    assert all(c.met for c in check(trial, BASE, builders.budget(min_accuracy=say(stand))))
    (stand,) = check(trial, BASE, builders.budget(max_drop="0pt"))
    assert all(c.met for c in check(trial, BASE, builders.budget(max_drop=say(stand))))


@pytest.mark.parametrize("accuracy", [0.57, 0.29, 0.9, 1.0])
def test_shares_are_not_rounded_down_by_binary_fractions(accuracy: float) -> None:
    (stand,) = check(builders.trial(1, drop=90 - accuracy * 100), BASE, builders.budget(min_accuracy="100%"))
    assert say(stand) in (f"{accuracy * 100:g}%", f"{accuracy * 100 - 0.1:g}%")
