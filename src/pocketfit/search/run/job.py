"""What one `fit` is about: the model, the data, the limits, and the settings that make its identity."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pocketfit import runtimes, tasks
from pocketfit.analysis.layer_table import LayerRow, layer_table
from pocketfit.core.budget import Budget
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Prune
from pocketfit.core.plan.rewrite import Fold
from pocketfit.core.plan.runtime_list import EVERY, for_apps
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.quantities import QUANTITIES
from pocketfit.core.samples import Samples, split_words
from pocketfit.core.signature import TensorSpec
from pocketfit.core.support.loading import installed
from pocketfit.core.support.progress import Watch
from pocketfit.core.support.text import readable
from pocketfit.core.task.task import Task
from pocketfit.core.task.task_list import TASKS
from pocketfit.sources.data.dataset import Dataset, for_form
from pocketfit.sources.data.targets.read_targets import check_outputs
from pocketfit.tasks import embedding
from pocketfit.tasks.choose_task import metric_of, with_task
from pocketfit.tasks.common.class_names import label_mapping, order_of_numbers

CALIBRATION_SAMPLES = 200
PLANNED = ("ram", "flash")  # quantities of files that plan their memory
UNEVEN = 10  # times as many samples of one class as of another: beyond that it is said
PROBED = 32  # samples on which a user's own criterion or metric is tried before the run
WITHOUT_LABELS = (
    "The data have no labels that the task reads: accuracy is the agreement with the original network's answers. It"
    " says how far the file is from the original, and nothing of how often the original is right."
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that decides what a run does. Time and trial limits are not part of its identity: they may grow."""

    model: Model
    data: Dataset
    out: Path
    runtimes: tuple[str, ...]
    budget: Budget
    model_name: str = "network"
    data_name: str = "data"
    io: Literal["float32", "uint8", "int8"] = "float32"
    layout: Literal["", "NHWC", "NCHW"] = ""
    keep_resolution: bool = False
    keep_float: tuple[str, ...] = ()
    threads: int = 1
    seed: int = 0
    task: str = ""  # asked for; settled() finds it where it is ""
    metric: str = ""  # settled() finds it where it is ""
    batch_size: int = 64
    allocation: Literal["uniform", "macs", "latency"] = (
        "macs"  # the cost by which channels are removed; see search/run/channel_allocation.py
    )
    criterion: str = "taylor"
    rounds: int = 1  # how many rounds of pruning and recovery
    layer_ratios: tuple[tuple[str, float], ...] = ()  # (regular expression, ratio) that overrule the search's ratios
    teacher: Model | None = None  # teacher of all trainings; None: the unpruned network

    @cached_property
    def layers(self) -> tuple[LayerRow, ...]:
        """The layer table of the unpruned network (`start`); tracing it takes seconds."""
        return tuple(layer_table(self.start))

    @cached_property
    def fold(self) -> tuple[PassSettings, ...]:
        """What every plan but the float32 baseline begins with: Fold, where there is anything to fold."""
        from pocketfit.passes.rewrite.fold import fold_model

        return (Fold(),) if fold_model.finds_something(self.model) else ()

    @cached_property
    def start(self) -> Model:
        """The model after `fold`: the network that plans prune, train and quantize."""
        from pocketfit.passes.rewrite.fold import fold_model

        return fold_model.apply(self.model) if self.fold else self.model

    @property
    def does(self) -> Task:
        """The functions of the model's task."""
        return tasks.get(self.model.task)

    @property
    def labelled(self) -> bool:
        """Whether the data have targets for the task; without them answers are compared with the original's."""
        return self.does.FORM != "none" and self.data.form == self.does.FORM

    @property
    def cache(self) -> Path:
        return self.out / "cache"

    def identity(self) -> dict[str, Any]:
        """The inputs that must be the same for a run to go on in the same folder."""
        limits = replace(self.budget, max_time_s=None, max_trials=None).to_json()
        return {
            "model": readable(self.model_name),
            "model_sha256": self.model.sha256,
            "data": readable(self.data_name),
            "data_sha256": self.data.sha256,
            "labels": list(self.model.labels),
            "preprocess": self.model.preprocess.to_json(),
            "runtimes": list(self.runtimes),
            "splits": dict(self.data.split_counts(self.model.split_seed)),
            "limits": limits,
            "io": self.io,
            "layout": self.layout,
            "keep_resolution": self.keep_resolution,
            "keep_float": list(self.keep_float),
            "threads": self.threads,
            "seed": self.seed,
            "task": self.model.task,
            "metric": self.metric,
            "batch_size": self.batch_size,
            "allocation": self.allocation,
            "criterion": self.criterion,
            "rounds": self.rounds,
            "layer_ratios": [list(pair) for pair in self.layer_ratios],
            "teacher_sha256": None if self.teacher is None else self.teacher.sha256,
        }

    def samples(self, split: str, preprocess: Preprocess, watch: Watch, *, limit: int | None = None) -> Samples:
        """One split with the labels counted as the model counts them."""
        return read_split(
            self.data,
            split,
            preprocess,
            watch,
            task=self.model.task,
            labels=self.model.labels,
            split_seed=self.model.split_seed,
            inputs=self.model.signature.inputs,
            limit=limit,
            cache=self.cache,
        )


def baseline_export(job: Job, runtime: str) -> ExportSettings:
    """The float32 file that everything else is compared with."""
    return ExportSettings(runtime, layout=job.layout)


def recipes(job: Job, runtime: str) -> tuple[ExportSettings, ...]:
    """Exports without training that this runtime supports, the most promising first."""
    module = runtimes.get(runtime)
    statics: dict[str, Any] = {"layout": job.layout, "keep_float": job.keep_float, "calibration": CALIBRATION_SAMPLES}
    if job.io != "float32":
        statics["io"] = job.io
    wanted = [
        replace(e, **statics) if e.precision == "int8" else replace(e, layout=job.layout) for e in module.recipes()
    ]
    return tuple(e for e in wanted if not module.why_not(Plan((), e), job.model.signature))


def prelude(job: Job, runtime: str) -> tuple[PassSettings, ...]:
    """What is done to the network, after `job.fold`, before a static int8 file is made for this runtime."""
    return runtimes.get(runtime).prelude(job.start)


def why_these_weights(export: ExportSettings) -> list[str]:
    """A sentence where the number of bits of the weights follows from the processor."""
    if export.weights != "int7":
        return []
    return [
        "Weights have 7 bits in place of 8: this processor adds pairs of uint8 x int8 products in 16 bits, which"
        " 8-bit weights overflow (it has no VNNI)."
    ]


def check_runtimes(job: Job) -> None:
    """Refuse, before any work, runtimes that cannot carry out what was asked for."""
    for runtime in job.runtimes:
        module = runtimes.get(runtime)
        refusals = module.why_not(Plan((), baseline_export(job, runtime)), job.model.signature)
        if refusals:
            raise UserError(refusals[0])
        for quantity in PLANNED if not module.ARENA else ():
            if job.budget.limit_on(quantity) is not None:
                raise UserError(
                    f"{QUANTITIES[quantity].option} is about microcontrollers, and {runtime} plans no memory: give"
                    " --runtime micro"
                )
        static = [r for r in recipes(job, runtime) if r.precision == "int8"]
        if job.io != "float32" and not static:
            asked = ExportSettings(
                runtime, "int8", activations="uint8" if job.io == "uint8" else "int8", io=job.io, layout=job.layout
            )
            raise UserError(module.why_not(Plan((), asked), job.model.signature)[0])


def with_every_runtime(job: Job) -> tuple[Job, list[str]]:
    """The job with each runtime that is installed, measures and takes its network, where "all" was asked for; and a
    sentence about each of the others."""
    if job.runtimes != (EVERY,):
        return job, []
    taken, left_out = [], []
    for name in for_apps():
        module = runtimes.get(name)
        missing = [package for package in module.PACKAGES if not installed(package)]
        if module.HOW != "measured":
            reason = "its times cannot be measured here"
        elif missing:
            reason = f"{missing[0]} is not installed: pip install 'pocketfit[{module.EXTRA}]'"
        else:
            refusals = module.why_not(Plan((), baseline_export(job, name)), job.model.signature)
            reason = refusals[0] if refusals else ""
        if reason:
            left_out.append(f"{name} takes no part: {reason}")
        else:
            taken.append(name)
    if not taken:
        raise UserError("; ".join(left_out))
    return replace(job, runtimes=tuple(taken)), left_out


def check_criterion(job: Job) -> None:
    """Refuse a criterion of the user's own that gives no sound scores, before anything is written."""
    asked = Prune(0.0, job.criterion, samples=PROBED)
    if asked.calls_code:
        from pocketfit.passes.graph.channel_graph import trace
        from pocketfit.passes.prune import criteria

        preprocess, seed = job.model.preprocess, job.model.split_seed
        some = job.data.split("train", preprocess, split_seed=seed, inputs=job.model.signature.inputs, limit=PROBED)
        samples = job.does.read_targets(some, job.model.labels) if job.labelled else some
        criteria.group_scores(job.start, trace(job.start.network, job.start.signature), asked, samples)


def check_metric(job: Job) -> None:
    """Refuse a metric of the user's own that gives no scores, before anything is written."""
    from pocketfit.measurement.run_samples import try_metric

    if job.metric in job.does.METRICS:
        return
    if not job.labelled:
        raise UserError(
            f"The metric '{job.metric}' compares with labels, and the data have none: leave out --metric, so that the"
            " answers are compared with the original network's"
        )
    model = job.model
    some = job.data.split(
        "search", model.preprocess, split_seed=model.split_seed, inputs=model.signature.inputs, limit=PROBED
    )
    shape = job.model.signature.outputs[0].with_batch(1)[1:]
    try_metric(job.metric, job.does.read_targets(some, job.model.labels).labels, shape)


def check_layers(job: Job) -> None:
    """Refuse a name to keep in float that is no layer with weights, with the nearest ones, and a pattern with a ratio
    that matches none."""
    if job.layer_ratios:
        from pocketfit.passes.graph.channel_graph import trace
        from pocketfit.passes.prune import prune_channels

        prune_channels.counts_kept(
            trace(job.start.network, job.start.signature), Prune(0.0, job.criterion, layers=job.layer_ratios)
        )
    names = [row.name for row in job.layers if row.macs]
    for name in job.keep_float:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3) or [names[0], names[-1]]
            raise UserError(
                f"--keep-float names '{name}', which is no layer with weights of {job.model_name}; near it are"
                f" {', '.join(near)}"
            )


def check_teacher(job: Job) -> None:
    """Refuse a teacher for other classes or for another input than the model's."""
    if job.teacher is not None:
        from pocketfit.passes.train import distillation

        distillation.check_teacher(job.teacher, job.model)


def check_data(job: Job) -> None:
    """Refuse data that is not enough for a run; see Dataset.findings and `about_data` for mere remarks."""
    try:
        job.data.check_splits(job.model.split_seed)
    except UserError as error:
        raise UserError(f"{job.data_name}: {error}") from error
    job.data.check_fits(job.model.signature.inputs, job.model.preprocess)
    if job.labelled:
        check_outputs(job.data.listing, job.model.signature.outputs[0], job.model.preprocess)
    if job.labelled and job.data.form in ("classes", "tags"):
        label_mapping(job.data.class_names, job.model.labels)


def about_data(job: Job) -> list[str]:
    """Remarks on the data, and on how it fits the network, in sentences."""
    if not job.labelled:
        return [WITHOUT_LABELS]
    if job.data.form == "identities":
        pairs = {split: job.data.targets(split, job.model.split_seed) for split in embedding.JUDGED}
        return [few for split, known in pairs.items() if (few := embedding.too_few(job.metric, known, split))]
    if job.model.task not in ("classification", "binary"):
        return []
    shares = np.bincount(job.data.listing.labels, minlength=1)
    seen = shares[shares > 0]
    said = order_of_numbers(job.data.class_names, job.model.labels)
    if job.metric == "accuracy" and len(seen) > 1 and seen.max() >= UNEVEN * seen.min():
        most, least = int(shares.argmax()), int(np.flatnonzero(shares == seen.min())[0])
        said.append(
            f"Classes are very uneven: '{job.data.class_names[most]}' has {seen.max():,} samples and"
            f" '{job.data.class_names[least]}' {seen.min():,}. A plain accuracy hardly sees the rare ones;"
            " --metric balanced-accuracy counts every class alike."
        )
    return said


def read_split(
    data: Dataset,
    split: str,
    preprocess: Preprocess,
    watch: Watch,
    *,
    task: str,
    labels: Sequence[str],
    split_seed: int,
    inputs: Sequence[TensorSpec] = (),
    limit: int | None = None,
    cache: Path | None = None,
) -> Samples:
    """One split of the data; its labels are targets of the task, where the data have these, else -1."""
    tick = watch.step(f"reading the {split_words(split)} split")
    found = data.split(split, preprocess, split_seed=split_seed, inputs=inputs, limit=limit, cache=cache, progress=tick)
    does = tasks.get(task)
    if does.FORM == "none" or data.form != does.FORM:
        return replace(found, labels=np.full(len(found), -1, np.int64), class_names=tuple(labels))
    return does.read_targets(found, labels) if labels or data.form not in ("classes", "tags") else found


def settled(job: Job) -> Job:
    """The job with its model's task, labels and metric. Raises UserError where network, data and task do not fit."""
    data = for_form(job.data, tasks.get(job.task).FORM if job.task in TASKS else "none")
    model = with_task(job.model, data.form, data.class_names, job.task)
    known = replace(job, model=model, data=data)
    return replace(
        known, metric=metric_of(known.does, job.metric, labelled=known.labelled or known.does.FORM == "none")
    )


def differences(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which inputs differ from those that a folder's journal was begun with, in words."""
    return [key.replace("_", " ") for key in now if known.get(key) != now[key]]
