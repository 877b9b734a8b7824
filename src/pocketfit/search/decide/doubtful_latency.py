"""Which latency has to be measured again before anything is decided by it: one whose interval contains the limit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from pocketfit.core.budget import Budget
from pocketfit.core.measurement import Measurement
from pocketfit.core.trial import Trial
from pocketfit.search.decide.check_limits import check
from pocketfit.search.decide.choose import baselines, choose


def doubtful(trials: Sequence[Trial], budget: Budget, measured_again: Collection[int] = ()) -> Trial | None:
    """The first trial whose latency decides which file is handed over, and is uncertain; None without one.

    It is uncertain where its interval contains the limit. It decides where the trial is chosen and would miss the limit
    at the bad end of the interval, or is not chosen and would be chosen at the good end.

    measured_again  numbers of trials that have been measured with care already
    """
    picked = choose(trials, budget)
    base = baselines(trials)
    if picked is None or not any(limit.quantity == "latency" for limit in budget.limits):
        return None
    for trial in sorted(trials, key=lambda t: t.number):
        if trial.status != "ok" or trial.number in measured_again or trial.stage in ("baseline", "control"):
            continue
        if trial.runtime not in base or not _limit_inside(trial, base[trial.runtime], budget):
            continue
        met = all(c.met for c in check(trial, base[trial.runtime], budget))
        if (trial is picked.trial and met) or (not met and _chosen_at_its_best(trial, trials, budget)):
            return trial
    return None


def _chosen_at_its_best(trial: Trial, trials: Sequence[Trial], budget: Budget) -> bool:
    hoped = replace(trial, measurements={name: _at_low_end(m) for name, m in trial.measurements.items()})
    choice = choose([hoped if t is trial else t for t in trials], budget)
    return choice is not None and choice.trial is hoped


def _at_low_end(measured: Measurement) -> Measurement:
    if not measured.quantity.startswith("latency") or measured.low is None:
        return measured
    return replace(measured, value=measured.low, one_sided=measured.low)


def _limit_inside(trial: Trial, baseline: Trial, budget: Budget) -> bool:
    """Whether the interval of a limited latency contains its limit."""
    for stand in check(trial, baseline, budget):
        if stand.limit.quantity == "latency" and stand.measured is not None:
            low, high = stand.measured.low, stand.measured.high
            if low is not None and high is not None and low <= stand.limit.value <= high:
                return True
    return False
