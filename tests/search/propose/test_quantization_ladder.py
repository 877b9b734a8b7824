"""The ladder of quantization: which rung comes next, where it stops, and when it is not climbed at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pocketfit.core.measurement import Measurement
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Prune
from pocketfit.core.plan.quantize import Equalize, QuantTrain, Round
from pocketfit.core.plan.rewrite import Piecewise
from pocketfit.core.plan.train import Train
from pocketfit.core.trial import Trial
from pocketfit.search.decide.choose import choose, halves
from pocketfit.search.propose.propose import Share, best_recipe, propose
from pocketfit.search.propose.quantization_ladder import awaiting, layers_in_float
from pocketfit.search.propose.space import Space
from tests.search import builders
from tests.search.propose.test_propose import BOTH, search, stages

REPAIRED = (Equalize, Round)
TRAINED = (Equalize, Round, QuantTrain)
RUNGS = ((), REPAIRED, REPAIRED, TRAINED, TRAINED)
SETS = (("mid",), ("mid", "late"), ("mid", "late", "early"))


def space(runtimes: tuple[str, ...] = ("litert",), **settings: Any) -> Space:
    return builders.space(runtimes, sensitive=dict.fromkeys(runtimes, SETS[:1]), **settings)


def climbed(trials: list[Trial]) -> list[Plan]:
    return [t.plan for t in trials if t.stage == "ladder"]


def kinds(plans: list[Plan]) -> list[tuple[type, ...]]:
    return [tuple(type(p) for p in plan.passes) for plan in plans]


@pytest.mark.parametrize(
    ("int8_drop", "max_size", "most"),
    [
        (0.5, None, 0),
        (3.0, None, 0),
        (1.2, "0.32x", 1),
        (2.5, "0.32x", 2),
        (5.0, None, 3),
        (5.0, "0.32x", 4),
        (13, None, 5),
    ],
)
def test_stops_at_the_first_rung_that_meets_the_limits(int8_drop: float, max_size: str | None, most: int) -> None:
    """Without a size limit the ends in float do for 3 points; they are too large where there is one."""
    budget = builders.budget(max_drop="1pt", max_size=max_size)
    trials = search(space(), budget, int8_drop=int8_drop)
    plans = climbed(trials)
    if most == 4:  # d is enough, though the rung before it keeps the accuracy: its file is too large
        assert plans[2].export.keep_float == ("mid",)
    assert kinds(plans) == list(RUNGS[:most])
    assert all(plan.export.ranges == "mse" and plan.export.precision == "int8" for plan in plans)
    assert [bool(plan.export.keep_float) for plan in plans] == [False, False, True, False, True][:most]
    assert all(plan.export.weights == "int8" and plan.export.activations != "int16" for plan in plans)
    order = [s for s in stages(trials) if s in ("recipe", "ladder", "pruned")]
    assert order == sorted(order, key=("recipe", "ladder", "pruned").index)
    if most:
        choice = choose([t for t in trials if t.stage in ("baseline", "ladder")], budget)
        assert choice is not None and choice.feasible and choice.trial.plan == plans[-1]


def test_no_limit_on_the_accuracy_no_ladder() -> None:
    for words in ({}, {"max_latency": "0.9x"}, {"max_size": "0.2x"}, {"prefer": "size"}):
        assert climbed(search(space(), builders.budget(**words), int8_drop=9.0)) == []
    (rung,) = climbed(search(space(), builders.budget(prefer="accuracy"), int8_drop=9.0))
    assert kinds([rung]) == [REPAIRED]
    floor = builders.budget(min_accuracy="0.89")
    assert kinds(climbed(search(space(), floor, int8_drop=5.0)))[0] == (), "a floor is a limit too"


def test_each_runtime_climbs_for_itself_in_turns() -> None:
    trials = search(space(BOTH), builders.budget(max_drop="1pt"), int8_drop=5.0)
    assert [t.runtime for t in trials if t.stage == "ladder"] == [*BOTH] * 3
    base = [t for t in trials if t.stage in ("baseline", "recipe")]
    good = [
        replace(t, measurements=builders.trial(t.number, drop=0.2).measurements) if t.runtime == "litert" else t
        for t in base
    ]
    proposal = propose(space(BOTH), good, builders.budget(max_drop="1pt"))
    assert proposal is not None and (proposal.stage, proposal.plan.export.runtime) == ("ladder", "onnxruntime")


def test_a_rung_that_fails_is_passed_over() -> None:
    trials = search(space(), builders.budget(max_drop="1pt"), int8_drop=5.0, fails=(7,))
    assert trials[7].status == "failed" and kinds([trials[7].plan]) == [REPAIRED]
    assert kinds(climbed(trials))[2:] == [(), (QuantTrain,), (QuantTrain,)][: len(climbed(trials)) - 2]
    assert climbed(trials)[2].export.keep_float == ("mid",), "mixed precision does without what failed"
    nothing = search(space(), builders.budget(max_drop="1pt"), int8_drop=5.0, fails=(1, 2))
    assert climbed(nothing) == [], "no static int8 file, no ladder"


@pytest.mark.parametrize(("noise", "kept"), [((22.3, 14.7), ()), ((14.7, 22.3), REPAIRED), ((20.0, 19.9), REPAIRED)])
def test_rungs_build_on_the_repairs_only_where_these_did_not_make_it_worse(
    noise: tuple[float, float], kept: tuple[type, ...]
) -> None:
    """Equalized channels and rounded weights of 22 calibration pictures had 14.7 dB in place of 22.3."""
    budget = builders.budget(max_drop="1pt", max_size="0.32x")
    trials: list[Trial] = []
    while (proposal := propose(space(), trials, budget)) is not None and proposal.row in (
        "baselines",
        "recipes",
        "ladder",
    ):
        trial = builders.tried(proposal, len(trials), int8_drop=13)
        if proposal.row == "ladder" and len(kinds(climbed(trials))) < 2:
            measured = Measurement(quantity="sqnr_db", unit="dB", value=noise[len(climbed(trials))])
            trial = replace(trial, measurements={**trial.measurements, "sqnr_db": measured})
        trials.append(trial)
    assert kinds(climbed(trials))[:2] == [(), REPAIRED]
    assert kinds(climbed(trials))[2:] == [kept, (*kept, QuantTrain)]
    waiting = awaiting(replace(space(), sensitive={}), trials[:-2], budget, None)
    assert waiting is not None and kinds([waiting.plan]) == [kept], "whose layers are looked at"


@pytest.mark.parametrize("most", range(5, 20))
@pytest.mark.parametrize("runtimes", [("litert",), BOTH])
def test_with_few_trials_the_ladder_takes_half_of_what_pruning_has(most: int, runtimes: tuple[str, ...]) -> None:
    budget = builders.budget(max_drop="0.1pt", max_trials=most)
    trials = search(space(runtimes), budget, int8_drop=20.0)
    share = Share.of(space(runtimes), budget)
    assert len(climbed(trials)) == min(share.ladder or 0, 5 * len(runtimes)) and len(trials) <= most
    assert len(climbed(trials)) <= max(1, stages(trials).count("pruned") + 1)
    if most - 2 * len(runtimes) >= 3:
        assert stages(trials)[-1] == "finalist", "the ladder does not starve what comes after it"
    if share.ladder and share.ladder < 2 * len(runtimes):
        assert kinds(climbed(trials))[0] == REPAIRED, "the rung that helps most goes first"


def test_four_bits_only_where_a_size_limit_asks_for_them_and_the_runtime_has_them() -> None:
    narrow = {"four_bit": ("litert",), "params": {"mid": 250_000}}
    size = builders.budget(max_size="0.2x")
    (rung,) = climbed(search(space(**narrow), size, int8_drop=0.5))
    assert (rung.export.weights, kinds([rung]), rung.export.keep_int8) == ("int4", [REPAIRED], space().ends[:1])
    both = builders.budget(max_size="0.2x", max_drop="1pt")
    assert kinds(climbed(search(space(**narrow), both, int8_drop=0.5))) == [REPAIRED], "it is small and good enough"
    trained = climbed(search(space(**narrow), both, int8_drop=0.9))
    assert kinds(trained) == [REPAIRED, (*REPAIRED, QuantTrain)] and {p.export.weights for p in trained} == {"int4"}
    for settings, words in (
        (narrow, {"max_drop": "1pt"}),
        (narrow, {"max_size": "0.4x"}),
        (narrow, {"max_size": "0.1x"}),  # half of the weights' bytes would not be enough
        ({**narrow, "four_bit": ()}, {"max_size": "0.2x"}),
        ({**narrow, "params": {"mid": 100_000}}, {"max_size": "0.2x"}),
    ):
        plans = climbed(search(space(**settings), builders.budget(**words), int8_drop=5.0))  # type: ignore[arg-type]
        assert not any(p.export.weights == "int4" for p in plans), (settings, words)


def test_what_has_no_kernel_is_written_in_another_form_for_static_int8_files_only() -> None:
    given = space(prelude={"litert": (Piecewise(),)}, four_bit=("litert",), params={"mid": 250_000})
    trials = search(given, builders.budget(max_drop="0.1pt"), int8_drop=20.0)
    for trial in trials:
        static = trial.plan.export.precision == "int8"
        behind = halves(trial.plan.passes)[1]
        assert (behind[:1] == (Piecewise(),)) == static
        assert sum(isinstance(p, Piecewise) for p in trial.plan.passes) == static
    assert {t.stage for t in trials} >= {"recipe", "ladder", "pruned", "finalist"}


def test_what_the_user_wants_in_float_stays_there_on_every_rung() -> None:
    base = space()
    wanted = {r: tuple(replace(e, keep_float=("stem",)) for e in base.recipes[r]) for r in base.recipes}
    wanted = {r: tuple(e for e in given if e.precision == "int8") for r, given in wanted.items()}
    given = replace(base, recipes=wanted, keep_float=("stem",))
    trials = search(given, builders.budget(max_drop="0.1pt"), int8_drop=20.0)
    static = [t.plan.export.keep_float for t in trials if t.plan.export.precision == "int8"]
    assert static and all("stem" in kept for kept in static)
    assert ("stem", "mid") in static and ("stem",) in static
    assert {t.stage for t in trials} >= {"ladder", "pruned"}


def test_pruned_networks_get_the_passes_that_helped() -> None:
    budget = builders.budget(max_drop="1pt", max_size="0.25x")
    rows: list[str] = []
    trials = search(space(), budget, int8_drop=2.2, rows=rows)
    best = best_recipe(space(), trials, budget, "litert")
    assert kinds([best]) == [REPAIRED]
    pruned = [t.plan for t, row in zip(trials, rows, strict=True) if row == "pruned"]
    assert pruned and set(kinds(pruned)) == {(Prune, Train, *REPAIRED)}
    assert {p.export for p in pruned} == {best.export}
    finalists = [t.plan for t in trials if t.stage == "finalist" and t.plan.export == best.export]
    assert finalists and kinds(finalists)[0] == (Prune, Train, Train, *REPAIRED), "trained on in float, then rounded"
    longer = finalists[0].passes[2]
    assert isinstance(longer, Train) and longer.steps == 200 and longer.seed == 1


def test_a_plan_that_was_trained_on_in_front_of_the_grid_stands_in_for_what_it_began_as() -> None:
    brief, longer, behind = Train(50), Train(200, seed=1), (Equalize(), Round())
    base = builders.baseline()
    before = builders.trial(1, drop=0.5, stage="pruned", passes=(Prune(0.3), brief, *behind), precision="int8")
    after = builders.trial(2, drop=0.4, stage="finalist", passes=(Prune(0.3), brief, longer, *behind), precision="int8")
    rung = builders.trial(3, drop=0.5, stage="ladder", passes=behind, precision="int8")
    chosen = choose([base, before, after], builders.budget(max_drop="1pt"))
    assert chosen is not None and chosen.trial == after
    alone = choose([base, rung, replace(after, number=4)], builders.budget(max_drop="1pt"))
    assert alone is not None and alone.trial == rung, "a pruned network is no continuation of the whole one"


def test_sensitivity_is_asked_for_once_and_only_where_it_decides() -> None:
    budget, asked = builders.budget(max_drop="1pt"), builders.space()
    trials: list[Trial] = []
    waited = []
    while (proposal := propose(asked, trials, budget)) is not None:
        trials.append(builders.tried(proposal, len(trials), int8_drop=5.0))
        if (waiting := awaiting(asked, trials, budget, None)) is not None:
            waited.append(waiting)
            asked = replace(asked, sensitive={"litert": SETS[:1]})
    assert [kinds([t.plan]) for t in waited] == [[REPAIRED]]
    assert next(p.plan for p in trials if p.plan.export.keep_float == ("mid",)).passes == waited[0].plan.passes
    first = [t for t in trials if t.number <= waited[0].number]
    assert awaiting(builders.space(), first, budget, 2) is None, "two rungs are all that there may be"
    assert awaiting(builders.space(), first, builders.budget(), None) is None
    failed = [replace(t, status="failed") if t in waited else t for t in first]
    plain = awaiting(builders.space(), failed, budget, None)
    assert plain is not None and plain.plan.passes == (), "where the repairs failed, the network without them is asked"
    nobody = replace(asked, sensitive={"litert": ()})
    plans = climbed(search(nobody, budget, int8_drop=13.0))
    assert kinds(plans) == [(), REPAIRED, TRAINED] and not any(p.export.keep_float for p in plans)


def wider(**settings: Any) -> Space:
    return builders.space(sensitive={"litert": SETS}, params={"mid": 250_000, "late": 50_000}, **settings)


def test_sets_of_layers_in_float_widen_until_one_is_good_enough() -> None:
    """In this fixture any of them leaves a quarter of the loss."""
    trials = search(wider(), builders.budget(max_drop="1pt"), int8_drop=13.0)
    kept = [plan.export.keep_float for plan in climbed(trials)]
    assert kept == [(), (), *SETS, (), SETS[-1]], "all sets, then training on the grid, then with the widest"
    assert kinds(climbed(trials)) == [(), *[REPAIRED] * 4, TRAINED, TRAINED]
    enough = search(wider(), builders.budget(max_drop="1pt"), int8_drop=5.0)
    assert [plan.export.keep_float for plan in climbed(enough)] == [(), (), SETS[0]]


def test_a_set_that_costs_too_much_is_the_last_and_training_goes_without_it() -> None:
    """The fixture's files with layers in float have 0.05 more: 0.35x of the size, 0.6x of the time."""
    for limits in ({"max_size": "0.32x"}, {"max_latency": "0.5x"}):
        trials = search(wider(), builders.budget(max_drop="1pt", **limits), int8_drop=20.0)
        kept = [plan.export.keep_float for plan in climbed(trials)]
        assert kept == [(), (), SETS[0], ()], "wider ones would cost more, and trained on the grid it costs the same"
    failing = search(wider(), builders.budget(max_drop="1pt"), int8_drop=13.0, fails=(8,))
    assert failing[8].plan.export.keep_float == SETS[0]
    assert [plan.export.keep_float for plan in climbed(failing)] == [(), (), SETS[0], ()]


def test_with_few_trials_one_set_is_tried() -> None:
    trials = search(wider(), builders.budget(max_drop="0.1pt", max_trials=20), int8_drop=20.0)
    kept = [plan.export.keep_float for plan in climbed(trials)]
    assert {k for k in kept if k} == {SETS[0]} and len(kept) == 5


def test_with_four_bits_the_guilty_layers_get_eight_as_long_as_the_file_is_small_enough() -> None:
    """8 bits for "late" cost 25 kB of the 1 MB, for "mid" 125 kB; without layers the file has 180 kB."""
    both = builders.budget(max_size="0.25x", max_drop="1pt")
    shares = {"mid": (0.5, 125_000.0), "late": (0.4, 25_000.0), "early": (0.1, 10_000.0)}
    given = wider(four_bit=("litert",), sensitive_4={"litert": shares})
    plans = [plan for plan in climbed(search(given, both, int8_drop=2.0)) if plan.export.weights == "int4"]
    assert kinds(plans) == [REPAIRED, REPAIRED, (*REPAIRED, QuantTrain)]
    first = space().ends[0]
    assert [plan.export.keep_int8 for plan in plans] == [(first,), (first, "late", "early"), (first, "late", "early")]
    tight = builders.budget(max_size="0.181x", max_drop="1pt")
    plans = [plan for plan in climbed(search(given, tight, int8_drop=2.0)) if plan.export.weights == "int4"]
    assert [plan.export.keep_int8 for plan in plans] == [(first,)] * 2, "there is no room for any"


def test_four_bits_ask_for_their_own_sensitivity() -> None:
    both, asked = builders.budget(max_size="0.25x", max_drop="1pt"), wider(four_bit=("litert",))
    trials: list[Trial] = []
    waited: list[Plan] = []
    while (proposal := propose(asked, trials, both)) is not None:
        trials.append(builders.tried(proposal, len(trials), int8_drop=2.0))
        if (waiting := awaiting(asked, trials, both, None)) is not None:
            waited.append(waiting.plan)
            asked = replace(asked, sensitive_4={"litert": {"late": (1.0, 25_000.0)}})
    assert [(kinds([plan]), plan.export.weights) for plan in waited] == [([REPAIRED], "int4")]
    assert any("late" in t.plan.export.keep_int8 for t in trials)


def test_ever_wider_sets_hold_half_two_thirds_and_five_sixths_of_the_noise() -> None:
    shares = {"stem": 0.1, "wide": 0.45, "thin": 0.3, "head": 0.15}
    assert layers_in_float(shares, {}) == (("wide", "thin"), ("wide", "thin", "head"))
    costs = {"stem": 20, "wide": 900, "thin": 40, "head": 40}
    assert layers_in_float(shares, costs)[0] == ("thin", "head", "stem"), "the wide one is not worth its cost"
    flat = layers_in_float({f"l{i:02}": 1 / 64 for i in range(64)}, {})
    assert [len(layers) for layers in flat] == [32, 43, 54] and flat[1][:32] == flat[0]
    assert layers_in_float({"a": 0.9, "b": 0.05, "c": 0.05}, {}) == (("a",),), "no set twice"
    assert layers_in_float({"a": 0.0, "b": 0.0}, {}) == () == layers_in_float({}, {})
    assert layers_in_float({"only": 0.7}, {}) == (), "a network that is all in float is another file"
