"""Every quantity against its limit: in its unit, relative to the baseline, by point estimate and by bound."""

from __future__ import annotations

from typing import Any

import pytest

from pocketfit.core.budget import Limit
from pocketfit.search.decide.check_limits import Check, check
from tests.search import builders

BASE = builders.baseline()
TRIAL = builders.trial(1, size=0.3, latency=0.5, drop=0.6, spread=0.1, sure=0.3)


def checked(trial: Any = TRIAL, **words: str) -> Check:
    (found,) = check(trial, BASE, builders.budget(**words))
    return found


@pytest.mark.parametrize(
    ("words", "value", "worst"),
    [
        ({"max_size": "1MB"}, 300_000, 300_000),
        ({"max_size": "0.5x"}, 0.3, 0.3),
        ({"max_download": "1MB"}, 270_000, 270_000),
        ({"max_download": "0.5x"}, 0.3, 0.3),
        ({"max_memory": "30MB"}, 20e6, None),
        ({"max_memory": "2x"}, 1.0, None),
        ({"max_latency": "9ms"}, 5.0, 5.5),
        ({"max_latency": "0.9x"}, 0.5, 0.55),
        ({"max_latency": "p95:20ms"}, 10.0, 12.5),
        ({"max_drop": "1pt"}, 0.6, 0.9),
        ({"min_accuracy": "80%"}, 0.894, None),
    ],
)
def test_value_and_bound_of_each_quantity(words: dict[str, str], value: float, worst: float | None) -> None:
    found = checked(**words)
    assert found.value == pytest.approx(value)
    assert found.worst is None if worst is None else found.worst == pytest.approx(worst)
    assert found.met and found.excess == 0
    assert found.certified == (worst is not None), "what has no bound is met, but never certified"


@pytest.mark.parametrize(
    ("words", "met", "certified"),
    [
        ({"max_drop": "0.6pt"}, True, False),
        ({"max_drop": "0.9pt"}, True, True),
        ({"max_drop": "0.59pt"}, False, False),
        ({"max_latency": "0.5x"}, True, False),
        ({"max_latency": "0.55x"}, True, True),
        ({"max_latency": "0.49x"}, False, False),
        ({"max_size": "0.3MB"}, True, True),
        ({"max_size": "0.299MB"}, False, False),
        ({"min_accuracy": "0.895"}, False, False),
    ],
)
def test_met_goes_by_the_estimate_and_certified_by_the_bound(words: dict[str, str], met: bool, certified: bool) -> None:
    found = checked(**words)
    assert (found.met, found.certified) == (met, certified)


@pytest.mark.parametrize(
    ("words", "excess"),
    [
        ({"max_size": "0.15x"}, 1.0),
        ({"max_size": "0.2MB"}, 0.5),
        ({"max_latency": "4ms"}, 0.25),
        ({"max_drop": "0.1pt"}, 0.5),
        ({"max_drop": "0pt"}, 0.6),
        ({"min_accuracy": "90%"}, 0.6),
    ],
)
def test_excess_is_a_share_of_the_limit_or_points(words: dict[str, str], excess: float) -> None:
    found = checked(**words)
    assert not found.met
    assert found.excess == pytest.approx(excess)


@pytest.mark.parametrize("words", [{"max_latency": "0.9x"}, {"max_latency": "9ms"}, {"max_latency": "p95:20ms"}])
def test_what_other_work_ran_beside_is_met_and_bounded_but_not_certified(words: dict[str, str]) -> None:
    found = checked(builders.trial(1, latency=0.5, disturbed=("others used 1 core", "memory was slow")), **words)
    assert found.met and found.bounded and not found.certified
    assert found.to_json()["reason"] == "others used 1 core; memory was slow"
    assert checked(TRIAL, **words).certified


def test_what_could_not_be_measured_is_not_met_and_says_why() -> None:
    unknown = builders.trial(1, memory=None)
    found = checked(unknown, max_memory="30MB")
    assert (found.value, found.met, found.certified, found.excess) == (None, False, False, float("inf"))
    assert found.reason == "there is no /proc here"
    assert checked(TRIAL, max_latency="p99:60ms").reason == "it was not measured"
    (relative,) = check(TRIAL, builders.failed(0, stage="baseline"), builders.budget(max_size="0.5x"))
    assert relative.value is None and "baseline" in relative.reason


def test_json_has_the_unit_of_the_limit() -> None:
    assert checked(max_size="0.5x").to_json()["unit"] == "x"
    assert checked(max_latency="p95:20ms").to_json()["unit"] == "ms"
    assert checked(max_size="1MB").to_json() == {
        "quantity": "size",
        "text": "1MB",
        "limit": 1e6,
        "value": 300_000,
        "worst": 300_000,
        "unit": "B",
        "met": True,
        "certified": True,
        "reason": "",
    }


def test_no_limits_no_checks() -> None:
    assert check(TRIAL, BASE, builders.budget()) == ()
    assert Check(Limit("size", 1.0), 1.0, 1.0).met
