"""The verdict: the chosen file and its baseline, scored once on the verdict split (the field's test split)."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.measurement import Measurement
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Watch
from pocketfit.core.task.task import Group, HasFigures
from pocketfit.core.trial import Trial
from pocketfit.measurement import group_scores, latency, run_samples
from pocketfit.measurement.further_outputs import compare_further
from pocketfit.search.decide.control import steps
from pocketfit.search.run.apply_passes import carried_out
from pocketfit.search.run.file_quantities import of_file
from pocketfit.search.run.job import Job
from pocketfit.search.run.run_trial import drop, mean_score, scored, timing
from pocketfit.search.run.verdict import scores_once
from pocketfit.search.run.verdict.disturbed_latencies import patient
from pocketfit.tasks import embedding
from pocketfit.tasks.choose_task import title_of
from pocketfit.tasks.common.class_names import label_mapping

PICTURES_SHOWN = 12
FOOTPRINT_PROCESSES = 3


def read_verdict(
    job: Job,
    chosen: Trial,
    baseline: Trial,
    control: Trial | None,
    reading: int,
    watch: Watch,
    *,
    best: Mapping[str, float] | None = None,
    left_s: Callable[[], float] = lambda: math.inf,
) -> dict[str, Any]:
    """The journal's verdict line. Each file gets the same images in the same order, by its own preprocessing.

    control  the network trained as long as the chosen one and not pruned, where that was made
    best     see latency.compare_latency
    left_s   how many seconds of the time limit are left; the timing waits no longer than that for a quiet machine
    """
    runtime, threads = chosen.runtime, job.threads
    sides = {"baseline": baseline, "chosen": chosen} | ({} if control is None else {"control": control})
    artifact = {side: t.artifact for side, t in sides.items() if t.artifact is not None}
    paths = {side: job.out / one.path for side, one in artifact.items()}
    model = carried_out(job, chosen.plan, watch)
    own = job.samples("verdict", job.model.preprocess, watch)
    samples = {"baseline": own, "control": own, "chosen": job.samples("verdict", model.preprocess, watch)}
    scores: dict[str, run_samples.Scores] = {}
    for side, trial in sides.items():
        if (known := scores_once.kept(job, trial)) is None:
            tick = watch.step(f"verdict: the {side} file on {len(samples[side])} samples in {runtime}")
            original = scores["baseline"].answers if "baseline" in scores else None
            known = scored(job, runtime, paths[side], samples[side], original, tick)
            scores_once.keep(job, trial, known)
        scores[side] = known
    watch.step("verdict: latency and memory")
    effort = patient(latency.CAREFUL, job.budget, left_s())
    times, reference_times = timing(runtime, paths["baseline"], paths["chosen"], threads, effort, best)
    measured = {
        **times,
        **of_file(artifact["chosen"], threads=threads, processes=FOOTPRINT_PROCESSES, path=paths["chosen"]),
        "accuracy": mean_score(scores["chosen"].centred),
        "drop_points": drop(scores["baseline"].values, scores["chosen"].values),
    }
    reference: dict[str, Measurement] = {
        **reference_times,
        **of_file(artifact["baseline"], threads=threads, processes=FOOTPRINT_PROCESSES, path=paths["baseline"]),
        "accuracy": mean_score(scores["baseline"].centred),
    }
    return {
        "kind": "verdict",
        "reading": reading,
        "trial": chosen.number,
        "baseline": baseline.number,
        "task": job.does.NAME,
        "labelled": job.labelled,
        "metric": job.metric,
        "metric_title": title_of(job.does, job.metric, labelled=job.labelled),
        "n": len(samples["chosen"]),
        "before": reference["accuracy"].value,
        "after": measured["accuracy"].value,
        "drop": _drop_json(measured["drop_points"]),
        "latency_ratio": measured["latency_ratio"].to_json(),
        "measurements": {name: m.to_json() for name, m in measured.items()},
        "baseline_measurements": {name: m.to_json() for name, m in reference.items()},
        "control": None if control is None else _against(control, scores),
        "per_class": _class_rows(job, scores["baseline"], scores["chosen"], samples["chosen"]),
        "figures": _figures(job, scores["baseline"], scores["chosen"], samples["chosen"]),
        "disagreements": disagreements(job, scores["baseline"], scores["chosen"], samples["chosen"]),
        "verification": _verification(job, scores, own),
        "further": _further(job, runtime, (paths["baseline"], paths["chosen"]), (own, samples["chosen"])),
    }


def _further(
    job: Job, runtime: str, paths: tuple[Path, Path], samples: tuple[Samples, Samples]
) -> list[dict[str, Any]]:
    """How near the outputs behind the first one are to the baseline's; []: there are none."""
    if len(job.model.signature.outputs) == 1:
        return []
    found = compare_further((runtime, runtime), paths, samples, threads=job.threads, work=job.cache)
    return [one.to_json() for one in found]


def _verification(job: Job, scores: Mapping[str, run_samples.Scores], samples: Samples) -> dict[str, Any] | None:
    """The threshold of each file on these pairs; None where the task is another, or the metric has no FAR."""
    if job.model.task != "embedding" or not job.labelled or job.metric not in embedding.FARS:
        return None
    found = {}
    for key, side in (("before", "baseline"), ("after", "chosen")):
        point = embedding.operating_point(job.metric, scores[side].answers, samples.labels)
        found[key] = None if point is None else point.to_json()
    return found


def _against(control: Trial, scores: Mapping[str, run_samples.Scores]) -> dict[str, Any]:
    """What the control gained over the baseline by its training, and what the chosen file loses against it."""
    return {
        "trial": control.number,
        "steps": steps(control.plan),
        "accuracy": mean_score(scores["control"].centred).value,
        "gain": _drop_json(drop(scores["control"].values, scores["baseline"].values)),
        "loss": _drop_json(drop(scores["control"].values, scores["chosen"].values)),
    }


def _class_rows(
    job: Job, before: run_samples.Scores, after: run_samples.Scores, samples: Samples
) -> list[dict[str, Any]]:
    """One row a class of the data, or a kind of sample; without a share where the split has none of a class."""
    labels = job.model.labels
    groups = job.does.groups(samples, labels)
    if before.by_class is not None and after.by_class is not None and job.labelled:
        return _rows_of_metric(groups, labels, before.by_class, after.by_class)
    rows = group_scores.per_group(groups, before.of_each, after.of_each)
    known = [{"label": row.name, "n": row.n, "before": row.baseline, "after": row.candidate} for row in rows]
    if not job.labelled or job.data.form != "classes":
        return known
    wanted = [labels[place] for place in sorted(label_mapping(job.data.class_names, labels))]
    absent = [name for name in wanted if name not in {row.name for row in rows}]
    return known + [{"label": name, "n": 0, "before": None, "after": None} for name in absent]


def _figures(job: Job, before: run_samples.Scores, after: run_samples.Scores, samples: Samples) -> list[dict[str, Any]]:
    """What the task tells beside its metric, in units of its own: one row a figure."""
    does = job.does
    if not isinstance(does, HasFigures):
        return []
    targets = samples.labels if job.labelled else before.answers
    sides = [does.figures(scores.answers, targets, job.model.labels) for scores in (before, after)]
    return [
        {"name": was.name, "unit": was.unit, "before": was.value, "after": now.value}
        for was, now in zip(*sides, strict=True)
    ]


def _rows_of_metric(
    groups: Sequence[Group], labels: Sequence[str], before: NDArray[np.float64], after: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """One row a class with the metric's own number of it, the largest drop first."""
    index = {label: place for place, label in enumerate(labels)}
    rows = [
        {"label": g.name, "n": len(g.rows), "before": float(before[place]), "after": float(after[place])}
        for g in groups
        if (place := index.get(g.name, len(labels))) < min(len(before), len(after))
    ]
    return sorted(rows, key=lambda row: row["after"] - row["before"])


def disagreements(
    job: Job, before: run_samples.Scores, after: run_samples.Scores, samples: Samples
) -> list[dict[str, Any]]:
    """Samples on which the two files' answers differ: first those that became wrong, last those mended."""
    does, labels = job.does, job.model.labels
    rows = np.flatnonzero(~does.same(before.answers, after.answers))
    rows = rows[np.argsort(after.of_each[rows] - before.of_each[rows], kind="stable")][:PICTURES_SHOWN]
    return [
        {
            "name": str(samples.names[int(row)]),
            "label": does.words(samples.labels[row], labels) if job.labelled else "",
            "before": does.words(before.answers[row], labels),
            "after": does.words(after.answers[row], labels),
            "picture": picture_url(samples, int(row)),
        }
        for row in rows
    ]


def picture_url(samples: Samples, row: int) -> str:
    """A small PNG as a data URL; "" where the samples are not images."""
    pixels = np.asarray(samples.array[row])
    if pixels.dtype != np.uint8 or pixels.ndim != 3:
        return ""
    from PIL import Image

    colour = samples.preprocess.colour
    shown = pixels[..., ::-1] if colour == "BGR" else pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    image = Image.fromarray(np.ascontiguousarray(shown))
    image.thumbnail((96, 96))
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _drop_json(measured: Measurement) -> dict[str, Any]:
    return {
        "points": measured.value,
        "low": measured.low,
        "high": measured.high,
        "upper_one_sided": measured.one_sided,
    }
