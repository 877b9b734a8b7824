"""What one `fit` is about: the model, the data, the limits, and the settings that make its identity."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pocketfit import runtimes
from pocketfit.analysis.layer_table import LayerRow, layer_table
from pocketfit.core.budget import Budget
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Prune
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples, split_words
from pocketfit.core.support.progress import Watch
from pocketfit.core.support.text import comparable, readable, some
from pocketfit.sources.data.dataset import Dataset

CALIBRATION_SAMPLES = 200
UNEVEN = 10  # times as many samples of one class as of another: beyond that it is said
NUMBER, WORDNET_ID = re.compile("[0-9]{1,9}"), re.compile("n[0-9]{8}")
PROBED = 32  # samples on which a user's own criterion is tried before the run


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
    metric: str = "accuracy"
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
        """The layer table of the unpruned network; tracing it takes seconds."""
        return tuple(layer_table(self.model))

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
            labels=self.model.labels,
            split_seed=self.model.split_seed,
            limit=limit,
            cache=self.cache,
        )


def baseline_export(job: Job, runtime: str) -> ExportSettings:
    """The float32 file that everything else is compared with."""
    return ExportSettings(runtime, layout=job.layout)


def recipes(job: Job, runtime: str) -> tuple[ExportSettings, ...]:
    """Exports without training that this runtime supports, the most promising first."""
    module = runtimes.get(runtime)
    wanted = [
        replace(e, io=job.io, layout=job.layout, keep_float=job.keep_float, calibration=CALIBRATION_SAMPLES)
        if e.precision == "int8"
        else replace(e, layout=job.layout)
        for e in module.recipes()
    ]
    return tuple(e for e in wanted if not module.why_not(Plan((), e), job.model.signature))


def prelude(job: Job, runtime: str) -> tuple[PassSettings, ...]:
    """What is done to the network before a static int8 file is made for this runtime."""
    return runtimes.get(runtime).prelude(job.model)


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
        static = [r for r in recipes(job, runtime) if r.precision == "int8"]
        if job.io != "float32" and not static:
            asked = ExportSettings(
                runtime, "int8", activations="uint8" if job.io == "uint8" else "int8", io=job.io, layout=job.layout
            )
            raise UserError(module.why_not(Plan((), asked), job.model.signature)[0])


def check_criterion(job: Job) -> None:
    """Refuse a criterion of the user's own that gives no sound scores, before anything is written."""
    asked = Prune(0.0, job.criterion, samples=PROBED)
    if asked.calls_code:
        from pocketfit.passes.graph.channel_graph import trace
        from pocketfit.passes.prune import criteria

        preprocess, seed = job.model.preprocess, job.model.split_seed
        some = job.data.split("train", preprocess, split_seed=seed, limit=PROBED)
        samples = aligned(some, job.data.class_names, job.model.labels)
        criteria.group_scores(job.model, trace(job.model.network, job.model.signature), asked, samples)


def check_metric(job: Job) -> None:
    """Refuse a metric of the user's own that gives no scores, before anything is written."""
    from pocketfit.measurement.run_samples import try_metric

    mapping = np.array(label_mapping(job.data.class_names, job.model.labels))
    try_metric(job.metric, mapping[job.data.listing.labels[:PROBED]], len(job.model.labels))


def check_layers(job: Job) -> None:
    """Refuse a name to keep in float that is no layer with weights, with the nearest ones, and a pattern with a ratio
    that matches none."""
    if job.layer_ratios:
        from pocketfit.passes.graph.channel_graph import trace
        from pocketfit.passes.prune import prune_channels

        prune_channels.counts_kept(
            trace(job.model.network, job.model.signature), Prune(0.0, job.criterion, layers=job.layer_ratios)
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
    job.data.check_fits(job.model.signature.inputs[0], job.model.preprocess)
    label_mapping(job.data.class_names, job.model.labels)


def about_data(job: Job) -> list[str]:
    """Remarks on the data, and on how it fits the network, in sentences."""
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
    labels: Sequence[str],
    split_seed: int,
    limit: int | None = None,
    cache: Path | None = None,
) -> Samples:
    """One split of the data; its labels are indices into `labels`, where there are some."""
    tick = watch.step(f"reading the {split_words(split)} split")
    found = data.split(split, preprocess, split_seed=split_seed, limit=limit, cache=cache, progress=tick)
    return aligned(found, data.class_names, labels) if labels else found


def aligned(samples: Samples, class_names: Sequence[str], labels: Sequence[str]) -> Samples:
    """The samples with labels as indices into the model's labels, matched by name.

    A data set may hold only some of the model's classes. Folder names that are class indices fit a model whose labels
    are not known by name. Raises UserError where a class of the data is none of the model's.
    """
    mapping = label_mapping(class_names, labels)
    table = np.array([*mapping, -1], np.int64)  # the last entry maps -1 (no label) to itself
    return replace(samples, labels=table[samples.labels], class_names=tuple(labels))


def with_labels(model: Model, class_names: Sequence[str] = ()) -> Model:
    """The model with labels, if it has none.

    Where there are as many classes as outputs, the labels are the classes in their order, and a finding says so; else
    they are the outputs' numbers.
    """
    outputs = model.signature.outputs[0].shape[-1]
    if model.labels or outputs is None:
        return model
    numbers = tuple(map(str, range(outputs)))
    if len(class_names) != outputs or all(name in numbers for name in class_names):
        return replace(model, labels=numbers)
    said = (
        f"Nobody has said which output of the network is which class: the order of the outputs is assumed to be"
        f" {some(class_names, 5)} (names sorted as text, as torchvision's ImageFolder does); give --labels where it is"
        " another."
    )
    return replace(model, labels=tuple(class_names), findings=(*model.findings, said))


def about_order(opened: Model, named: Model, class_names: Sequence[str]) -> list[str]:
    """Sentences about the order of the classes that `with_labels` and `label_mapping` have assumed."""
    return [*named.findings[len(opened.findings) :], *order_of_numbers(class_names, named.labels)]


def label_mapping(class_names: Sequence[str], labels: Sequence[str]) -> list[int]:
    """For each class of the data, its index among the model's labels.

    >>> label_mapping(["cat", "dog"], ["bird", "dog", "cat"])
    [2, 1]
    """
    known = {comparable(name): index for index, name in enumerate(labels)}
    counts = Counter(map(comparable, labels))
    if twice := [name for name in class_names if counts[comparable(name)] > 1]:
        raise UserError(f"The label '{twice[0]}' stands for several outputs of the network: give each its own name")
    missing = [name for name in class_names if comparable(name) not in known]
    if not missing:
        return [known[comparable(name)] for name in class_names]
    if _are_numbers(class_names, len(labels)):
        return [int(name) for name in class_names]
    mend = "name the class folders as the model does, or give --labels"
    if all(WORDNET_ID.fullmatch(name) for name in class_names):
        mend = "these are WordNet ids: give --labels with a file of the ids, in the order of the network's outputs"
    elif _are_numbers(class_names, len(labels) + 1):
        mend = "outputs count from 0, and these numbers seem to count from 1: give --labels with the folders' names"
    raise UserError(
        f"The data's class '{missing[0]}' ({len(missing)} of {len(class_names)} in all) is none of the model's"
        f" {len(labels)} labels ({some(labels)}): {mend}"
    )


def order_of_numbers(class_names: Sequence[str], labels: Sequence[str]) -> list[str]:
    """A sentence where the names of classes are numbers: they are taken for output numbers, and might mean something
    else."""
    if not _are_numbers(class_names, len(labels)):
        return []
    if not {comparable(name) for name in class_names} <= {comparable(name) for name in labels}:
        return [f"The data's classes {some(class_names)} are taken for the numbers of the outputs, counted from 0."]
    by_number = sorted(class_names, key=int)
    if list(labels) != list(map(str, range(len(labels)))) or by_number == list(class_names):
        return []  # as labels of arrays, which are numbers from the start, or where both orders are the same
    return [
        f"The data's classes are taken for the numbers of the outputs: {some(by_number)}. A network that was trained on"
        f" such folders with torchvision's ImageFolder has them in another order ({some(sorted(class_names), 4)}): then"
        " give --labels."
    ]


def _are_numbers(names: Sequence[str], outputs: int) -> bool:
    return all(NUMBER.fullmatch(name) and int(name) < outputs for name in names)


def differences(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which inputs differ from those that a folder's journal was begun with, in words."""
    return [key.replace("_", " ") for key in now if known.get(key) != now[key]]
