"""The choice: a pure function of the trials and the budget, in the order that its docstring states."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketfit.core.plan.prune import Prune
from pocketfit.core.plan.quantize import Equalize, QuantTrain, Round
from pocketfit.core.plan.train import Train
from pocketfit.core.trial import Trial
from pocketfit.search.decide.check_limits import check
from pocketfit.search.decide.choose import _outgrown, baselines, choose, latency_ms
from tests.search import builders

BASE = builders.baseline()


def number(trials: list[Trial], **words: Any) -> int:
    choice = choose(trials, builders.budget(**words))
    assert choice is not None
    return choice.trial.number


def test_nothing_to_choose_from() -> None:
    assert choose([], builders.budget()) is None
    assert choose([builders.failed(0, stage="baseline"), builders.trial(1)], builders.budget()) is None, (
        "no baseline, no ratio"
    )
    assert choose([builders.failed(0, stage="baseline"), builders.failed(1)], builders.budget()) is None


def test_each_trial_stands_against_the_baseline_of_its_runtime() -> None:
    other = builders.baseline(1, "onnxruntime")
    trials = [BASE, other, builders.trial(2, size=0.9), builders.trial(3, size=0.1, runtime="onnxruntime")]
    assert baselines(trials) == {"litert": BASE, "onnxruntime": other}
    choice = choose(trials, builders.budget(max_size="0.5x"))
    assert choice is not None and choice.feasible
    assert (choice.trial.number, choice.baseline) == (3, other)


def test_failed_trials_are_never_chosen() -> None:
    assert number([BASE, builders.failed(1), builders.trial(2)], prefer="size") == 2


@pytest.mark.parametrize(("prefer", "wanted"), [("size", 1), ("speed", 2), ("accuracy", 3), ("balanced", 4)])
def test_prefer_orders_the_plans_that_meet_the_limits(prefer: str, wanted: int) -> None:
    trials = [
        BASE,
        builders.trial(1, size=0.2, latency=0.8, drop=0.3),
        builders.trial(2, size=0.5, latency=0.3, drop=0.3),
        builders.trial(3, size=0.6, latency=0.7, drop=0.1),
        builders.trial(4, size=0.3, latency=0.4, drop=0.3),
        builders.trial(5, size=0.01, latency=0.01, drop=5.0),  # misses the limit
    ]
    assert number(trials, prefer=prefer, max_drop="1pt", max_size="0.9x") == wanted


def test_the_surest_tier_goes_first() -> None:
    fast_unsure = builders.trial(1, latency=0.2, drop=0.9, sure=0.5)
    fast_harmless = builders.trial(2, latency=0.3, drop=0.4, sure=0.9)
    slow_certified = builders.trial(3, latency=0.8, drop=0.5, sure=0.3)
    limits = {"prefer": "speed", "max_drop": "1pt", "max_latency": "0.9x"}
    assert number([BASE, fast_unsure], prefer="speed", max_drop="1pt", max_latency="0.5x") == 1
    assert number([BASE, fast_unsure, fast_harmless], prefer="speed", max_drop="1pt", max_latency="0.5x") == 2
    assert (
        number([builders.trial(0, latency=1.0, stage="baseline"), fast_unsure, fast_harmless, slow_certified], **limits)
        == 3
    )


def test_latencies_that_cannot_be_told_apart_are_taken_in_plan_order() -> None:
    first, faster = builders.trial(1, latency=0.51, spread=0.03), builders.trial(2, latency=0.50, spread=0.03)
    assert number([BASE, faster, first], prefer="speed") == 1
    assert number([BASE, faster, first], prefer="balanced") == 1
    clear = builders.trial(2, latency=0.40, spread=0.03)
    assert number([BASE, clear, first], prefer="speed") == 2


def test_nothing_feasible_gives_the_nearest() -> None:
    trials = [
        BASE,
        builders.trial(1, size=0.4, drop=0.1),
        builders.trial(2, size=0.3, drop=0.1),
        builders.trial(3, size=0.2, drop=9),
    ]
    choice = choose(trials, builders.budget(max_size="0.1x", max_drop="1pt"))
    assert choice is not None and not choice.feasible
    assert choice.trial.number == 2, "three times the size is nearer than eight points too many"
    alike = [BASE, builders.trial(2, size=0.3), builders.trial(1, size=0.3)]
    assert number(alike, max_size="0.1x") == 1


def test_latency_goes_by_the_interleaved_ratio() -> None:
    """A trial timed while the machine was busy keeps its ratio; its milliseconds mean nothing."""
    trials = [BASE, builders.trial(1, latency=0.5, spread=0.1)]
    choice = choose(trials, builders.budget(max_size="0.5x"))
    assert choice is not None
    assert latency_ms(choice) == pytest.approx((5.0, 4.5, 5.5))
    alone = choose([BASE], builders.budget())
    assert alone is not None
    assert latency_ms(alone) == (10.0, 10.0, 10.0)


TRIALS = st.lists(
    st.builds(
        dict,
        size=st.sampled_from([0.1, 0.2, 0.3]),
        latency=st.floats(0.3, 1.5),
        drop=st.floats(-0.5, 3),
        spread=st.sampled_from([0.0, 0.02, 0.2]),
        sure=st.floats(0, 1),
        runtime=st.sampled_from(["litert", "onnxruntime"]),
        precision=st.sampled_from(["int8", "float16"]),
    ),
    max_size=8,
)
BUDGETS = st.fixed_dictionaries(
    {"prefer": st.sampled_from(["size", "speed", "accuracy", "balanced"])},
    optional={
        "max_size": st.sampled_from(["0.15x", "250kB"]),
        "max_latency": st.sampled_from(["0.5x", "6ms", "p95:14ms"]),
        "max_drop": st.just("1pt"),
        "min_accuracy": st.just("89%"),
        "max_memory": st.just("10MB"),
    },
)


@given(TRIALS, BUDGETS, st.randoms())
def test_the_choice_does_not_hang_on_the_order_of_trials(
    settings: list[dict[str, Any]], words: dict[str, Any], random: Any
) -> None:
    trials = [BASE, builders.baseline(1, "onnxruntime"), *(builders.trial(n + 2, **s) for n, s in enumerate(settings))]
    shuffled = list(trials)
    random.shuffle(shuffled)
    limits = builders.budget(**words)
    first, second = choose(trials, limits), choose(shuffled, limits)
    assert first == second and first is not None
    alone = [all(c.met for c in check(t, trials[t.runtime == "onnxruntime"], limits)) for t in trials]
    assert first.feasible == any(alone), "a plan that meets the limits was overlooked"


def test_a_plan_that_was_trained_on_stands_in_for_its_beginning() -> None:
    brief = (Prune(0.3), Train(10))
    trials = [
        builders.baseline(),
        builders.trial(1, drop=0.3, stage="pruned", passes=brief),
        builders.trial(2, drop=0.1, stage="finalist", passes=(*brief, Train(40))),
    ]
    choice = choose(trials, builders.budget(max_drop="1pt"))
    assert choice is not None and choice.trial.number == 2
    worse = [
        trials[0],
        builders.trial(1, drop=0.1, stage="pruned", passes=brief),
        builders.trial(2, drop=0.3, stage="finalist", passes=(*brief, Train(40))),
    ]
    choice = choose(worse, builders.budget(max_drop="1pt"))
    assert choice is not None and choice.trial.number == 1


FLOAT = ((), (Prune(0.3),), (Prune(0.3), Train(10)), (Prune(0.3), Train(10), Train(40)), (Train(10),))
FOR_A_FILE = ((), (Equalize(),), (Equalize(), Round()), (Equalize(), QuantTrain(5)))
PLANS = st.tuples(st.sampled_from(FLOAT), st.sampled_from(FOR_A_FILE), st.sampled_from([0.1, 0.2, 0.3]))


@given(st.lists(PLANS, max_size=8))
def test_a_trial_is_outgrown_where_comparing_it_with_all_others_says_so(plans: list[Any]) -> None:
    """By the words of the rule: another plan that begins with this one's halves, is not the same, and lost no more."""
    trials = [
        builders.trial(number, drop=drop, passes=(*before, *behind), precision="int8")
        for number, (before, behind, drop) in enumerate(plans)
    ]

    def goes_on(one: Any, longer: Any) -> bool:
        (before, behind, _), (more_before, more_behind, _) = one, longer
        same = more_before[: len(before)] == before if before else not more_before
        return same and more_behind[: len(behind)] == behind and (before, behind) != (more_before, more_behind)

    wanted = {
        number
        for number, one in enumerate(plans)
        if one[0] or one[1]
        if any(goes_on(one, other) and other[2] <= one[2] for other in plans)
    }
    assert _outgrown(trials) == wanted


def test_thousands_of_trials_take_no_time() -> None:
    """Of 3,000 alike but for a ratio, in seconds of this process; all pairs took 40 s."""
    trials = [builders.baseline()] + [
        builders.trial(n, drop=0.1, stage="finalist", passes=(Prune(n / 4000), Train(10), Train(40)))
        for n in range(1, 3000)
    ]
    started = time.process_time()
    assert choose(trials, builders.budget(max_drop="1pt")) is not None
    assert time.process_time() - started < 3


def test_a_drop_with_room_for_the_verdict_splits_own_error_goes_first() -> None:
    tight, roomy = (
        builders.trial(1, latency=0.2, drop=0.3, sure=0.5),
        builders.trial(2, latency=0.8, drop=0.1, sure=0.4),
    )
    assert number([BASE, tight], prefer="speed", max_drop="1pt") == 1
    assert number([BASE, tight, roomy], prefer="speed", max_drop="1pt") == 2
