"""Where two files differ: in their outputs, and in the first layer at which they drift apart."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pocketfit import runtimes, tasks
from pocketfit.core.errors import ExportFailed, UserError
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Tick
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.measurement import layer_drift as layers
from pocketfit.measurement.further_outputs import OutputFidelity, compare_further
from pocketfit.measurement.run_samples import run_all, score
from pocketfit.measurement.sample_arrays import stored
from pocketfit.numerics import sqnr
from pocketfit.numerics.latency_intervals import Drop, paired_drop
from pocketfit.processes import child_process
from pocketfit.tasks.choose_task import metric_of

LAYER_SAMPLES = 8
FALL_DB = 6.0  # noise twice as large in amplitude as at any layer before
AUDIBLE_DB = 30.0  # above this a fall hardly matters: the noise is under 3 % of the signal
LOW_DB = 10.0  # noise of a third of the signal
SAME_DB = 40.0  # least SQNR at which the file whose layers are read counts as equal to the file that ships


@dataclass(frozen=True)
class LayerDrift:
    """SQNR of one layer of b against a, dB over all samples; inf where both are equal."""

    layer: str
    sqnr_db: float


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Two files on the same samples; a is the reference.

    agreement     share of samples on which both give the same answer, as the task has it
    score_a, _b   mean score under `metric`; None without labels, and then `drop` too
    sqnr_db, cosine  of the first output, all samples together
    further       the same of each output behind it, on some of the samples
    layers        one a layer, in the order of a; () where that could not be done: `layers_note` then says why
    first_drift   the first layer whose SQNR is under 30 dB and 6 dB or more below every layer before it (as before the
                  first, 36 dB); without such a fall, the first layer under 10 dB; None where there is neither
    layers_note   sentences on how the layers were read
    """

    a: str
    b: str
    n: int
    task: str
    agreement: float
    metric: str
    score_a: float | None
    score_b: float | None
    drop: Drop | None
    sqnr_db: float
    cosine: float
    layers: tuple[LayerDrift, ...]
    first_drift: LayerDrift | None
    layers_note: str
    further: tuple[OutputFidelity, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON has no infinity: an infinite SQNR is null."""
        data = asdict(self)
        data["sqnr_db"] = _finite(self.sqnr_db)
        data["further"] = [one.to_json() for one in self.further]
        data["layers"] = [{"layer": one.layer, "sqnr_db": _finite(one.sqnr_db)} for one in self.layers]
        if self.first_drift is not None:
            data["first_drift"] = {"layer": self.first_drift.layer, "sqnr_db": _finite(self.first_drift.sqnr_db)}
        return data


def compare(
    a: Path,
    b: Path,
    samples: Samples,
    *,
    samples_b: Samples | None = None,
    task: str = "classification",
    threads: int = 1,
    metric: str = "",
    layer_samples: int = LAYER_SAMPLES,
    work: Path | None = None,
    progress: Tick | None = None,
) -> Fidelity:
    """Compare file b with file a, each in the runtime that its extension names.

    samples_b      the same samples prepared for b, where b takes another input size
    layer_samples  how many of the samples the layers are compared on, 0 to leave it out

    Raises UserError where the two have outputs of different shapes, and what `run_samples.score` raises.
    """
    names = [runtimes.for_file(path).NAME for path in (a, b)]
    theirs = samples if samples_b is None else samples_b
    does = tasks.get(task)
    labelled = len(samples) > 0 and bool(does.has_target(samples.labels).all())
    metric = metric_of(does, metric, labelled=labelled or does.FORM == "none")
    total = 2 * len(samples)
    scored, answers, outputs = [], [], []
    for number, (path, name, given) in enumerate(zip((a, b), names, (samples, theirs), strict=True)):
        report = None if progress is None else _shifted(progress, number * len(samples), total)
        if labelled:
            found = score(name, path, given, task=task, threads=threads, metric=metric, work=work, progress=report)
            scored.append(found)
            answers.append(found.answers)
            assert found.outputs is not None  # a file that has just been run has them
            outputs.append(found.outputs)
        else:
            ran = run_all(name, path, given, task=task, threads=threads, work=work, progress=report)
            answers.append(does.answers(ran.kept))
            outputs.append(ran.outputs)
    if outputs[0].shape != outputs[1].shape:
        raise UserError(
            f"'{a.name}' has {list(outputs[0].shape[1:])} output values and '{b.name}' with"
            f" {list(outputs[1].shape[1:])}: files of the same network are needed"
        )
    found_layers, note = _layers(names, (a, b), samples, samples_b, count=layer_samples, threads=threads)
    return Fidelity(
        a=str(a),
        b=str(b),
        n=len(samples),
        task=task,
        agreement=float(does.same(answers[0], answers[1]).mean()),
        metric=metric,
        score_a=scored[0].mean if scored else None,
        score_b=scored[1].mean if scored else None,
        drop=paired_drop(scored[0].values, scored[1].values) if scored else None,
        sqnr_db=sqnr.sqnr_db(outputs[0], outputs[1]),
        cosine=sqnr.cosine(outputs[0], outputs[1]),
        layers=found_layers,
        first_drift=first_drift(found_layers),
        layers_note=note,
        further=compare_further((names[0], names[1]), (a, b), (samples, theirs), threads=threads, work=work),
    )


def first_drift(found: tuple[LayerDrift, ...]) -> LayerDrift | None:
    """The layer at which two files drift apart, as Fidelity defines it.

    >>> first_drift((LayerDrift("stem", 40.0), LayerDrift("depthwise", 18.0), LayerDrift("head", 16.0))).layer
    'depthwise'
    >>> first_drift((LayerDrift("stem", 35.0), LayerDrift("head", 33.0))) is None
    True
    """
    lowest = AUDIBLE_DB + FALL_DB
    for one in found:
        if one.sqnr_db < AUDIBLE_DB and one.sqnr_db <= lowest - FALL_DB:
            return one
        lowest = min(lowest, one.sqnr_db)
    return next((one for one in found if one.sqnr_db < LOW_DB), None)


def _layers(
    names: list[str],
    paths: tuple[Path, Path],
    samples: Samples,
    samples_b: Samples | None,
    *,
    count: int,
    threads: int,
) -> tuple[tuple[LayerDrift, ...], str]:
    if count < 1 or len(samples) == 0:
        return (), "Layers were not compared, as no sample was set aside for it"
    if samples_b is not None:
        return (), "Layers of files with different input sizes have different shapes and cannot be compared"
    if reason := layers.why_not(*names):
        return (), reason
    some = samples.take(range(min(count, len(samples))))
    with temporary_folder() as folder:
        payload = {
            "runtime": names[0],
            "a": str(paths[0].resolve()),
            "b": str(paths[1].resolve()),
            "samples": stored(some, Path(folder)),
            "threads": threads,
        }
        try:
            found = child_process.call("pocketfit.measurement.layer_drift:drift_in_child", payload)
        except ExportFailed as error:
            return (), f"The layers of this pair could not be read: {error}"
    drifts = tuple(LayerDrift(name, sqnr.ratio_db(signal, noise)) for name, signal, noise in found["layers"])
    if not drifts:
        return (), "No layer of the two files has the same name and shape (one of them is pruned, or another network)"
    return drifts, _how_read(names[0], paths, len(some), found["tapped_db"])


def _how_read(runtime: str, paths: tuple[Path, Path], count: int, tapped_db: list[float]) -> str:
    differ = runtimes.get(runtime).LAYER_OUTPUTS_DIFFER
    note = f"Layers compared on {count} samples, each behind its activation{differ}"
    for path, decibels in zip(paths, tapped_db, strict=True):
        if not decibels >= SAME_DB:
            note += (
                f". Read this way, '{path.name}' itself is {decibels:.0f} dB away from what ships:"
                " differences of that size between layers mean nothing"
            )
    return note


def _shifted(progress: Tick, done_before: int, total: int) -> Tick:
    return lambda done, _: progress(done_before + done, total)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
