"""What is tried next: the same after every restart, nothing twice, and within the number of trials."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketfit.core.budget import Budget
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Prune
from pocketfit.core.plan.rewrite import Fold, Piecewise, Resolution
from pocketfit.core.plan.train import Train
from pocketfit.core.trial import Trial
from pocketfit.search.decide.choose import choose, halves
from pocketfit.search.decide.control import control_of
from pocketfit.search.propose.allocate_widths import cubic
from pocketfit.search.propose.propose import MOST_EXTENSIONS, RATIO_LADDER, best_recipe, propose, ratios
from pocketfit.search.propose.space import Proposal, Space
from tests.search import builders

BOTH = ("litert", "onnxruntime")
LIMITS: dict[str, Any] = {"max_size": "0.2x", "max_drop": "1pt"}


def search(
    space: Space,
    budget: Budget,
    *,
    int8_drop: float = 0.2,
    fails: tuple[int, ...] = (),
    rows: list[str] | None = None,
) -> list[Trial]:
    """The whole search on made-up measurements; `rows` is told of each proposal's."""
    trials: list[Trial] = []
    while (proposal := propose(space, trials, budget)) is not None:
        if rows is not None:
            rows.append(proposal.row)
        number = len(trials)
        trial = builders.tried(proposal, number, int8_drop=int8_drop)
        if number in fails:
            trial = builders.failed(number, proposal.stage, passes=proposal.plan.passes, **vars(proposal.plan.export))
        assert trial.plan == proposal.plan
        trials.append(trial)
        assert len(trials) < 60, "the search does not end"
    return trials


def stages(trials: list[Trial]) -> list[str]:
    return [t.stage for t in trials]


def test_the_stages_come_in_their_order() -> None:
    rows: list[str] = []
    trials = search(builders.space(BOTH), builders.budget(**LIMITS), rows=rows)
    assert rows[:16] == [*["baselines"] * 2, *["recipes"] * 8, *["pruned"] * 6]
    assert list(dict.fromkeys(rows[16:])) == [
        "forms",
        "finalists",
        "forms of finalists",
        "forms of the chosen",
        "control",
    ]
    assert (rows.count("finalists"), rows.count("control")) == (2, 1)
    assert [t.runtime for t in trials[:6]] == [*BOTH] * 3
    assert {len(t.plan.passes) for t in trials[:10]} == {0}
    assert all(isinstance(t.plan.passes[0], Prune) and isinstance(t.plan.passes[1], Train) for t in trials[10:-1])


def test_a_trained_network_gets_every_form_that_could_win() -> None:
    """Plain int8 leaves the first ratio too large and dynamic int8 does not: it costs an export, and no training."""
    trials = search(builders.space(), builders.budget(**LIMITS))
    networks = {halves(t.plan.passes)[0] for t in trials if t.stage == "pruned"}
    of_first = [t for t in trials if t.plan.passes == trials[5].plan.passes]
    assert trials[5].plan.export.precision == "int8" and (trials[5].value("size_bytes") or 0) > 0.2 * builders.SIZE
    assert "dynamic-int8" in {t.plan.export.precision for t in of_first}
    assert len(networks) == 3, "no network was trained for its form's sake"
    chosen = choose(trials, builders.budget(**LIMITS))
    assert chosen is not None and chosen.feasible
    forms_made = {t.plan.export for t in trials if t.plan.passes == chosen.trial.plan.passes}
    assert {"int8", "dynamic-int8"} <= {export.precision for export in forms_made}, "what --prefer size would take, too"


@given(st.sampled_from([{}, LIMITS, {"max_latency": "0.3x"}]), st.sampled_from(["speed", "size", "balanced"]))
def test_no_form_is_made_that_is_beaten_in_everything(words: dict[str, str], prefer: Any) -> None:
    rows: list[str] = []
    trials = search(builders.space(), builders.budget(**words, prefer=prefer), rows=rows)
    for row, trial in zip(rows, trials, strict=True):
        if row in ("forms", "forms of finalists"):
            assert trial.plan.export.precision != "float32", "float16 is as fast, as accurate, and half as large"


def test_the_control_has_the_training_of_the_chosen_network_and_nothing_else() -> None:
    for words in (LIMITS, {**LIMITS, "max_trials": 12}):
        trials = search(builders.space(), builders.budget(**words))
        control, chosen = trials[-1], choose(trials, builders.budget(**words))
        assert control.stage == "control" and chosen is not None and chosen.trial.stage != "control"
        assert control.plan.passes == tuple(p for p in chosen.trial.plan.passes if isinstance(p, Train))
        assert control.plan.export == trials[0].plan.export
        assert control_of(chosen.trial, trials) is control and control_of(trials[1], trials) is None
    assert stages(search(builders.space(), builders.budget(max_trials=2)))[-1] == "recipe", "nothing was trained"


@given(
    st.integers(1, 30),
    st.sampled_from([("litert",), ("onnxruntime",), BOTH]),
    st.sampled_from([{}, LIMITS, {"max_latency": "0.3x", "prefer": "speed"}, {"max_drop": "0.1pt"}]),
    st.sets(st.integers(0, 12), max_size=4),
)
def test_never_twice_never_too_many_and_the_same_again(
    most: int, runtimes: tuple[str, ...], words: dict[str, str], fails: set[int]
) -> None:
    budget = builders.budget(max_trials=most, **words)  # type: ignore[arg-type]
    trials = search(builders.space(runtimes), budget, fails=tuple(fails))
    hashes = [t.plan.hash for t in trials]
    assert sum(t.stage != "control" for t in trials) <= most
    assert len(set(hashes)) == len(hashes)
    again = search(builders.space(runtimes), budget, fails=tuple(fails))
    assert [t.plan.hash for t in again] == hashes
    for cut in range(0, len(trials), 3):  # a restart after any trial goes on with the same plan
        proposal = propose(builders.space(runtimes), trials[:cut], budget)
        assert proposal is not None and proposal.plan.hash == hashes[cut]


@pytest.mark.parametrize("most", range(3, 16))
def test_every_runtime_gets_its_share(most: int) -> None:
    trials = [
        t for t in search(builders.space(BOTH), builders.budget(max_trials=most, **LIMITS)) if t.stage != "control"
    ]
    assert len(trials) == most
    for stage in ("baseline", "recipe"):
        counts = [sum(t.stage == stage and t.runtime == r for t in trials) for r in BOTH]
        assert abs(counts[0] - counts[1]) <= 1, stage


@pytest.mark.parametrize("most", range(5, 16))
def test_a_small_number_of_trials_still_ends_in_a_finalist(most: int) -> None:
    for runtimes in (("litert",), BOTH):
        if most - 2 * len(runtimes) < 3:
            continue
        found = stages(search(builders.space(runtimes), builders.budget(max_trials=most, **LIMITS)))
        assert {"recipe", "pruned", "finalist"} <= set(found) and found[-1] == "control", (most, runtimes)


def test_too_few_trials_for_all_still_give_baselines_first() -> None:
    assert stages(search(builders.space(BOTH), builders.budget(max_trials=2))) == ["baseline", "baseline"]
    assert stages(search(builders.space(BOTH), builders.budget(max_trials=1))) == ["baseline"]


def test_mixed_precision_only_where_int8_loses_too_much() -> None:
    gentle = search(builders.space(), builders.budget(max_drop="1pt"), int8_drop=0.5)
    assert not any(t.plan.export.keep_float for t in gentle)
    harsh = search(builders.space(), builders.budget(max_drop="1pt"), int8_drop=3.0)
    (mixed,) = [t for t in harsh if t.plan.export.keep_float and t.stage == "recipe"]
    assert mixed.plan.export.keep_float == ("stem", "head")
    assert mixed.plan.export.precision == "int8"
    assert mixed.number == 5, "right after the plain recipes"
    assert all(t.plan.export.keep_float for t in harsh if t.stage == "pruned"), "pruned networks get what works"


def test_pruned_networks_get_the_best_recipe_that_keeps_the_accuracy() -> None:
    trials = search(builders.space(), builders.budget(max_drop="1pt", max_trials=6))
    assert best_recipe(builders.space(), trials, builders.budget(max_drop="1pt"), "litert") == trials[1].plan
    lossy = search(builders.space(), builders.budget(max_drop="1pt", max_trials=5), int8_drop=3.0)
    assert best_recipe(builders.space(), lossy, builders.budget(max_drop="1pt"), "litert").export.precision != "int8"


def test_the_ladder_starts_where_the_size_limit_asks_for_it() -> None:
    trials = search(builders.space(), builders.budget(max_trials=5))
    smallest = min(t.value("size_bytes") or 0 for t in trials if t.stage == "recipe") / builders.SIZE
    assert ratios(trials, builders.budget())[0] == 0.3
    for limit in (0.28, 0.2, 0.1, 0.05):
        first = ratios(trials, builders.budget(max_size=f"{limit}x"))[0]
        assert first in RATIO_LADDER
        assert smallest * (1 - first) ** 1.7 <= limit
        assert first == 0.3 or smallest * (1 - first + 0.1) ** 1.7 > limit, "no harder than asked for"
        same = ratios(trials, builders.budget(max_size=f"{limit * builders.SIZE:.0f}B"))
        assert same[0] == first, "bytes and ratios of the same size are the same limit"
    assert ratios(trials, builders.budget(max_size="1B"))[0] == RATIO_LADDER[-1]
    every = ratios(trials, builders.budget(max_size="0.2x"))
    assert len(set(every)) == len(every) and all(RATIO_LADDER[0] <= r <= RATIO_LADDER[-1] for r in every)


def test_a_smaller_picture_is_tried_where_it_may_be() -> None:
    large = builders.space(height=224, width=160)
    found = {p for t in search(large, builders.budget()) for p in t.plan.passes if isinstance(p, Resolution)}
    assert found == {Resolution(160, 128)}
    for fixed in (builders.space(height=224, width=224, keep_resolution=True), builders.space(height=96, width=96)):
        assert not any(isinstance(p, Resolution) for t in search(fixed, builders.budget()) for p in t.plan.passes)


def test_finalists_go_on_from_the_pruned_ones() -> None:
    rows: list[str] = []
    trials = search(builders.space(), builders.budget(**LIMITS), rows=rows)
    pruned = [t.plan for t in trials if t.stage == "pruned"]
    finalists = [t.plan for t, row in zip(trials, rows, strict=True) if row == "finalists"]
    assert 1 <= len(finalists) <= 2
    for plan in finalists:
        (parent,) = [p for p in pruned if p.passes == plan.passes[:-1] and p.export == plan.export]
        longer = plan.passes[-1]
        assert isinstance(longer, Train) and longer.steps == 200
        assert longer.seed != parent.passes[-1].seed, "not the same batches again"  # type: ignore[union-attr]
        assert plan.export == parent.export


def test_the_finalists_are_those_that_can_meet_the_cost_limits() -> None:
    trials = search(builders.space(), builders.budget(**LIMITS))
    sizes = [(t.value("size_bytes") or 0) / builders.SIZE for t in trials if t.stage == "finalist"]
    assert all(size <= 0.2 for size in sizes)


def test_without_time_it_skips_to_the_finalists() -> None:
    space, budget = builders.space(), builders.budget(**LIMITS)
    trials = [t for t in search(space, budget) if t.stage in ("baseline", "recipe", "pruned")]
    fewer = trials[:6]
    assert propose(space, fewer, budget) == Proposal(trials[6].plan, "pruned", "pruned", space.short_steps)
    hurried = propose(space, fewer, budget, without=("ladder", "pruned", "forms"))
    assert hurried is not None and (hurried.stage, hurried.steps) == ("finalist", space.long_steps)
    form = propose(space, fewer, budget, without=("ladder", "pruned"))
    assert form is not None and (form.row, form.steps) == ("forms", 0)
    nothing_pruned = [t for t in trials if t.stage != "pruned"]
    assert propose(space, nothing_pruned, budget, without=("ladder", "pruned")) is None


def test_a_runtime_that_cannot_export_the_network_costs_one_trial() -> None:
    trials = search(builders.space(BOTH), builders.budget(**LIMITS), fails=(0,))
    assert [t.runtime for t in trials].count("litert") == 1
    assert "finalist" in stages(trials)
    assert search(builders.space(), builders.budget(**LIMITS), fails=(0,))[1:] == []


def test_failed_pruned_trials_are_no_finalists() -> None:
    rows: list[str] = []
    trials = search(builders.space(), builders.budget(**LIMITS), fails=(5, 6), rows=rows)
    assert rows[5:8] == ["pruned"] * 3
    longer = [t for t in trials if t.stage == "finalist"]
    assert {t.plan.passes[0] for t in longer} == {trials[7].plan.passes[0]}, "only the one that worked goes on"


def test_the_nearest_finalist_is_trained_on_while_nothing_meets_the_limits() -> None:
    trials = search(builders.space(), builders.budget(max_size="0.2x", max_drop="0pt"))
    finalists = [t for t in trials if t.stage == "finalist"]
    lengths = [sum(isinstance(p, Train) for p in t.plan.passes) for t in finalists]
    assert max(lengths) == 2 + MOST_EXTENSIONS
    assert len({p.seed for p in finalists[-1].plan.passes if isinstance(p, Train)}) == max(lengths)


def test_rounds_of_pruning_share_the_steps_and_end_at_the_ratio() -> None:
    space = replace(builders.space(), rounds=3, short_steps=100, prune=Prune(0.0, layers=(("stem", 0.5),)))
    widths = {share: (("a", number),) for number, share in enumerate(cubic(3, 0.3), 1)}
    trials = search(replace(space, widths=widths), builders.budget(max_latency="0.1x"))
    passes = next(t.plan.passes for t in trials if t.stage == "pruned" and t.plan.passes[0].keep)  # type: ignore[union-attr]
    cuts = [p for p in passes if isinstance(p, Prune)]
    stretches = [p for p in passes if isinstance(p, Train)]
    assert [p.keep for p in cuts] == [(("a", 1),), (("a", 2),), (("a", 3),)]
    assert np.prod([1 - p.ratio for p in cuts]) == pytest.approx(0.7, abs=1e-3)
    assert [p.layers for p in cuts] == [(("stem", 0.5),), (("stem", 0.0),), (("stem", 0.0),)]
    assert sum(p.steps for p in stretches) == 100 and len({p.seed for p in stretches}) == 3


@pytest.mark.parametrize("words", [LIMITS, {"max_drop": "0.1pt"}, {"max_latency": "0.3x", "max_trials": 14}])
def test_where_there_is_something_to_fold_every_plan_but_the_baselines_begins_with_it(words: dict[str, Any]) -> None:
    plain = builders.space(BOTH, prelude={"litert": (Piecewise(),)})
    unfolded = search(plain, builders.budget(**words))
    recipes = {r: (some[0], plain.baselines[r], *some[1:]) for r, some in plain.recipes.items()}
    folded = search(replace(plain, fold=(Fold(),), recipes=recipes), builders.budget(**words))
    for trial in folded:
        assert (trial.plan.passes[:1] == (Fold(),)) == (trial.stage != "baseline")
        assert sum(isinstance(p, Fold) for p in trial.plan.passes) <= 1
    recipe = [t.plan for t in folded if t.stage == "recipe"]
    assert all(Plan((Fold(),), ExportSettings(runtime)) in recipe for runtime in BOTH)
    if "max_trials" not in words:  # beside the float32 file, the search is the same
        halved = [(halves(t.plan.passes), t.plan.export) for t in folded if t.plan not in recipe]
        assert {(halves(t.plan.passes), t.plan.export) for t in unfolded if t.stage != "recipe"} <= set(halved)
