"""One training, many exports: a trained network gets a file in every form that could win.

A training takes minutes, an export seconds. The best form for the unpruned network need not be the best one for a
pruned network, because what int8 gains in time and loses in accuracy changes with the widths. So each trained network
is also exported in those forms in which it would be chosen if it did as well as can be hoped for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import get_args

from pocketfit.core.budget import Budget, Prefer
from pocketfit.core.measurement import Measurement
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.train import Train
from pocketfit.core.trial import Stage, Trial
from pocketfit.search.decide.choose import baselines, choose, fold_of, halves

# Share of the expected latency that is hoped for: a pruned network may gain more time in another form than the unpruned
# one does. So a form that is expected to take 1 / 0.8 = 1.25 times as long as the form at hand is still tried.
HOPE = 0.8


def forms(trials: Sequence[Trial], budget: Budget, stage: Stage) -> Iterator[Plan]:
    """Untried plans of the networks trained in this stage, each in a form that could win by what `prefer` likes."""
    for known in _networks(trials, stage):
        yield from _that_could_win(known, trials, (budget,))


def forms_of_the_chosen(trials: Sequence[Trial], budget: Budget) -> Iterator[Plan]:
    """Untried plans of the chosen network, if it is a trained one, in all forms that could win by any preference. The
    result compares these forms, and another `--prefer` may choose one."""
    choice = choose(trials, budget)
    if choice is not None and choice.trial.stage in ("pruned", "finalist"):
        preferences = tuple(replace(budget, prefer=prefer) for prefer in get_args(Prefer))
        yield from _that_could_win(choice.trial, trials, preferences)


def same_network(trial: Trial, trials: Sequence[Trial]) -> list[Trial]:
    """All successful trials with the network that this trial exports, itself among them."""
    network = halves(trial.plan.passes)[0]
    return [t for t in trials if t.status == "ok" and t.stage != "control" and halves(t.plan.passes)[0] == network]


def _networks(trials: Sequence[Trial], stage: Stage) -> list[Trial]:
    """The first successful trial of each network trained in this stage."""
    first: dict[object, Trial] = {}
    for trial in sorted(trials, key=lambda t: t.number):
        network = halves(trial.plan.passes)[0]
        if trial.stage == stage and trial.status == "ok" and any(isinstance(p, Train) for p in network):
            first.setdefault(network, trial)
    return list(first.values())


def _that_could_win(known: Trial, trials: Sequence[Trial], budgets: Sequence[Budget]) -> Iterator[Plan]:
    tried = {trial.plan.hash for trial in trials}
    whole = [t for t in trials if t.stage in ("baseline", "recipe", "ladder") and t.status == "ok"]
    fold, (network, behind) = fold_of(known.plan.passes), halves(known.plan.passes)
    alike = [t for t in whole if (halves(t.plan.passes), t.plan.export) == (((), behind), known.plan.export)]
    unpruned = min(alike, key=lambda t: fold_of(t.plan.passes) != fold, default=None)
    if unpruned is None:
        return
    base = baselines(trials)
    for form in sorted(whole, key=lambda t: t.number):
        plan = Plan((*fold, *network, *halves(form.plan.passes)[1]), form.plan.export)
        if plan.hash in tried or form.runtime not in base:
            continue
        hoped = _hoped_for(plan, known, unpruned, form, number=1 + max(t.number for t in trials))
        if any((c := choose([*trials, hoped], budget)) is not None and c.trial is hoped for budget in budgets):
            yield plan


def _hoped_for(plan: Plan, known: Trial, unpruned: Trial, form: Trial, number: int) -> Trial:
    """A made-up trial: what the network of `known` may measure in another form, at best. Pruning saves the same share
    of every cost as in the form of `known`, latency is HOPE times that, the drop is at the good end of its interval.

    known     the trained network in the form that was measured
    unpruned  the unpruned network in that form
    form      the unpruned network in the other form
    """
    measured: dict[str, Measurement] = {}
    for name, there in form.measurements.items():
        ours, before = known.measurements.get(name), unpruned.measurements.get(name)
        if there.value is None or ours is None or ours.value is None or before is None or before.value is None:
            continue
        if name == "drop_points":
            value = (ours.value if ours.low is None else ours.low) + there.value - before.value
        elif before.value > 0 and name != "accuracy":
            value = there.value * ours.value / before.value * (HOPE if name.startswith("latency") else 1.0)
        else:
            value = there.value
        measured[name] = Measurement(
            quantity=name, unit=there.unit, value=value, low=value, high=value, one_sided=value
        )
    return replace(known, number=number, plan=plan, measurements=measured)
