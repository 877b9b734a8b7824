"""How many training steps fit into the time that the user gave, and at which rate they are taken.

Both are decided once, before the first plan, and then stand in the plans: a plan never counts in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

from pocketfit.core.budget import Budget
from pocketfit.core.errors import UserError
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.quantize import QuantTrain
from pocketfit.core.plan.train import Train
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Watch
from pocketfit.core.trial import Trial
from pocketfit.search.decide.choose import halves
from pocketfit.search.propose.propose import FINALISTS, RATIOS_WITHOUT_LIMIT
from pocketfit.search.run.job import Job

PROBE_STEPS = 12
SETUP_S_PER_RUNTIME = 60.0  # baselines and recipes, all together
EXPORT_S = 25.0  # one pruned network: trace, convert, quantize, measure
VERDICT_FIXED_S = 30.0
LADDER_SHARE = 0.4  # of the whole time limit, at most
# Shares of the training time for each pruned network and for each finalist; the control takes as much as both together.
SHORT_SHARE, LONG_SHARE = 0.1, 0.22
SHORT_EPOCHS, LONG_EPOCHS = 0.3, 1.5
SHORT_RANGE, LONG_RANGE = (30, 400), (100, 2500)


@dataclass(frozen=True)
class Pace:
    """How fast, and at which learning rate, this network trains on this machine.

    steps_per_s    training steps a second, with a teacher
    verdict_s      seconds that reading the verdict split is expected to take
    learning_rate  the highest one that does no harm (passes/train/guarded/find_learning_rate.py)
    finding        a sentence about the learning rate, "" where it is the usual one
    """

    steps_per_s: float
    verdict_s: float
    learning_rate: float = Train.learning_rate
    finding: str = ""


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


def pace_line(job: Job, watch: Watch) -> dict[str, Any]:
    """The journal's line: steps of a brief and of a long training, their learning rate and a finding about it; with a
    time limit also the figures that depend on the machine. For a network that cannot be trained the finding says so:
    plans without training are tried all the same.
    """
    line: dict[str, Any] = {"kind": "pace"}
    limited = job.budget.max_time_s is not None
    pace: Pace | None = None
    try:
        pace = measured_pace(job, watch)
        finding = pace.finding
    except UserError as error:
        finding = str(error)
    if pace is not None:
        line |= {"learning_rate": pace.learning_rate}
        line |= {"steps_per_s": pace.steps_per_s, "verdict_s": pace.verdict_s} if limited else {}
    if finding:
        watch.say(finding)
        line["finding"] = finding
    samples = job.data.split_counts(job.model.split_seed)["train"]
    short, long = steps_for(job.budget, samples, job.batch_size, len(job.runtimes), pace if limited else None)
    return {**line, "short_steps": short, "long_steps": long}


def grid_seconds(plan: Plan, trials: Sequence[Trial], per_sample_s: float) -> float:
    """Seconds that a plan's passes for the quantized file are expected to take; with the export where it was measured.

    Where trials of the ladder had passes of the same kinds, their time is taken; else it is computed from per_sample_s.

    per_sample_s  seconds for one sample in a training step (forward, backward and the teacher) of this network
    """
    total = 0.0
    kinds: tuple[type, ...] = ()
    for settings in halves(plan.passes)[1]:
        kinds = (*kinds, type(settings))
        known = [
            t.seconds
            for t in trials
            if t.stage == "ladder" and t.status == "ok" and tuple(map(type, halves(t.plan.passes)[1])) == kinds
        ]
        total += max(known) if known else settings.FACTS.steps_a_sample * _looked_at(settings) * per_sample_s
    return total


def _looked_at(settings: PassSettings) -> int:
    return settings.steps * settings.batch_size if isinstance(settings, QuantTrain) else getattr(settings, "samples", 0)


def measured_pace(job: Job, watch: Watch) -> Pace:
    """Train the unpruned network for a few steps: with itself as teacher to find the learning rate, with the teacher of
    the plans to measure the speed. Raises UserError where it cannot be trained.
    """
    from pocketfit.passes.train.guarded import find_learning_rate

    few = job.batch_size * max(PROBE_STEPS, find_learning_rate.STEPS)
    samples = job.samples("train", job.model.preprocess, watch, limit=few)
    settings = Train(PROBE_STEPS, batch_size=job.batch_size, seed=job.seed)
    found = find_learning_rate.found_rate(
        job.model, settings, samples, progress=watch.step("looking for a learning rate")
    )
    seconds = found.seconds_per_step if job.teacher is None else _timed(job, settings, samples, watch)
    count = job.data.split_counts(job.model.split_seed)["verdict"]
    # A forward pass in a runtime takes about a third of a training step of the same batch (forward and backward).
    verdict_s = VERDICT_FIXED_S + 2 * count / job.batch_size * seconds / 2
    return Pace(1 / seconds, verdict_s, found.learning_rate, found.finding)


def _timed(job: Job, settings: Train, samples: Samples, watch: Watch) -> float:
    """Seconds that a step takes with the teacher that the user gave."""
    from pocketfit.passes.train import fine_tune

    watch.step("timing the training")
    times: list[float] = []

    def noted(done: int, total: int) -> None:
        times.append(time.monotonic())

    fine_tune.apply(job.model, replace(settings, guarded=False), samples, teacher=job.teacher, progress=noted)
    return median(after - before for before, after in pairwise(times))


def _clamp(value: float, bounds: tuple[int, int]) -> int:
    return int(min(max(round(value), bounds[0]), bounds[1]))
