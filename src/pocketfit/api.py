"""`pocketfit.fit` from Python: the same road as the command line's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pocketfit.core.budget import Budget
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.pass_settings import Criterion
from pocketfit.core.plan import ExportSettings, Plan, Prune
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.core.support.array_file import forget_arrays
from pocketfit.core.support.cpus import check_threads, usable
from pocketfit.core.support.files import OF_APPLY, check_folder, held, write_json
from pocketfit.core.support.processes import check_alone
from pocketfit.core.support.progress import Silent, Watch
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.core.support.user_code import Allowed
from pocketfit.core.trial import Trial
from pocketfit.measure.run_samples import check_metric
from pocketfit.search.decide.result import Result
from pocketfit.search.run.job import Task, about_order, check_teacher, with_labels
from pocketfit.search.run.loop import check_out, fit_task
from pocketfit.search.run.run_trial import Exported, export
from pocketfit.sources.data.dataset import Dataset, from_arrays, open_data
from pocketfit.sources.models.open_model import model_from_module, open_model

if TYPE_CHECKING:
    from pocketfit.analysis.pruning.plan_for_target import Target
    from pocketfit.analysis.pruning.sensitivity import ChannelTable

GOLDEN_SAMPLES = 4


def fit(
    model: Any,
    samples: Any,
    budget: Budget,
    *,
    out: str | Path,
    runtimes: Sequence[str] = ("litert",),
    preprocess: Preprocess | None = None,
    labels: Sequence[str] = (),
    io: Literal["float32", "uint8", "int8"] = "float32",
    layout: Literal["", "NHWC", "NCHW"] = "",
    keep_resolution: bool = False,
    keep_float: Sequence[str] = (),
    threads: int = 1,
    seed: int = 0,
    metric: str = "accuracy",
    batch_size: int = 64,
    allocation: Literal["uniform", "macs", "latency"] = "macs",
    criterion: str = "taylor",
    rounds: int = 1,
    layer_ratios: Sequence[tuple[str, float]] = (),
    teacher: Any = None,
    watch: Watch | None = None,
    allow_code: Allowed = False,
) -> Result:
    """Find, make and prove a file that meets the budget.

    model    a torch.nn.Module (then `preprocess` says what it expects), a Model, or the name of a model folder
    samples  a Dataset, a folder of pictures by class, an .npz file, or a pair (x, y): uint8 pictures [N, H, W, C] with
             integer labels [N]
    budget   e.g. Budget.parse(max_size="3MB", max_latency="0.6x", max_drop="1pt", max_time="10min")
    out      the folder for journal.jsonl, result.json, plan.json, models/, bundle/ and report.html; a run that was
             stopped goes on there
    teacher  what pruned networks learn from, in the words of `model`; None: the model itself, unpruned
    allow_code  whether a factory that a model folder names may be called: True, or the names that may

    Raises UserError (bad input, in one sentence) and Stopped (Ctrl-C; the best so far has been delivered).
    """
    check_out(Path(out))
    check_metric(metric)
    data = as_dataset(samples)
    network = as_model(model, preprocess, labels, allow_code)
    task = Task(
        network,
        data,
        Path(out),
        tuple(runtimes),
        budget,
        model_name=network.origin.name,
        data_name=str(samples) if isinstance(samples, str | Path) else "arrays",
        io=io,
        layout=layout,
        keep_resolution=keep_resolution,
        keep_float=tuple(keep_float),
        threads=threads,
        seed=seed,
        metric=metric,
        batch_size=batch_size,
        allocation=allocation,
        criterion=criterion,
        rounds=rounds,
        layer_ratios=tuple(layer_ratios),
        teacher=None if teacher is None else as_model(teacher, preprocess, labels, allow_code),
    )
    return run(task, watch)


def run(task: Task, watch: Watch | None = None) -> Result:
    """`fit_task` with what stands above the search: the bundle and the report are written as results come in."""
    check_alone("fit")
    check_threads(task.threads)
    stay_in_quota()
    watch = watch or Silent()
    check_teacher(task)
    return fit_task(replace(task, model=with_labels(task.model, task.data.class_names)), Delivery(watch), watch)


def run_without_data(task: Task, watch: Watch | None = None) -> dict[str, Any]:
    """The one int8 file that needs no data, with its bundle; returns result.json. See search/run/data_free.py."""
    from pocketfit.bundle.write import write_bundle
    from pocketfit.search.run.data_free import fit_without_data
    from pocketfit.sources.data.random_inputs import noise

    data, made = fit_without_data(replace(task, model=with_labels(task.model)), watch)
    golden = noise(made.model.signature.inputs[0], made.model.preprocess, GOLDEN_SAMPLES)
    measurements = data["trials"][data["chosen"]]["measurements"]
    write_bundle(task.out / "bundle", made.artifact, made.model, golden=golden, measurements=measurements, result=None)
    return data


def stay_in_quota() -> None:
    """Let PyTorch use no more threads than the container's CPU quota lets run; without a quota nothing changes."""
    import torch

    if (most := usable()) < torch.get_num_threads():
        torch.set_num_threads(most)


class Delivery:
    """Writes result.json, plan.json and report.html after every trial, the bundle when the best so far has changed."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._bundled: tuple[str, bool] | None = None

    def __call__(self, task: Task, data: dict[str, Any], chosen: Trial | None, *, finished: bool) -> None:
        from pocketfit.report.run.render import write_report

        write_json(task.out / "result.json", data)
        if chosen is not None and chosen.artifact is not None:
            write_json(task.out / "plan.json", chosen.plan.to_json())
            key = (chosen.artifact.sha256, finished)
            if key != self._bundled:
                bundle(task, chosen, data, self._watch)
                self._bundled = key
        write_report(task.out)


def bundle(task: Task, chosen: Trial, data: dict[str, Any], watch: Watch) -> None:
    """The chosen file with the code that calls it, in `out/bundle`."""
    from pocketfit.bundle.write import write_bundle
    from pocketfit.search.run.apply_passes import carried_out

    assert chosen.artifact is not None
    model = carried_out(task, chosen.plan, watch)
    golden = task.samples("calibration", model.preprocess, watch, limit=GOLDEN_SAMPLES)
    artifact = replace(chosen.artifact, path=str(task.out / chosen.artifact.path))
    write_bundle(
        task.out / "bundle",
        artifact,
        model,
        golden=golden,
        measurements=data["chosen"]["measurements"],
        result=data if data["status"] != "stopped" else None,
    )


def apply(
    plan: Plan,
    model: Model,
    data: Dataset,
    out: Path,
    *,
    teacher: Model | None = None,
    threads: int = 1,
    watch: Watch | None = None,
) -> Exported:
    """Make the artifact of a plan again, as `out/<code>-<hash>.<ext>`; trained prefixes are kept in out/cache."""
    watch = watch or Silent()
    check_folder(out, OF_APPLY)
    stay_in_quota()
    named = with_labels(model, data.class_names)
    task = Task(named, data, out, (plan.export.runtime,), Budget(), threads=threads, teacher=teacher)
    check_teacher(task)
    data.check_fits(model.signature.inputs[0], model.preprocess)
    with held(out):
        made = export(task, plan, watch, folder=out)
        forget_arrays(task.cache)
    return made


def take_part(plan: Plan, model: Model, data: Dataset, *, teacher: Model | None = None) -> None:
    """What all processes but the first do in `apply` where torchrun has started several: train with it, write nothing.

    What they keep on the way is in a folder of their own, and gone in the end.
    """
    from pocketfit.search.run.run_trial import prepared

    with temporary_folder() as own:
        task = Task(
            with_labels(model, data.class_names), data, Path(own), (plan.export.runtime,), Budget(), teacher=teacher
        )
        check_teacher(task)
        prepared(task, plan, Silent())


def sensitivity(
    model: Any,
    samples: Any,
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
    *,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] = (),
    criterion: Criterion = "l2",
    multiple: int = 8,
    limit: int = 1000,
    workers: int = 1,
    store: Path | None = None,
    target: Target | None = None,
    runtime: str = "onnxruntime",
    threads: int = 1,
    watch: Watch | None = None,
    allow_code: Allowed = False,
) -> ChannelTable:
    """What each group of coupled channels costs when it alone is pruned, estimated on the search split in PyTorch.

    model, samples, preprocess, labels, allow_code  as for `fit`; at most `limit` samples are looked at
    ratios, criterion, multiple, workers, store  as for analysis.channel_sensitivity
    target  what a plan shall reach: raises UserError, before anything is evaluated, where the ratios cannot reach it
    runtime, threads  where a target for the latency counts; its table of costs is measured, in float32, or taken from
            cost_table.cache_folder()
    """
    from pocketfit.analysis.pruning import predicted_latency
    from pocketfit.analysis.pruning.plan_for_target import check_reachable
    from pocketfit.analysis.pruning.sensitivity import channel_sensitivity, checked_ratios
    from pocketfit.measure.channel_cost_table import cache_folder
    from pocketfit.passes.graph.channel_graph import trace
    from pocketfit.passes.prune.criteria import DATA_DRIVEN
    from pocketfit.search.run.job import aligned

    shares, asked = checked_ratios(ratios), Prune(0.0, criterion, multiple)
    watch = watch or Silent()
    data = as_dataset(samples)
    opened, latency = as_model(model, preprocess, labels, allow_code), None
    network = with_labels(opened, data.class_names)
    data.check_fits(network.signature.inputs[0], network.preprocess)
    for sentence in about_order(opened, network, data.class_names):
        watch.say(sentence)
    if target is not None and target.name == "latency":
        graph, settings = trace(network.network, network.signature), ExportSettings(runtime)
        tables = cache_folder(watch)
        latency = predicted_latency.measured(network, graph, settings, tables, threads=threads, watch=watch)
    with temporary_folder() as work:

        def split(name: str, most: int) -> Samples:
            tick = watch.step(f"reading the {name} split")
            found = data.split(
                name, network.preprocess, split_seed=network.split_seed, limit=most, progress=tick, cache=Path(work)
            )
            return aligned(found, data.class_names, network.labels)

        judged = split("search", limit)
        looked_at = split("train", asked.samples) if criterion in DATA_DRIVEN else None
        return channel_sensitivity(
            network,
            judged,
            shares,
            criterion=criterion,
            multiple=multiple,
            looked_at=looked_at,
            workers=workers,
            store=store,
            progress=watch.step("judging groups of channels"),
            check=None if target is None else lambda table: check_reachable(table, target),
            latency=latency,
        )


def as_dataset(samples: Any) -> Dataset:
    """A Dataset from what `fit` takes."""
    if isinstance(samples, Dataset):
        return samples
    if isinstance(samples, str | Path):
        return open_data(samples)
    if isinstance(samples, tuple) and len(samples) == 2:
        return from_arrays(*samples)
    raise UserError("samples must be a Dataset, a folder, an .npz file, or a pair of arrays (x, y)")


def as_model(model: Any, preprocess: Preprocess | None, labels: Sequence[str], allow_code: Allowed = False) -> Model:
    """A Model from what `fit` takes."""
    if isinstance(model, Model):
        return model
    if isinstance(model, str | Path):
        return open_model(str(model), preprocess=preprocess, labels=tuple(labels) or None, allow_code=allow_code)
    if preprocess is None:
        raise UserError("A bare module does not say how its pictures are prepared: give preprocess=Preprocess(...)")
    return model_from_module(
        model,
        preprocess=preprocess,
        labels=tuple(labels),
    )
