"""What each verb of the command line does: words in, plain dicts out. `cli` parses, `show` prints.

Here are the verbs that make something; `verbs_look` has those that look at networks and files.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from pocketfit.cli.arguments import Files, Pruning, Source, Teacher, dataset, listed
from pocketfit.core.budget import SECONDS, Budget, parse_unit
from pocketfit.core.errors import PocketfitError, UserError
from pocketfit.core.model import Model
from pocketfit.core.plan import Plan
from pocketfit.core.support import user_code
from pocketfit.core.support.json_file import load
from pocketfit.core.support.processes import rank
from pocketfit.core.support.scratch import temporary_folder


def train(
    source: Source,
    data: Path,
    out: Path,
    image_size: int | None,
    epochs: float,
    max_time: str | None,
    width: float,
    seed: int,
) -> dict[str, Any]:
    """Transfer learning; see `pocketfit train --help`. The accuracy is measured on the search split, in PyTorch."""
    from pocketfit.cli.progress_bar import watch_for_terminal
    from pocketfit.core.plan import Resolution
    from pocketfit.core.support.files import check_folder
    from pocketfit.passes.rewrite import resolution
    from pocketfit.passes.train import fine_tune as training
    from pocketfit.sources.data.dataset import open_data
    from pocketfit.sources.models.open_model import save_model

    seconds = None if max_time is None else parse_unit(max_time, SECONDS, "--max-time", "10min")
    if rank().first:
        check_folder(out)
    dataset = open_data(data)
    start = _starting_point(source, width, len(dataset.class_names), seed)
    if image_size is not None:
        start = resolution.apply(start, Resolution(image_size, image_size))
        # A size of one's own: the whole picture is seen, without the margin that ImageNet's evaluation cuts off.
        start = replace(start, preprocess=replace(start.preprocess, resize="shorter", resize_px=image_size))
    dataset.check_splits(start.split_seed, ("train", "search"))
    dataset.check_fits(start.signature.inputs[0], start.preprocess)
    with watch_for_terminal() as watch:
        for sentence in (*start.findings, *dataset.findings):
            watch.say(sentence)
        if start.labels != dataset.class_names:
            start = training.replace_head(start, dataset.class_names, seed=seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        # The pixels may not fit into the system's temporary folder, which is in memory here and there.
        with temporary_folder(out.parent if rank().first else None) as cache:
            read = partial(dataset.split, split_seed=start.split_seed, cache=Path(cache))
            samples = read("train", start.preprocess, progress=watch.step("reading the train split"))
            held_out = read("search", start.preprocess)
            trained = training.transfer(
                start, samples, epochs=epochs, max_time_s=seconds, seed=seed, progress=watch.step("training")
            )
            if not rank().first:
                return {}
            save_model(trained, out)
            said = [sentence for sentence in trained.findings if sentence not in start.findings]
            for sentence in said:
                watch.say(sentence)
            try:
                accuracy = training.accuracy(trained, held_out, progress=watch.step("checking"))
            except PocketfitError as error:
                raise UserError(f"The model is in {out}, but its accuracy could not be measured: {error}") from error
    return {
        "model": str(out),
        "architecture": trained.origin.name,
        "labels": list(trained.labels),
        "train_samples": len(samples),
        "search_samples": len(held_out),
        "search_accuracy": accuracy,
        "findings": [*dataset.findings, *said],
    }


def _starting_point(source: Source, width: float, classes: int, seed: int) -> Model:
    """The network before transfer: a zoo name without weights starts from random ones, drawn by `seed`."""
    from pocketfit import zoo
    from pocketfit.core.model import Origin
    from pocketfit.sources.models.build_network import check_size
    from pocketfit.sources.models.open_model import model_from_module

    name = source.model
    if name not in zoo.ARCHITECTURES or source.weights is not None:
        if width != 1.0:
            raise UserError("--width is for zoo names without --weights: published weights have their own width")
        return source.open()
    import torch

    check_size(name, {"width": width, "classes": classes})
    torch.manual_seed(seed)
    network = zoo.build(name, width=width, classes=classes)
    origin = Origin("zoo", name, {"width": width, "classes": classes})
    published = source.open()
    return model_from_module(network, preprocess=published.preprocess, origin=origin)


def fit(
    source: Source,
    data: Path | None,
    out: Path,
    teacher: Teacher,
    pruning: Pruning,
    files: Files,
    metric: str,
    threads: int,
    seed: int,
    quiet: bool,
    max_time: str | None,
    max_trials: int | None,
    prefer: Any,
    **limits: str | None,
) -> dict[str, Any]:
    """The main job; see `pocketfit fit --help`. Returns result.json."""
    budget = Budget.parse(max_time=max_time, max_trials=max_trials, prefer=prefer or "balanced", **limits)
    names, layer_ratios = files.runtime_names(), pruning.layer_ratios()

    from pocketfit import api
    from pocketfit.cli.progress_bar import watch_for_terminal
    from pocketfit.core.support.files import check_folder
    from pocketfit.measure.run_samples import check_metric
    from pocketfit.search.run.job import Task
    from pocketfit.search.run.loop import check_out

    check_folder(out) if data is None else check_out(out)
    check_metric(metric)
    network = source.open(teacher.model, pruning.criterion, metric)
    taught_by = teacher.open(network, source.agreed(teacher.model, pruning.criterion, metric))
    with watch_for_terminal(quiet) as watch:
        kept = out / "cache" if (out / "journal.jsonl").exists() else None
        task = Task(
            network,
            dataset(data, watch, labels=network.labels, cache=kept),
            out,
            names,
            budget,
            model_name=network.origin.name,
            data_name="no data" if data is None else data.name,
            io=files.io,
            layout=files.layout or "",
            keep_resolution=files.keep_resolution,
            keep_float=listed(files.keep_float),
            threads=threads,
            seed=seed,
            metric=metric,
            allocation=pruning.allocation,
            criterion=pruning.criterion,
            rounds=pruning.rounds,
            layer_ratios=layer_ratios,
            teacher=taught_by,
        )
        if data is None:
            return api.run_without_data(task, watch)
        return api.run(task, watch).data


def choose(out: Path, prefer: Any, **limits: str | None) -> dict[str, Any]:
    """Decide again from the journal; reads journal.jsonl, writes nothing."""
    from pocketfit.search.decide.result import compose

    record = _record(out)
    asked = Budget.parse(prefer=prefer or record.budget.prefer, **limits)  # type: ignore[arg-type]
    changed = {limit.quantity for limit in asked.limits}
    kept = tuple(limit for limit in record.budget.limits if limit.quantity not in changed)
    return compose(record, replace(record.budget, limits=(*kept, *asked.limits), prefer=asked.prefer), finished=True)


def _record(out: Path) -> Any:
    from pocketfit.search import journal

    path = out / "journal.jsonl"
    if not path.is_file():
        raise UserError(f"{out} is not the output folder of a run: it has no journal.jsonl")
    record = journal.read(path)
    if record.start is None:
        raise UserError(f"{path} does not say what its run is about: its first line is missing")
    return record


def apply(plan: Path, source: Source, data: Path | None, out: Path, teacher: Teacher, quiet: bool) -> dict[str, Any]:
    """Make a plan's artifact again."""
    from pocketfit import api
    from pocketfit.cli.progress_bar import watch_for_terminal
    from pocketfit.core.support.files import OF_APPLY, check_folder

    if rank().first:
        check_folder(out, OF_APPLY)
    wanted, agreed = Plan.from_json(load(plan, "plan"), str(plan), allow_code=True), source.agreed(teacher.model)
    for name in wanted.called:
        user_code.function(name, "criterion", user_code.consent(agreed).check(name, plan, "criterion"))
    network = source.open(teacher.model)
    taught_by = teacher.open(network, agreed)
    with watch_for_terminal(quiet) as watch:
        samples = dataset(data, watch)
        if not rank().first:
            api.take_part(wanted, network, samples, teacher=taught_by)
            return {}
        made = api.apply(wanted, network, samples, out, teacher=taught_by, watch=watch)
    return {
        **made.artifact.to_json(),
        "code": wanted.code,
        "plan": wanted.to_json(),
        "findings": list(made.model.findings),
    }


def report(out: Path) -> Path:
    """Write report.html from the journal."""
    from pocketfit.core.support.files import check_writable, write_json
    from pocketfit.report.run.render import write_report
    from pocketfit.search.decide.result import compose
    from pocketfit.search.decide.result_file import read_result

    record = _record(out)
    check_writable(out)
    try:
        read_result(out / "result.json")
    except UserError:  # what it holds follows from the journal
        write_json(out / "result.json", compose(record, record.budget, finished=record.verdict is not None))
    return write_report(out)


def doctor() -> dict[str, Any]:
    """Probe every runtime."""
    from pocketfit import runtimes
    from pocketfit.measure.environment import environment

    found = [asdict(runtimes.get(name).probe()) for name in runtimes.NAMES]
    return {"runtimes": found, "environment": environment(1)}
