"""Latencies that were taken on a disturbed machine: known by earlier sessions, and taken again before a choice."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pocketfit.core.budget import Budget
from pocketfit.core.errors import PocketfitError
from pocketfit.core.measurement import Measurement
from pocketfit.core.support.progress import Watch
from pocketfit.core.trial import Trial
from pocketfit.devices import local
from pocketfit.measurement import latency, quiet
from pocketfit.measurement.latency import Effort, LatencyComparison
from pocketfit.search.decide.check_limits import check
from pocketfit.search.decide.choose import baselines
from pocketfit.search.journal import Line, Record
from pocketfit.search.run.job import Job

MOST_AGAIN = 6  # trials of one runtime that are timed again: those that look fastest
MORE_PATIENCE = 20  # times the patience for a trial, because a choice is made once
PATIENCE_SHARE = 0.1  # of the time limit: the longest wait for one timing


def best_times(trials: Sequence[Trial], runtime: str) -> dict[str, float]:
    """The best times of the canary's works that this run has seen on this processor, and of this runtime's baseline."""
    here, found = local.describe().name, dict[str, float]()
    for trial in trials:
        where = trial.measurements["latency_ms"].environment if "latency_ms" in trial.measurements else {}
        if where.get("cpu") == here:
            known = {
                k: v for k, v in where.get("best_ms", {}).items() if k != quiet.BASELINE or trial.runtime == runtime
            }
            found = quiet.better(found, known)
    return found


def patient(effort: Effort, budget: Budget, left_s: float = float("inf"), times: float = 1.0) -> Effort:
    """The effort with `times` its patience, but no more than PATIENCE_SHARE of the time limit and than what is left."""
    most_s = min(left_s, PATIENCE_SHARE * (budget.max_time_s or float("inf")))
    return replace(effort, patience_s=max(0.0, min(times * effort.patience_s, most_s)))


def measurements(compared: LatencyComparison) -> dict[str, Measurement]:
    """A comparison as a trial keeps it: latencies and ratios, with one-sided 95 % bounds."""
    bounds = compared.upper_one_sided
    found = {**compared.candidate, **compared.ratios}
    found = {k: replace(m, one_sided=bounds[k]) for k, m in found.items()}
    spread = {"between_sessions": compared.between, "within_sessions": compared.within}
    ratio = found["latency_ratio"]
    return found | {"latency_ratio": replace(ratio, environment={**ratio.environment, **spread})}


def disturbed(trials: Sequence[Trial], budget: Budget, taken_again: Collection[int] = ()) -> list[Trial]:
    """The fastest trials that could be chosen and whose latency was taken once, on a disturbed machine.

    None of them where latency is neither limited nor preferred.

    taken_again  numbers of trials whose latency was taken again already
    """
    counts = any(limit.quantity == "latency" for limit in budget.limits) or budget.prefer in ("speed", "balanced")
    base, found = baselines(trials), dict[str, list[Trial]]()
    for trial in sorted(trials, key=lambda t: (t.value("latency_ratio") or 0.0, t.number)):
        if not counts or trial.status != "ok" or trial.runtime not in base or trial.number in taken_again:
            continue
        if trial.stage in ("baseline", "control"):
            continue
        ratio = trial.measurements.get("latency_ratio")
        others = [c for c in check(trial, base[trial.runtime], budget) if c.limit.quantity != "latency"]
        if ratio is not None and ratio.disturbed and all(c.met for c in others):
            found.setdefault(trial.runtime, []).append(trial)
    return [trial for of_runtime in found.values() for trial in of_runtime[:MOST_AGAIN]]


def timing_lines(job: Job, record: Record, watch: Watch, left_s: float) -> list[Line]:
    """The journal's "timing" lines: the disturbed trials of each runtime, timed in turns with its baseline; [] where
    there are none, or no time is left."""
    lines, trials = list[Line](), record.trials
    doubted = disturbed(trials, job.budget, record.calmer | record.measured_again) if left_s > 0 else []
    for runtime in dict.fromkeys(trial.runtime for trial in doubted):
        baseline, ours = baselines(trials)[runtime], [t for t in doubted if t.runtime == runtime]
        files = [_file(job, trial) for trial in (baseline, *ours)]
        watch.say(f"timing {len(ours)} plans again in {runtime}: other work ran beside them")
        tick = watch.step(f"timing again in {runtime}")
        effort = patient(latency.QUICK, job.budget, left_s, MORE_PATIENCE)
        best = best_times(trials, runtime)
        try:
            compared = latency.compare_latency(
                runtime, files[0], files[1:], threads=job.threads, effort=effort, best=best, progress=tick
            )
        except PocketfitError as error:  # the first figures stand, with what speaks against them
            watch.say(f"timing again in {runtime} failed: {error}")
            continue
        lines.append(_line(baseline, compared[0].baseline))
        lines += [_line(trial, measurements(found)) for trial, found in zip(ours, compared, strict=True)]
    return lines


def _line(trial: Trial, found: Mapping[str, Measurement]) -> Line:
    told = {name: m.to_json() for name, m in found.items()}
    return {"kind": "timing", "trial": trial.number, "because": "disturbed", "measurements": told}


def _file(job: Job, trial: Trial) -> Path:
    assert trial.artifact is not None
    return job.out / trial.artifact.path
