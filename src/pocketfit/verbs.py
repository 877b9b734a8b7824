"""What each verb of the command line does: words in, plain dicts out. `cli` parses, `show` prints."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from pocketfit.core.budget import SECONDS, Budget, parse_unit
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan import Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.core.watch import Watch

MOST_JSON_BYTES = 10 * 2**20
PROFILE_RUNS = 30


def train(
    model: str,
    data: Path,
    out: Path,
    weights: Path | None,
    image_size: int | None,
    epochs: float,
    max_time: str | None,
    width: float,
    seed: int,
) -> dict[str, Any]:
    """Transfer learning; see `pocketfit train --help`. The accuracy is measured on the search split, in PyTorch."""
    from pocketfit.core.plan import Resolution
    from pocketfit.passes import resolution
    from pocketfit.passes import train as training
    from pocketfit.progress import watch_for_terminal
    from pocketfit.sources.data import open_data
    from pocketfit.sources.models import save_model

    seconds = None if max_time is None else parse_unit(max_time, SECONDS, "--max-time", "10min")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; nothing was changed: give another output folder")
    dataset = open_data(data)
    start = _starting_point(model, weights, width, len(dataset.class_names), seed)
    if image_size is not None:
        start = resolution.apply(start, Resolution(image_size, image_size))
        # A size of one's own: the whole picture is seen, without the margin that ImageNet's evaluation cuts off.
        start = replace(start, preprocess=replace(start.preprocess, resize="shorter", resize_px=image_size))
    with watch_for_terminal() as watch:
        for sentence in (*start.findings, *dataset.findings):
            watch.say(sentence)
        if start.labels != dataset.class_names:
            start = training.replace_head(start, dataset.class_names, seed=seed)
        cache = out.parent / f".{out.name}-cache"
        try:
            samples = dataset.split(
                "train",
                start.preprocess,
                split_seed=start.split_seed,
                cache=cache,
                progress=watch.step("reading the train split"),
            )
            trained = training.transfer(
                start, samples, epochs=epochs, max_time_s=seconds, seed=seed, progress=watch.step("training")
            )
            held_out = dataset.split("search", start.preprocess, split_seed=start.split_seed, cache=cache)
            accuracy = training.accuracy(trained, held_out, progress=watch.step("checking"))
        finally:
            _remove_cache(cache)
        save_model(trained, out)
    return {
        "model": str(out),
        "architecture": trained.origin.name,
        "labels": list(trained.labels),
        "train_samples": len(samples),
        "search_samples": len(held_out),
        "search_accuracy": accuracy,
        "findings": list(dataset.findings),
    }


def _starting_point(model: str, weights: Path | None, width: float, classes: int, seed: int) -> Model:
    """The network before transfer: a zoo name without weights starts from random ones, drawn by `seed`."""
    from pocketfit import zoo
    from pocketfit.core.model import Origin
    from pocketfit.sources.models import model_from_module, open_model

    if model not in zoo.ARCHITECTURES or weights is not None:
        if width != 1.0:
            raise UserError("--width is for zoo names without --weights: published weights have their own width")
        return open_model(model, weights=weights)
    import torch

    torch.manual_seed(seed)
    network = zoo.build(model, width=width, classes=classes)
    published = open_model(model, classes=classes)
    origin = Origin("zoo", model, {"width": width, "classes": classes})
    return model_from_module(network, preprocess=published.preprocess, origin=origin)


def fit(
    model: str,
    data: Path,
    out: Path,
    weights: Path | None,
    preprocess: str | None,
    labels: Path | None,
    input_shape: str | None,
    runtimes: str,
    metric: str,
    io: Any,
    layout: Any,
    keep_resolution: bool,
    device: str,
    threads: int,
    seed: int,
    quiet: bool,
    max_time: str | None,
    max_trials: int | None,
    prefer: Any,
    **limits: str | None,
) -> dict[str, Any]:
    """The main job; see `pocketfit fit --help`. Returns result.json."""
    budget = Budget.parse(max_time=max_time, max_trials=max_trials, prefer=prefer or "balanced", **limits)  # type: ignore[arg-type]
    names = tuple(dict.fromkeys(name.strip() for name in runtimes.split(",") if name.strip()))
    if not names or any(name not in ("litert", "onnxruntime") for name in names):
        raise UserError(f"--runtime '{runtimes}' is not known: give litert, onnxruntime, or both with a comma")

    from pocketfit import api
    from pocketfit.measure.accuracy import check_metric
    from pocketfit.progress import watch_for_terminal
    from pocketfit.search.task import Task
    from pocketfit.sources.data import open_data
    from pocketfit.sources.models import open_model

    check_metric(metric)
    network = open_model(model, weights=weights, preprocess=preprocess, labels=labels, input_shape=input_shape)
    cache = out / "cache" if (out / "journal.jsonl").exists() else None
    with watch_for_terminal(quiet) as watch:
        dataset = open_data(data, cache=cache, progress=watch.step("looking at the data"))
        task = Task(
            network,
            dataset,
            out,
            names,
            budget,
            model_name=network.origin.name,
            data_name=data.name,
            io=io,
            layout=layout or "",
            keep_resolution=keep_resolution,
            threads=threads,
            seed=seed,
            metric=metric,
        )
        return api.run(task, watch).data


def choose(out: Path, prefer: Any, **limits: str | None) -> dict[str, Any]:
    """Decide again from the journal; reads journal.jsonl, writes nothing."""
    from pocketfit.search.result import compose

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


def apply(
    plan: Path,
    model: str,
    data: Path,
    out: Path,
    weights: Path | None,
    preprocess: str | None,
    labels: Path | None,
    input_shape: str | None,
    quiet: bool,
) -> dict[str, Any]:
    """Make a plan's artifact again."""
    from pocketfit import api
    from pocketfit.progress import watch_for_terminal
    from pocketfit.sources.data import open_data
    from pocketfit.sources.models import open_model

    wanted = Plan.from_json(_json(plan, "plan"))
    network = open_model(model, weights=weights, preprocess=preprocess, labels=labels, input_shape=input_shape)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; nothing was changed: give a folder")
    with watch_for_terminal(quiet) as watch:
        dataset = open_data(data, progress=watch.step("looking at the data"))
        made = api.apply(wanted, network, dataset, out, watch=watch)
    return {
        **made.artifact.to_json(),
        "code": wanted.code,
        "plan": wanted.to_json(),
        "findings": list(made.model.findings),
    }


def measure(
    file: Path,
    against: Path | None,
    data: Path | None,
    model: str | None,
    preprocess: str | None,
    metric: str,
    threads: int,
    seed: int,
) -> dict[str, Any]:
    """Everything that can be measured of one file, or of two against each other."""
    from pocketfit import runtimes
    from pocketfit.core.errors import CannotRunHere
    from pocketfit.core.plan import ExportSettings
    from pocketfit.measure import accuracy, cost, footprint
    from pocketfit.progress import watch_for_terminal
    from pocketfit.runtimes.artifact import artifact_of

    for path in (file, against):
        if path is not None and not path.is_file():
            raise UserError(f"The file {path} does not exist")
    runtime = runtimes.for_file(file)
    if against is not None and runtimes.for_file(against).NAME != runtime.NAME:
        raise UserError(
            f"{file.name} and {against.name} belong to different runtimes: ratios are taken inside one runtime"
        )
    contract = None if data is None else _contract(model, preprocess, file)
    with watch_for_terminal() as watch:
        described = artifact_of(file, Plan((), ExportSettings(runtime.NAME)), runtime.NAME)
        result: dict[str, Any] = {
            "file": str(file),
            "runtime": runtime.NAME,
            "sha256": described.sha256,
            "size_bytes": described.bytes,
            "download_bytes": described.download_bytes,
        }
        tick = watch.step("timing")
        if against is None:
            found = cost.latency(runtime.NAME, file, threads=threads, seed=seed, progress=tick)
        else:
            (compared,) = cost.compare_latency(runtime.NAME, against, [file], threads=threads, seed=seed, progress=tick)
            found = {**compared.candidate, **compared.ratios}
            result["against"] = {
                "file": str(against),
                "size_ratio": described.bytes / against.stat().st_size,
                "measurements": {name: m.to_json() for name, m in compared.baseline.items()},
                "ratios": {name: m.to_json() for name, m in compared.ratios.items()},
                "between_sessions": compared.between,
                "within_sessions": compared.within,
            }
        watch.step("memory and cold start")
        found = {**found, **footprint.footprint(runtime.NAME, file, threads=threads)}
        if data is not None and contract is not None:
            import tempfile

            samples = _samples(data, contract, "verdict", None, watch)
            with tempfile.TemporaryDirectory(prefix="pocketfit-") as work:
                tick = watch.step(f"scoring {len(samples)} pictures")
                scores = accuracy.score(
                    runtime.NAME, file, samples, threads=threads, metric=metric, work=Path(work), progress=tick
                )
            from pocketfit.search.attempt import mean_score

            found["accuracy"] = mean_score(scores.values)
        result["measurements"] = {name: m.to_json() for name, m in found.items()}
        watch.step("per-operator cost")
        session = runtime.load(file, threads=threads)
        inputs = cost.random_inputs(session.signature, seed)
        session.close()
        try:
            result["operators"] = [
                asdict(op) for op in runtime.profile(file, inputs, threads=threads, runs=PROFILE_RUNS)
            ]
        except CannotRunHere as reason:
            result["operators"], result["operators_not_possible_here"] = [], str(reason)
    return result


def compare(
    a: Path,
    b: Path,
    data: Path,
    model: str | None,
    preprocess: str | None,
    split: str,
    limit: int,
    threads: int,
) -> dict[str, Any]:
    """Where two files differ."""
    import tempfile

    from pocketfit.measure import fidelity
    from pocketfit.progress import watch_for_terminal

    for path in (a, b):
        if not path.is_file():
            raise UserError(f"The file {path} does not exist")
    contract = _contract(model, preprocess, a)
    with watch_for_terminal() as watch, tempfile.TemporaryDirectory(prefix="pocketfit-") as work:
        samples = _samples(data, contract, split, limit, watch)
        watch.step(f"comparing on {len(samples)} pictures")
        found = fidelity.compare(a, b, samples, threads=threads, work=Path(work))
    return {"a": str(a), "b": str(b), "split": split, **found.to_json()}


def inspect(target: str, weights: Path | None, preprocess: str | None, input_shape: str | None) -> dict[str, Any]:
    """The layers of a network, or the operators of a file."""
    from pocketfit import runtimes

    path = Path(target)
    if path.suffix.lower() in runtimes.EXTENSIONS:
        if not path.is_file():
            raise UserError(f"The file {path} does not exist")
        contents = runtimes.for_file(path).inspect(path)
        return {
            "file": target,
            "bytes": path.stat().st_size,
            **contents.to_json(),
            "op_counts": contents.op_counts(),
            "weight_dtypes": contents.weight_dtypes(),
            "macs": sum(op.macs for op in contents.ops),
            "parameters": int(sum(np.prod(op.weight_shape) for op in contents.ops if op.weight_shape)),
            "not_taken": not_taken(contents),
        }
    from pocketfit.analysis.layers import layer_table, totals
    from pocketfit.sources.models import open_model

    model = open_model(target, weights=weights, preprocess=preprocess, input_shape=input_shape)
    rows = layer_table(model)
    return {
        "model": target,
        "architecture": model.origin.name,
        "signature": model.signature.to_json(),
        "preprocess": model.preprocess.to_json(),
        "labels": len(model.labels),
        "layers": [asdict(row) for row in rows],
        "totals": asdict(totals(rows)),
        "findings": list(model.findings),
    }


def not_taken(contents: Any) -> list[str]:
    """Operators that an integer-only accelerator or delegate would leave to the CPU, in sentences."""
    types: dict[str, int] = {}
    integer = {"int8", "uint8", "int16", "int4"}
    quantized = any(op.compute_dtype in integer for op in contents.ops)
    for op in contents.ops:
        if quantized and op.weight_dtype and op.compute_dtype not in integer:
            types[op.type] = types.get(op.type, 0) + 1
    return [
        f"{count} {kind} in float: a delegate for integers leaves {'it' if count == 1 else 'them'} to the CPU"
        for kind, count in types.items()
    ]


def report(out: Path) -> Path:
    """Write report.html from the journal."""
    from pocketfit.report.render import write_report

    _record(out)
    return write_report(out)


def doctor() -> dict[str, Any]:
    """Probe every runtime."""
    from pocketfit import runtimes
    from pocketfit.measure.environment import environment

    found = [asdict(runtimes.get(name).probe()) for name in runtimes.NAMES]
    return {"runtimes": found, "environment": environment(1)}


def _contract(model: str | None, preprocess: str | None, file: Path) -> tuple[Preprocess, tuple[str, ...], int]:
    """How pictures are prepared, what the classes are called, and the split seed: from a model folder, a bundle, or the
    bundle that the file lies in. --preprocess overrules."""
    from pocketfit.sources.contract import check_preprocess, read_preprocess

    folder = Path(model) if model is not None else file.parent
    for name in ("model.json", "manifest.json"):
        path = folder / name
        if path.is_file() and isinstance(data := _json(path, "model"), dict) and "preprocess" in data:
            given = read_preprocess(preprocess, None)[0] if preprocess else check_preprocess(data["preprocess"], path)
            return given, tuple(str(label) for label in data.get("labels", ())), int(data.get("split_seed", 0))
    if preprocess is None:
        raise UserError(
            f"Nothing says how pictures are prepared for {file.name}: give --model (a model folder or bundle),"
            " or --preprocess"
        )
    return read_preprocess(preprocess, None)[0], (), 0


def _samples(
    data: Path, contract: tuple[Preprocess, tuple[str, ...], int], split: str, limit: int | None, watch: Watch
) -> Samples:
    from pocketfit.search.task import aligned
    from pocketfit.sources.data import open_data

    preprocess, labels, split_seed = contract
    dataset = open_data(data, progress=watch.step("looking at the data"))
    tick = watch.step(f"reading the {split} split")
    samples = dataset.split(split, preprocess, split_seed=split_seed, limit=limit, progress=tick)
    return aligned(samples, dataset.class_names, labels) if labels else samples


def _json(path: Path, what: str) -> Any:
    if not path.is_file():
        raise UserError(f"The {what} file {path} does not exist")
    if path.stat().st_size > MOST_JSON_BYTES:
        raise UserError(f"The {what} file {path} is too large to be one")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"The {what} file {path} is not JSON: {error}") from error


def _remove_cache(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
