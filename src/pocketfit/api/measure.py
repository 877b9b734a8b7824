"""`pocketfit.measure`: one file, timed and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pocketfit import runtimes, tasks
from pocketfit.api.file_inputs import Contract, check_files, contract_of, inputs_of, output_of, samples_of
from pocketfit.api.inputs import Data
from pocketfit.core.artifact import OpCost
from pocketfit.core.errors import CannotRunHere, UserError
from pocketfit.core.measurement import Measurement
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.runtime_list import bytes_of
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.runtime import Runtime
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Silent, Watch
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.measurement import latency, memory, run_samples
from pocketfit.measurement.latency import LatencyComparison
from pocketfit.runtimes.common.output_file import artifact_of
from pocketfit.search.run.file_quantities import flash_and_ram
from pocketfit.search.run.run_trial import mean_score
from pocketfit.tasks.choose_task import metric_of

PROFILE_RUNS = 30
TRIED = 32  # samples that a metric is tried on


@dataclass(frozen=True, kw_only=True)
class Against:
    """The file that another one was timed against, in turns.

    size_ratio, ratios  of the other file over this one
    measurements        of this one
    between_sessions, within_sessions  standard deviations of the latency ratio, relative; None: of one session
    """

    file: Path
    size_ratio: float
    measurements: Mapping[str, Measurement]
    ratios: Mapping[str, Measurement]
    between_sessions: float | None
    within_sessions: float | None

    @classmethod
    def of(cls, other: Path, file: Path, turns: LatencyComparison) -> Against:
        """What was found when `file` was timed against `other`."""
        return cls(
            file=other,
            size_ratio=bytes_of(file) / bytes_of(other),
            measurements=turns.baseline,
            ratios=turns.ratios,
            between_sessions=turns.between,
            within_sessions=turns.within,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "file": str(self.file),
            "size_ratio": self.size_ratio,
            "measurements": {name: m.to_json() for name, m in self.measurements.items()},
            "ratios": {name: m.to_json() for name, m in self.ratios.items()},
            "between_sessions": self.between_sessions,
            "within_sessions": self.within_sessions,
        }


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What `measure` found.

    measurements  by quantity: latency_ms and its percentiles, cold_start_ms, memory_bytes, accuracy, …
    operators     what each kernel takes; () with the reason in `operators_not_possible_here`
    disturbed     sentences on other work that ran beside the timing; (): none
    """

    file: Path
    runtime: str
    sha256: str
    size_bytes: int
    download_bytes: int
    measurements: Mapping[str, Measurement]
    operators: tuple[OpCost, ...]
    operators_not_possible_here: str = ""
    disturbed: tuple[str, ...] = ()
    against: Against | None = None

    def to_json(self) -> dict[str, Any]:
        """What `pocketfit measure --json` prints."""
        stated: dict[str, Any] = {
            "file": str(self.file),
            "runtime": self.runtime,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "download_bytes": self.download_bytes,
            "disturbed": list(self.disturbed),
            "measurements": {name: m.to_json() for name, m in self.measurements.items()},
            "operators": [asdict(op) for op in self.operators],
        }
        if self.against is not None:
            stated["against"] = self.against.to_json()
        if self.operators_not_possible_here:
            stated["operators_not_possible_here"] = self.operators_not_possible_here
        return stated


def measure(
    file: str | Path,
    *,
    against: str | Path | None = None,
    samples: Data | None = None,
    model: str | Path | None = None,
    preprocess: Preprocess | str | Path | None = None,
    task: str = "",
    metric: str = "",
    threads: int = 1,
    seed: int = 0,
    runtime: str = "",
    watch: Watch | None = None,
) -> Measured:
    """Size, latency, cold start, memory and the cost of each operator of one file, in its own runtime.

    file        any .tflite, .onnx or .xml file
    against     a second file of the same runtime, timed in turns with it
    samples     adds the accuracy on the test split of this data
    model       a model folder or bundle that says how images are prepared; None: the bundle that the file lies in
    preprocess  the same, said here
    task        what the outputs mean; "": as the bundle says, or the data
    metric      one of the task's, or "package.module:function"; "": the task's first
    threads     of the runtime
    seed        of the random inputs that are timed, and of the order of turns
    runtime     which one, where several take such a file ("micro"); "": the first
    Raises UserError for files and data that do not fit together; CannotRunHere where the runtime is not there.
    """
    file, other = Path(file), None if against is None else Path(against)
    watch = watch or Silent()
    run_samples.check_metric(metric)
    check_files(file, other)
    module = runtimes.for_file(file, runtime)
    if other is not None and runtimes.for_file(other, runtime).NAME != module.NAME:
        raise UserError(
            f"{file.name} and {other.name} belong to different runtimes: ratios are taken inside one runtime"
        )
    judged: Samples | None = None
    if samples is not None:
        contract = contract_of(model, preprocess, file)
        judged, task, metric = _judged(samples, contract, file, task, metric, watch)
    described = artifact_of(file, Plan((), ExportSettings(module.NAME)), module.NAME)
    tick = watch.step("timing")
    if other is None:
        found, compared = latency.latency(module.NAME, file, threads=threads, seed=seed, progress=tick), None
    else:
        (turns,) = latency.compare_latency(module.NAME, other, [file], threads=threads, seed=seed, progress=tick)
        found, compared = {**turns.candidate, **turns.ratios}, Against.of(other, file, turns)
    watch.step("memory and cold start")
    found = {**found, **memory.footprint(module.NAME, file, threads=threads)}
    found |= flash_and_ram(described, threads, memory.PROCESSES)
    if judged is not None:
        with temporary_folder() as work:
            tick = watch.step(f"scoring {len(judged)} samples")
            scores = run_samples.score(
                module.NAME, file, judged, task=task, threads=threads, metric=metric, work=Path(work), progress=tick
            )
        found["accuracy"] = mean_score(scores.centred)
    watch.step("per-operator cost")
    operators, why = _operators(module, file, threads, seed)
    return Measured(
        file=file,
        runtime=module.NAME,
        sha256=described.sha256,
        size_bytes=described.bytes,
        download_bytes=described.download_bytes,
        measurements=found,
        operators=operators,
        operators_not_possible_here=why,
        disturbed=found["latency_ms"].disturbed,
        against=compared,
    )


def _judged(
    samples: Data, contract: Contract, file: Path, task: str, metric: str, watch: Watch
) -> tuple[Samples, str, str]:
    """(the test split as the file takes it, its task, the metric), checked before anything is timed."""
    judged, task = samples_of(samples, contract, "verdict", None, watch, inputs_of(file), task=task)
    does = tasks.get(task)
    metric = metric_of(does, metric)
    run_samples.check_targets(does, judged, judged.labels, metric)
    if metric not in does.METRICS:
        run_samples.try_metric(metric, judged.labels[:TRIED], output_of(file).with_batch(1)[1:])
    return judged, task, metric


def _operators(runtime: Runtime, file: Path, threads: int, seed: int) -> tuple[tuple[OpCost, ...], str]:
    """What each kernel takes; () and the reason where that can't be told here."""
    session = runtime.load(file, threads=threads)
    inputs = latency.random_inputs(session.signature, seed)
    session.close()
    try:
        return tuple(runtime.profile(file, inputs, threads=threads, runs=PROFILE_RUNS)), ""
    except CannotRunHere as reason:
        return (), str(reason)
