"""`fit --no-data`: the one file that can be made without any image, and what can be measured of it.

Activations get their ranges from the statistics of batch norms; channels are equalized, and biases corrected, by the
same statistics (Nagel et al. 2019, "data-free quantization"). Without data no choice can be made, so nothing is
searched; size, latency and memory are measured in the runtime, and the accuracy stays unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pocketfit.core.errors import ExportFailed, UserError
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.quantize import CorrectBias, Equalize
from pocketfit.core.support.files import check_folder, write_json
from pocketfit.core.support.progress import Silent, Watch
from pocketfit.core.trial import Trial
from pocketfit.measurement import latency
from pocketfit.measurement.environment import environment
from pocketfit.search.decide.check_limits import check
from pocketfit.search.decide.choose import choose
from pocketfit.search.decide.disturbance import doubts
from pocketfit.search.run.file_quantities import of_file
from pocketfit.search.run.job import Job, baseline_export, check_layers, check_runtimes, prelude, recipes
from pocketfit.search.run.run_trial import Exported, export, timing
from pocketfit.search.run.verdict.disturbed_latencies import best_times, patient

WARNING = (
    "No data was given: ranges, equalization and bias correction follow from what the network's batch norms remember of"
    " their training. Size, latency and memory are measured; how much accuracy was lost is NOT known: measure it"
    " (pocketfit measure FILE --data DIR) before you ship the file."
)


def fit_without_data(job: Job, watch: Watch | None = None) -> tuple[dict[str, Any], Exported]:
    """Make and measure the file in each of the job's runtimes; returns what result.json holds, and the chosen file.

    Raises UserError for limits on accuracy, for an output folder that is in use, and for a network without batch norms.
    """
    watch = watch or Silent()
    _refuse(job)
    trials: list[Trial] = []
    made: dict[int, Exported] = {}
    for runtime in job.runtimes:
        before = export(job, Plan((), baseline_export(job, runtime)), watch)
        after = export(job, plan_without_data(job, runtime), watch)
        for stage, exported in (("baseline", before), ("recipe", after)):
            made[len(trials)] = exported
            trials.append(_measured(job, trials, stage, exported, Path(before.artifact.path), watch))
    chosen = choose(
        [t for t in trials if t.stage == "recipe"] + [t for t in trials if t.stage == "baseline"], job.budget
    )
    assert chosen is not None
    trial, baseline = chosen.trial, chosen.baseline
    data = {
        "data": None,
        "warning": WARNING,
        "status": "met" if all(c.met for c in check(trial, baseline, job.budget)) else "not met",
        "limits": [c.to_json() for c in check(trial, baseline, job.budget)],
        "chosen": trial.number,
        "doubts": doubts(chosen, None),
        "trials": [t.to_json() for t in trials],
        "accuracy": {"value": None, "how": "not_possible_here", "reason": "No data was given"},
        "environment": environment(job.threads),
    }
    write_json(job.out / "plan.json", trial.plan.to_json())
    write_json(job.out / "result.json", data)
    return data, made[trial.number]


def plan_without_data(job: Job, runtime: str) -> Plan:
    """Static int8 as the runtime's first recipe has it, with everything taken from batch norms."""
    static = [e for e in recipes(job, runtime) if e.precision == "int8"]
    if not static:
        raise ExportFailed(f"{runtime} has no static int8 file for this network")
    passes = (*job.fold, *prelude(job, runtime), Equalize("batch-norm"), CorrectBias("batch-norm"))
    return Plan(passes, replace(static[0], ranges="batch-norm"))


def _refuse(job: Job) -> None:
    """Refuse, before anything is written, a job that data-free quantization cannot do."""
    for limit in job.budget.limits:
        if limit.about.of_answers:
            raise UserError(
                f"The limit '{limit.text}' on {limit.quantity} cannot be checked without data: leave it out, or give"
                " --data"
            )
    check_folder(job.out)
    check_runtimes(job)
    check_layers(job)


def _measured(
    job: Job, before: Sequence[Trial], stage: Any, exported: Exported, reference: Path, watch: Watch
) -> Trial:
    artifact = exported.artifact
    path = Path(artifact.path)
    watch.step(f"timing {artifact.plan.code} in {artifact.runtime}")
    found = of_file(artifact, threads=job.threads, processes=1)
    best = best_times(before, artifact.runtime)
    found |= timing(artifact.runtime, reference, path, job.threads, patient(latency.QUICK, job.budget), best)[0]
    findings = {"findings": [*exported.model.findings, *artifact.notes]}
    placed = replace(artifact, path=f"models/{path.name}")
    return Trial(
        number=len(before),
        stage=stage,
        plan=artifact.plan,
        status="ok",
        artifact=placed,
        measurements=found,
        details=findings,
    )
