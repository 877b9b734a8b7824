"""Allocation: against every possible answer on small cases, in seconds on large ones, refusals as sentences."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketfit.core.errors import UserError
from pocketfit.core.plan.prune import Prune
from pocketfit.numerics.channel_shapes import Term
from pocketfit.search.propose import allocate_widths
from pocketfit.search.propose.allocate_widths import Choice


def made(seed: int, groups: int, most: int, *, step: int = 1) -> tuple[list[Choice], tuple[Term, ...]]:
    """Groups in a chain: each layer's cost is a product of two neighbours' blocks, as a convolution's is."""
    random = np.random.default_rng(seed)
    choices = []
    for number in range(groups):
        widths = tuple(range(8, 8 * (most + 1), 8))
        scores = random.exponential(1.0, widths[-1]) * random.uniform(0.1, 3.0)
        choices.append(allocate_widths.from_scores(f"g{number}", widths, scores))
    names = [choice.layer for choice in choices]
    weight = random.uniform(0.2, 2.0, groups + 1)
    terms = [Term((), lambda _: 1.0), Term((names[0],), lambda w: weight[0] * -(-w[0] // step))]
    for number in range(1, groups):
        pair = (names[number - 1], names[number])
        terms.append(Term(pair, lambda w, k=weight[number]: k * -(-w[0] // step) * -(-w[1] // step) / 8 + k))
    return choices, tuple(terms)


def best_of_all(choices: list[Choice], terms: tuple[Term, ...], target: float) -> float:
    least = np.inf
    for combination in itertools.product(*(choice.widths for choice in choices)):
        widths = dict(zip((c.layer for c in choices), combination, strict=True))
        if allocate_widths.cost_of(terms, widths) <= target * (1 + 1e-9):
            least = min(least, allocate_widths.lost(choices, widths))
    return float(least)


def whole_cost(choices: list[Choice], terms: tuple[Term, ...]) -> float:
    return allocate_widths.cost_of(terms, {c.layer: c.whole for c in choices})


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.floats(0.35, 0.95), st.sampled_from([1, 16]))
def test_cost_aware_is_near_the_best_of_all_answers(seed: int, groups: int, most: int, share: float, step: int) -> None:
    choices, terms = made(seed, groups, most, step=step)
    target = share * whole_cost(choices, terms)
    least = best_of_all(choices, terms, target)
    if least == np.inf:
        with pytest.raises(UserError, match="smallest widths"):
            allocate_widths.cost_aware(choices, terms, target)
        return
    widths = allocate_widths.cost_aware(choices, terms, target)
    assert allocate_widths.cost_of(terms, widths) <= target * (1 + 1e-6)
    everything = sum(choice.losses[0] for choice in choices)
    assert allocate_widths.lost(choices, widths) <= least + 0.05 * everything + 1e-9


def test_cost_aware_finds_the_best_answer_in_most_small_cases() -> None:
    """A bound on the mean as well: a search that is often a little off would pass the property above."""
    gaps = []
    for seed in range(30):
        choices, terms = made(seed, 4, 4, step=16 if seed % 2 else 1)
        floor = allocate_widths.cost_of(terms, {c.layer: c.widths[0] for c in choices})
        target = floor + 0.5 * (whole_cost(choices, terms) - floor)
        least = best_of_all(choices, terms, target)
        gaps.append(allocate_widths.lost(choices, allocate_widths.cost_aware(choices, terms, target)) / least - 1)
    assert np.mean(np.array(gaps) < 1e-9) >= 0.9
    assert np.mean(gaps) <= 0.01


def test_cost_aware_loses_less_than_every_other_method_at_equal_cost() -> None:
    for seed in range(5):
        choices, terms = made(seed, 12, 12)
        target = 0.5 * whole_cost(choices, terms)
        ours = allocate_widths.lost(choices, allocate_widths.cost_aware(choices, terms, target))
        for method in (
            lambda strength, c=choices: allocate_widths.uniform(c, strength),
            lambda strength, c=choices: allocate_widths.by_sensitivity(c, strength),
        ):
            _, widths = allocate_widths.to_target(method, terms, target)
            assert allocate_widths.cost_of(terms, widths) <= target * (1 + 1e-6)
            assert ours < allocate_widths.lost(choices, widths)


def test_a_network_as_large_as_mobilenet_takes_seconds() -> None:
    choices, terms = made(0, 35, 24)
    begin = time.process_time()
    widths = allocate_widths.cost_aware(choices, terms, 0.45 * whole_cost(choices, terms))
    assert time.process_time() - begin < 10
    assert allocate_widths.cost_of(terms, widths) >= 0.44 * whole_cost(choices, terms)  # and the target is used up


def test_uniform_takes_the_nearest_width() -> None:
    choices = [Choice("a", (8, 16, 24), (2.0, 1.0, 0.0)), Choice("b", (4, 6), (1.0, 0.0))]
    assert allocate_widths.uniform(choices, 0.0) == {"a": 24, "b": 6}
    assert allocate_widths.uniform(choices, 0.3) == {"a": 16, "b": 4}
    assert allocate_widths.uniform(choices, 0.99) == {"a": 8, "b": 4}


def test_by_sensitivity_spares_the_delicate_group() -> None:
    choices = [Choice("tough", (8, 16, 24), (0.2, 0.1, 0.0)), Choice("delicate", (8, 16, 24), (9.0, 5.0, 0.0))]
    assert allocate_widths.by_sensitivity(choices, 0.0) == {"tough": 24, "delicate": 24}
    assert allocate_widths.by_sensitivity(choices, 0.4) == {"tough": 8, "delicate": 24}
    assert allocate_widths.by_sensitivity(choices, 1.0) == {"tough": 8, "delicate": 8}


def test_the_global_ranking_counts_channels_of_all_groups() -> None:
    choices = [allocate_widths.from_scores(name, (1, 2, 3, 4), np.ones(4)) for name in "ab"]
    scores = {"a": np.array([1.0, 9.0, 2.0, 8.0]), "b": np.array([7.0, 6.0, 3.0, 5.0])}
    assert allocate_widths.global_ranking(choices, scores, 0.0) == {"a": 4, "b": 4}
    assert allocate_widths.global_ranking(choices, scores, 3 / 8) == {"a": 2, "b": 3}
    assert allocate_widths.global_ranking(choices, scores, 1.0) == {"a": 1, "b": 1}


def test_scores_that_stand_for_several_channels() -> None:
    choice = allocate_widths.from_scores("shuffled", (2, 4, 6), np.array([5.0, 1.0, 3.0]))
    assert choice.losses == (4.0, 1.0, 0.0)
    assert allocate_widths.global_ranking([choice], {"shuffled": np.array([5.0, 1.0, 3.0])}, 1 / 3) == {"shuffled": 4}


def test_a_curve_never_falls_where_more_is_pruned() -> None:
    choice = allocate_widths.from_curve("conv", (25, 50, 75, 100), [(0.25, 0.2), (0.5, 0.1), (0.75, 0.6)])
    assert choice.losses == (0.6, 0.2, 0.2, 0.0)


def test_to_target_stops_at_the_weakest_strength() -> None:
    choices = [Choice("a", tuple(range(1, 101)), tuple(float(100 - w) for w in range(1, 101)))]
    terms = (Term(("a",), lambda w: float(w[0])),)
    strength, widths = allocate_widths.to_target(lambda s: allocate_widths.uniform(choices, s), terms, 63.0)
    assert widths == {"a": 63}
    assert strength == pytest.approx(0.365, abs=1e-6)  # where 63 becomes the nearest
    assert allocate_widths.to_target(lambda s: allocate_widths.uniform(choices, s), terms, 100.0) == (0.0, {"a": 100})
    with pytest.raises(UserError, match="smallest widths cost 1, more than"):
        allocate_widths.to_target(lambda s: allocate_widths.uniform(choices, s), terms, 0.5)


def test_only_widths_at_the_edges_of_steps_are_left() -> None:
    widths = tuple(range(8, 72, 8))
    choice = Choice("a", widths, tuple(float(64 - w) for w in widths))
    terms = (Term(("a", "b"), lambda w: float(-(-w[0] // 16) * w[1])), Term(("b",), lambda w: float(w[0])))
    edges = allocate_widths.on_edges(choice, terms, {"a": 64, "b": 32})
    assert edges.widths == (16, 32, 48, 64)
    assert edges.losses == (48.0, 32.0, 16.0, 0.0)


def test_what_is_kept_fits_a_plan() -> None:
    choices = [Choice("a", (8, 16), (1.0, 0.0)), Choice("b", (8, 16), (1.0, 0.0))]
    kept = allocate_widths.keep(choices, {"a": 8, "b": 16})
    assert kept == (("a", 8),)
    assert Prune(0.0, keep=kept).keep == kept


@pytest.mark.parametrize(
    ("widths", "losses", "word"),
    [((8, 16), (1.0,), "one loss for each"), ((16, 8), (1.0, 0.0), "ascending"), ((8, 16), (np.nan, 0.0), "finite")],
)
def test_a_choice_that_makes_no_sense_is_refused(widths: tuple[int, ...], losses: tuple[float, ...], word: str) -> None:
    with pytest.raises(UserError, match=word):
        Choice("a", widths, losses)


def test_the_cubic_schedule_ends_at_its_ratio_and_slows_down() -> None:
    shares = allocate_widths.cubic(5, 0.6)
    assert shares[-1] == 0.6
    steps = np.diff((0.0, *shares))
    assert (steps > 0).all() and (np.diff(steps) < 0).all()
    with pytest.raises(UserError, match="at least one step"):
        allocate_widths.cubic(0, 0.5)
