"""How many training steps fit into the time that the user gave.

Steps are decided once, before the first plan, and then stand in the plans: a plan never counts in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pocketfit.core.budget import Budget
from pocketfit.core.plan import PassSettings, Plan, QuantTrain, Train
from pocketfit.core.trial import Trial
from pocketfit.core.watch import Watch
from pocketfit.search.choose import halves
from pocketfit.search.propose import FINALISTS, RATIOS_WITHOUT_LIMIT
from pocketfit.search.task import Task

PROBE_STEPS = 12
SETUP_S_PER_RUNTIME = 60.0  # baselines and recipes
EXPORT_S = 25.0  # one pruned network: trace, convert, quantize, measure
VERDICT_FIXED_S = 30.0
LADDER_SHARE = 0.4  # of all the time, at most
# Of the training time, for each pruned network and each finalist; the control takes as much as one of both.
SHORT_SHARE, LONG_SHARE = 0.1, 0.22
SHORT_EPOCHS, LONG_EPOCHS = 0.3, 1.5
SHORT_RANGE, LONG_RANGE = (30, 400), (100, 2500)


@dataclass(frozen=True)
class Pace:
    """steps_per_s of training with a teacher; verdict_s: what reading the verdict split is expected to take."""

    steps_per_s: float
    verdict_s: float


def steps_for(budget: Budget, train_samples: int, batch_size: int, runtimes: int, pace: Pace | None) -> tuple[int, int]:
    """Steps for a brief and for a long training.

    With a limit on trials, or none at all, they follow from the data alone, so that a repeated run has the same plans;
    with a limit on time only, they are what fits.

    >>> steps_for(Budget(), 6400, 64, 1, None)
    (30, 150)
    """
    epoch = max(1, train_samples // batch_size)
    short, long = _clamp(SHORT_EPOCHS * epoch, SHORT_RANGE), _clamp(LONG_EPOCHS * epoch, LONG_RANGE)
    if pace is None or budget.max_time_s is None or budget.max_trials is not None:
        return short, long
    trials = RATIOS_WITHOUT_LIMIT * runtimes + FINALISTS
    training_s = budget.max_time_s - pace.verdict_s - SETUP_S_PER_RUNTIME * runtimes - EXPORT_S * trials
    steps = max(0.0, training_s) * pace.steps_per_s
    return _clamp(SHORT_SHARE * steps, (10, 4 * epoch + 10)), _clamp(LONG_SHARE * steps, (20, 40 * epoch + 20))


def grid_seconds(plan: Plan, trials: Sequence[Trial], per_sample_s: float) -> float:
    """How long a plan's passes for the quantized file are expected to take, export included where that was measured.

    per_sample_s  one sample of a training step (forward, backward and the teacher) of this network
    What trials of the ladder with the same kinds of passes took counts first; they went on from one another.
    """
    total = 0.0
    kinds: tuple[type, ...] = ()
    for settings in halves(plan.passes)[1]:
        kinds = (*kinds, type(settings))
        known = [
            t.seconds
            for t in trials
            if t.stage == "ladder" and t.status == "ok" and tuple(map(type, t.plan.passes)) == kinds
        ]
        total += max(known) if known else settings.FACTS.steps_a_sample * _looked_at(settings) * per_sample_s
    return total


def _looked_at(settings: PassSettings) -> int:
    return settings.steps * settings.batch_size if isinstance(settings, QuantTrain) else getattr(settings, "samples", 0)


def measured_pace(task: Task, watch: Watch) -> Pace:
    """Train the unpruned network with itself as teacher for a few steps and time them."""
    from pocketfit.passes import train

    samples = task.samples("train", task.model.preprocess, watch)
    watch.step("timing the training")
    few = samples.take(range(min(len(samples), PROBE_STEPS * task.batch_size)))
    times: list[float] = []
    train.apply(
        task.model,
        Train(PROBE_STEPS, batch_size=task.batch_size, seed=task.seed),
        few,
        teacher=task.teacher or task.model,
        progress=lambda done, total: times.append(time.monotonic()),
    )
    spacing = sorted(after - before for before, after in pairwise(times))
    seconds_per_step = spacing[len(spacing) // 2]
    count = task.data.split_counts(task.model.split_seed)["verdict"]
    # A forward pass in a runtime takes about a third of a training step of the same batch (forward and backward).
    verdict_s = VERDICT_FIXED_S + 2 * count / task.batch_size * seconds_per_step / 2
    return Pace(1 / seconds_per_step, verdict_s)


def _clamp(value: float, bounds: tuple[int, int]) -> int:
    return int(min(max(round(value), bounds[0]), bounds[1]))
