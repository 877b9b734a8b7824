"""`pocketfit.fit`: the main job from Python, on the same road as the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pocketfit.api.delivery import GOLDEN_SAMPLES, Delivery
from pocketfit.api.inputs import Data, Network, as_dataset, as_model
from pocketfit.core.budget import Budget
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.cpus import check_threads, usable
from pocketfit.core.support.processes import check_alone
from pocketfit.core.support.progress import Silent, Watch
from pocketfit.core.support.user_code import Allowed
from pocketfit.measurement.run_samples import check_metric
from pocketfit.search.decide.result import Result
from pocketfit.search.run.begin import check_out
from pocketfit.search.run.job import Job, check_teacher, settled, with_every_runtime
from pocketfit.search.run.loop import fit_job


def fit(
    model: Network,
    samples: Data,
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
    task: str = "",
    metric: str = "",
    batch_size: int = 64,
    allocation: Literal["uniform", "macs", "latency"] = "macs",
    criterion: str = "taylor",
    rounds: int = 1,
    layer_ratios: Sequence[tuple[str, float]] = (),
    teacher: Network | None = None,
    watch: Watch | None = None,
    allow_code: Allowed = False,
) -> Result:
    """Find, make and prove a file that meets the budget.

    model       a torch.nn.Module (then `preprocess` says what it expects), a Model, or the name of a model folder
    samples     a Dataset, a folder or file (see sources.data.dataset.FORMS), or arrays: x, uint8 images [N, H, W, C],
                without labels, or a pair (x, y) with integer labels [N], masks [N, H, W] or strings [N]
    budget      e.g. Budget.parse(max_size="3MB", max_latency="0.6x", max_drop="1pt", max_time="10min")
    out         the folder for journal.jsonl, result.json, plan.json, models/, bundle/ and report.html; a run that was
                stopped goes on there
    runtimes    whose files are tried: "litert", "onnxruntime", "openvino", "micro"; ("all",): each that is installed
                and measures here
    preprocess  how images become the network's input; None: as the model folder says
    labels      names of the outputs, in their order; (): the classes of the data
    io          dtype of the file's inputs and outputs; integers for static int8 files
    layout      of the file's input: "NHWC" or "NCHW"; "": what the runtime prefers
    keep_resolution  no smaller inputs are tried
    keep_float  dotted names of layers that stay in float32
    threads     of the runtime while a file is timed
    seed        of training, pruning and the order of turns
    task        what the outputs mean, a name of core.task.task_list.TASKS; "": it follows from the data and the outputs
    metric      one of the task's, or "package.module:function"; "": the task's first
    batch_size  of training
    allocation  what a channel costs when widths are chosen: multiply-accumulates, measured latency, or the same share
                of every group
    criterion   which channels go first, as Prune.criterion
    rounds      of pruning and recovery
    layer_ratios  (regular expression, ratio) pairs for layers whose name matches
    teacher     what pruned networks learn from, in the words of `model`; None: the model itself, unpruned
    allow_code  whether a factory that a model folder names may be called: True, or the names that may

    Raises UserError (bad input, in one sentence) and Stopped (Ctrl-C; the best so far has been delivered).
    """
    check_out(Path(out))
    check_metric(metric)
    data = as_dataset(samples, watch or Silent())
    network = as_model(model, preprocess, labels, allow_code)
    job = Job(
        model=network,
        data=data,
        out=Path(out),
        runtimes=tuple(runtimes),
        budget=budget,
        model_name=network.origin.name,
        data_name=str(samples) if isinstance(samples, str | Path) else "arrays",
        io=io,
        layout=layout,
        keep_resolution=keep_resolution,
        keep_float=tuple(keep_float),
        threads=threads,
        seed=seed,
        task=task,
        metric=metric,
        batch_size=batch_size,
        allocation=allocation,
        criterion=criterion,
        rounds=rounds,
        layer_ratios=tuple(layer_ratios),
        teacher=None if teacher is None else as_model(teacher, preprocess, labels, allow_code),
    )
    return run(job, watch)


def run(job: Job, watch: Watch | None = None) -> Result:
    """Run `fit_job`, and write the bundle and the report as results come in."""
    check_alone("fit")
    check_threads(job.threads)
    stay_in_quota()
    watch = watch or Silent()
    job = _with_runtimes(job, watch)
    check_teacher(job)
    return fit_job(settled(job), Delivery(watch), watch)


def _with_runtimes(job: Job, watch: Watch) -> Job:
    known, left_out = with_every_runtime(job)
    for sentence in left_out:
        watch.say(sentence)
    return known


def run_without_data(job: Job, watch: Watch | None = None) -> dict[str, Any]:
    """The one int8 file that needs no data, with its bundle; returns result.json. See search/run/data_free.py."""
    from pocketfit.bundle.write import write_bundle
    from pocketfit.search.run.data_free import fit_without_data
    from pocketfit.sources.data.random_inputs import noise

    data, made = fit_without_data(settled(_with_runtimes(job, watch or Silent())), watch)
    golden = noise(made.model.signature.inputs, made.model.preprocess, GOLDEN_SAMPLES)
    measurements = data["trials"][data["chosen"]]["measurements"]
    write_bundle(job.out / "bundle", made.artifact, made.model, golden=golden, measurements=measurements, result=None)
    return data


def stay_in_quota() -> None:
    """Let PyTorch use no more threads than the container's CPU quota lets run; without a quota nothing changes."""
    import torch

    if (most := usable()) < torch.get_num_threads():
        torch.set_num_threads(most)
