"""One trial from plan to measurements. A trial that fails is a result too: it carries the reason and the log's tail."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketfit import runtimes
from pocketfit.core.artifact import Artifact
from pocketfit.core.errors import ExportFailed, PocketfitError, is_systems
from pocketfit.core.measurement import Measurement
from pocketfit.core.model import Model
from pocketfit.core.plan.plan import Plan
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Tick, Watch
from pocketfit.core.trial import Trial
from pocketfit.measurement import latency, run_samples, suspicion
from pocketfit.numerics.latency_intervals import mean_interval, paired_drop
from pocketfit.numerics.sqnr import sqnr_db
from pocketfit.search.propose.space import Proposal
from pocketfit.search.run.apply_passes import carried_out
from pocketfit.search.run.file_quantities import of_file
from pocketfit.search.run.job import CALIBRATION_SAMPLES, Job, why_these_weights
from pocketfit.search.run.verdict.disturbed_latencies import best_times, measurements, patient
from pocketfit.sources.data.random_inputs import noise

LOG_LINES = 30
NOISE_SAMPLES = 32
MOST_SEARCH_SAMPLES = 5000
FEWEST_SCORED = 500
SEARCH_MACS = 250e9  # multiply-accumulates that one scoring of the search split may cost: about five seconds


@dataclass(frozen=True)
class Exported:
    """A plan's file with the model that it was made from."""

    model: Model
    artifact: Artifact


def attempt(job: Job, proposal: Proposal, number: int, trials: Sequence[Trial], watch: Watch) -> Trial:
    """Carry out, export and measure one plan; raises for a full disk, and never for a plan that does not work."""
    started = time.monotonic()
    plan = proposal.plan
    trial = Trial(number=number, stage=proposal.stage, plan=plan, status="failed")
    try:
        exported = export(job, plan, watch)
        baseline = next((t for t in trials if t.stage == "baseline" and t.runtime == plan.export.runtime), None)
        best = best_times(trials, plan.export.runtime)
        measured, findings = measure(job, exported, baseline, watch, best)
        trial = replace(
            trial,
            status="ok",
            artifact=replace(exported.artifact, path=f"models/{Path(exported.artifact.path).name}"),
            measurements=measured,
            details={"findings": [*exported.model.findings, *why_these_weights(plan.export), *findings]},
        )
    except Exception as error:  # a plan that breaks something must not end the search; the journal keeps the traceback
        if is_systems(error):  # a disk that is full says nothing of the plan: the same command tries it again
            raise
        if isinstance(error, PocketfitError):
            trial = replace(trial, error=str(error), log_tail=getattr(error, "log_tail", ""))
        else:
            tail = "\n".join(traceback.format_exc().splitlines()[-LOG_LINES:])
            trial = replace(trial, error=f"{type(error).__name__}: {error}", log_tail=tail)
    return replace(trial, seconds=time.monotonic() - started)


def export(job: Job, plan: Plan, watch: Watch, folder: Path | None = None) -> Exported:
    """The file of a plan, in `models/` of the output folder unless another one is given."""
    runtime, model = runtimes.get(plan.export.runtime), prepared(job, plan, watch)
    calibration = None
    if plan.export.ranges == "batch-norm":  # the file has to be run on something, to match its tensors to the network's
        calibration = noise(model.signature.inputs, model.preprocess, NOISE_SAMPLES)
    elif plan.export.precision == "int8":
        calibration = job.samples(
            "calibration", model.preprocess, watch, limit=plan.export.calibration or CALIBRATION_SAMPLES
        )
    watch.step(f"exporting {plan.code} for {runtime.NAME}")
    path = (folder or job.out / "models") / f"{plan.file_stem}{runtime.EXTENSION}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return Exported(model, runtime.export(model, plan, calibration, path, work=job.cache))


def prepared(job: Job, plan: Plan, watch: Watch) -> Model:
    """The network after a plan's passes. Raises ExportFailed, before any work, where the runtime can't make a file."""
    refusals = runtimes.get(plan.export.runtime).why_not(plan, job.model.signature)
    if refusals:
        raise ExportFailed(refusals[0])
    return carried_out(job, plan, watch)


def measure(
    job: Job, exported: Exported, baseline: Trial | None, watch: Watch, best: Mapping[str, float] | None = None
) -> tuple[dict[str, Measurement], list[str]]:
    """Size, latency against the baseline, memory, and accuracy on the search split; and sentences on what is odd.

    best  see latency.compare_latency
    """
    artifact, name = exported.artifact, exported.artifact.runtime
    path = Path(artifact.path)
    found = of_file(artifact, threads=job.threads, processes=1)
    watch.step(f"timing {artifact.plan.code} in {name}")
    reference = path if baseline is None or baseline.artifact is None else job.out / baseline.artifact.path
    found |= timing(name, reference, path, job.threads, patient(latency.QUICK, job.budget), best)[0]
    samples = search_samples(job, exported.model, watch)
    original = None if baseline is None else _original(job, name, reference, watch)
    tick = watch.step(f"scoring {artifact.plan.code} on {len(samples)} samples in {name}")
    scores = scored(job, name, path, samples, None if original is None else original.answers, tick)
    found["accuracy"] = mean_score(scores.centred)
    findings = [scores.finding] if scores.finding else []
    if original is None:
        _keep(job, name, scores)
        exact = Measurement(
            quantity="drop_points", unit="pt", value=0.0, n=len(samples), low=0.0, high=0.0, one_sided=0.0
        )
        odd = (
            ""
            if not job.labelled or job.model.task != "classification"
            else suspicion.suspicious(scores, samples.labels, len(job.model.labels))
        )
        return {**found, "drop_points": exact}, [*findings, odd] if odd else findings
    found["drop_points"] = drop(original.values, scores.values)
    assert original.outputs is not None  # they are kept
    return found | _fidelity(original.outputs, scores.outputs), findings


def scored(
    job: Job,
    runtime: str,
    path: Path,
    samples: Samples,
    answers: NDArray[np.generic] | None,
    progress: Tick | None = None,
) -> run_samples.Scores:
    """The scores of a file by the job's metric: against the samples' labels, or, where there are none, against the
    answers of the original (None: this file is the original)."""
    return run_samples.score(
        runtime,
        path,
        samples,
        task=job.model.task,
        targets=None if job.labelled else answers,
        own=not job.labelled and answers is None,
        threads=job.threads,
        metric=job.metric,
        work=job.cache,
        progress=progress,
    )


def _keep(job: Job, runtime: str, scores: run_samples.Scores) -> None:
    assert scores.outputs is not None  # a file that has just been run has them
    arrays = {"values": scores.values, "answers": scores.answers, "outputs": scores.outputs}
    np.savez(_kept(job, runtime), allow_pickle=False, **arrays)


def _kept(job: Job, runtime: str) -> Path:
    return job.cache / f"search-scores-{runtime}.npz"


def _original(job: Job, runtime: str, path: Path, watch: Watch) -> run_samples.Scores:
    """The scores of the runtime's float32 file on the search split."""
    stored = _kept(job, runtime)
    if not stored.exists():  # somebody has emptied the cache
        _keep(job, runtime, scored(job, runtime, path, search_samples(job, job.model, watch), None))
    with np.load(stored, allow_pickle=False) as found:
        return run_samples.Scores(nan=0, metric=job.metric, **found)


def _fidelity(before: NDArray[np.float32], after: NDArray[np.float32] | None) -> dict[str, Measurement]:
    """The SQNR of the outputs against the baseline's; nothing where they are equal, or one holds a NaN."""
    if after is None or after.shape != before.shape or not math.isfinite(noise_db := sqnr_db(before, after)):
        return {}
    return {"sqnr_db": Measurement(quantity="sqnr_db", unit="dB", value=noise_db, n=len(after))}


def timing(
    runtime: str,
    reference: Path,
    path: Path,
    threads: int,
    effort: latency.Effort,
    best: Mapping[str, float] | None = None,
) -> tuple[dict[str, Measurement], dict[str, Measurement]]:
    """Latency percentiles of `path`, and its ratios to `reference`, interleaved with it; and those of `reference`.

    One-sided 95 % bounds are with them. The reference against itself has the ratio 1 by definition.
    """
    if reference == path:
        found = latency.latency(runtime, path, threads=threads, effort=effort, best=best)
        exact = Measurement(quantity="latency_ratio", unit="x", value=1.0, n=found["latency_ms"].n, low=1.0, high=1.0)
        return {**found, "latency_ratio": exact}, found
    (compared,) = latency.compare_latency(runtime, reference, [path], threads=threads, effort=effort, best=best)
    return measurements(compared), dict(compared.baseline)


def search_samples(job: Job, model: Model, watch: Watch) -> Samples:
    """The search split, or as much of it as the unpruned network's MACs allow (no clock: the same in every run)."""
    macs = sum(row.macs for row in job.layers)
    most = int(min(MOST_SEARCH_SAMPLES, max(FEWEST_SCORED, SEARCH_MACS / max(1, macs))))
    return job.samples("search", model.preprocess, watch, limit=most)


def mean_score(scores: NDArray[np.float64]) -> Measurement:
    """The mean of per-sample scores with its interval; the one-sided 95 % bound from below is with it."""
    over = mean_interval(scores)
    return Measurement(
        quantity="accuracy",
        unit="",
        value=over.value,
        n=len(scores),
        low=over.low,
        high=over.high,
        one_sided=mean_interval(scores, confidence=0.90).low,
    )


def drop(before: NDArray[np.float64], after: NDArray[np.float64]) -> Measurement:
    """The paired drop in points with its two-sided interval; the one-sided 95 % bound is with it."""
    paired = paired_drop(before, after)
    return Measurement(
        quantity="drop_points",
        unit="pt",
        value=paired.points,
        n=paired.n,
        low=paired.low,
        high=paired.high,
        one_sided=paired.upper_one_sided,
    )
