"""The control: the network trained for as many steps as the chosen one, and not pruned.

A network whose training had not converged gains by any further training, pruned or not. So the cost of pruning is the
distance to a network that had the same training without pruning.
"""

from __future__ import annotations

from collections.abc import Sequence

from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.train import Train
from pocketfit.core.trial import Trial
from pocketfit.search.decide.choose import baselines, fold_of, halves


def control_plan(trial: Trial, trials: Sequence[Trial]) -> Plan | None:
    """The plan of a trial's control, as the float file of its runtime; None where the trial has no training, or
    nothing else."""
    before, _ = halves(trial.plan.passes)
    training = tuple(settings for settings in before if isinstance(settings, Train))
    base = baselines(trials).get(trial.runtime)
    if not training or training == before or base is None:
        return None
    return Plan((*fold_of(trial.plan.passes), *training), base.plan.export)


def control_of(trial: Trial, trials: Sequence[Trial]) -> Trial | None:
    """The control of this trial, where it was made."""
    plan = control_plan(trial, trials)
    return next((t for t in trials if t.stage == "control" and t.status == "ok" and t.plan == plan), None)


def steps(plan: Plan) -> int:
    """How many steps the plan trains in float."""
    return sum(settings.steps for settings in plan.passes if isinstance(settings, Train))
