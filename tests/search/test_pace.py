"""Steps that fit the time; with a number of trials they follow from the data alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pocketfit.core.plan import Equalize, ExportSettings, Plan, QuantTrain, Round, Train
from pocketfit.search.pace import LONG_SHARE, SHORT_SHARE, Pace, grid_seconds, steps_for

from . import made

PACE = Pace(steps_per_s=4.0, verdict_s=60.0)


def test_without_a_clock_the_data_decides() -> None:
    assert steps_for(made.budget(), 64_000, 64, 1, None) == (300, 1500)
    assert steps_for(made.budget(), 100, 64, 1, None) == (30, 100)
    assert steps_for(made.budget(), 10**7, 64, 2, None) == (400, 2500)


@given(st.sampled_from(["1min", "10min", "3h"]), st.floats(0.01, 1000))
def test_a_number_of_trials_makes_steps_independent_of_the_machine(time: str, speed: float) -> None:
    """The same plans whatever the machine's speed: what a repeated run is compared with."""
    fixed = steps_for(made.budget(max_trials=8), 5000, 64, 2, None)
    assert steps_for(made.budget(max_trials=8, max_time=time), 5000, 64, 2, Pace(speed, 60.0)) == fixed


def test_with_a_time_limit_the_steps_are_what_fits() -> None:
    short, long = steps_for(made.budget(max_time="15min"), 50_000, 64, 1, PACE)
    training_s = 900 - 60 - 60 - 25 * (3 + 2)
    assert (short, long) == (round(SHORT_SHARE * training_s * 4), round(LONG_SHARE * training_s * 4))
    pruned = 0.8  # of the unpruned network's time a step, by which the pace was measured: they have fewer channels
    assert (pruned * (3 * short + 2 * long) + short + long) / 4.0 <= training_s, "all trainings and the control fit"


@given(st.integers(1, 24 * 60), st.integers(1, 10**6), st.integers(1, 2), st.floats(1e-3, 1e3), st.floats(0, 1e4))
def test_steps_grow_with_the_time_and_stay_in_their_range(
    minutes: int, samples: int, runtimes: int, speed: float, verdict_s: float
) -> None:
    pace = Pace(speed, verdict_s)
    short, long = steps_for(made.budget(max_time=f"{minutes}min"), samples, 64, runtimes, pace)
    more = steps_for(made.budget(max_time=f"{minutes + 10}min"), samples, 64, runtimes, pace)
    epoch = max(1, samples // 64)
    assert 10 <= short <= 4 * epoch + 10 and 20 <= long <= 40 * epoch + 20
    assert more[0] >= short and more[1] >= long


def test_passes_for_the_grid_take_what_they_took_before_else_what_their_samples_take() -> None:
    int8 = ExportSettings("litert", "int8")
    passes = (Equalize(samples=10), Round(samples=100), QuantTrain(5, batch_size=4))
    assert grid_seconds(Plan((Train(10),), int8), [], 0.1) == 0.0
    by_samples = 0.1 * (10 * Equalize.FACTS.steps_a_sample + 100 * Round.FACTS.steps_a_sample)
    assert abs(grid_seconds(Plan((Train(10), *passes[:2]), int8), [], 0.1) - by_samples) < 1e-9
    repaired = made.trial(1, stage="ladder", passes=passes[:2], precision="int8")  # which took 1.5 s
    known = 0.1 * 10 * Equalize.FACTS.steps_a_sample + 1.5 + 0.1 * 20 * QuantTrain.FACTS.steps_a_sample
    assert abs(grid_seconds(Plan(passes, int8), [repaired], 0.1) - known) < 1e-9
    elsewhere = made.trial(1, stage="pruned", passes=passes[:2], precision="int8")
    assert grid_seconds(Plan(passes[:2], int8), [elsewhere], 0.1) == grid_seconds(Plan(passes[:2], int8), [], 0.1)
