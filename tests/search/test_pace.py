"""Steps that fit the time; with a number of trials they follow from the data alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pocketfit.search.pace import Pace, steps_for

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
    assert (short, long) == (round(0.13 * training_s * 4), round(0.3 * training_s * 4))
    assert (3 * short + 2 * long) / 4.0 <= training_s, "three brief and two long trainings fit"


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
