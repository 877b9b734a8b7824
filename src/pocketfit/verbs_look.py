"""The verbs that look at networks and files: measure, compare, inspect, explain. Words in, plain dicts out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pocketfit.cli.arguments import Source, dataset, listed
from pocketfit.core.errors import UserError
from pocketfit.core.model import ModelFile
from pocketfit.core.plan import Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec
from pocketfit.core.support.json_file import load
from pocketfit.core.support.progress import Watch
from pocketfit.core.support.schema import checked
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.core.support.text import readable

PROFILE_RUNS = 30
TRIED = 32  # samples that a metric is tried on
TRAINING_LOOKED_AT = 256  # samples, to see whether those for calibration are like them


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
    from pocketfit.cli.progress_bar import watch_for_terminal
    from pocketfit.core.errors import CannotRunHere
    from pocketfit.core.plan import ExportSettings
    from pocketfit.measure import latency, memory, run_samples
    from pocketfit.runtimes.common.output_file import artifact_of

    run_samples.check_metric(metric)
    _check_files(file, against)
    runtime = runtimes.for_file(file)
    if against is not None and runtimes.for_file(against).NAME != runtime.NAME:
        raise UserError(
            f"{file.name} and {against.name} belong to different runtimes: ratios are taken inside one runtime"
        )
    contract = None if data is None else _contract(model, preprocess, file)
    with watch_for_terminal() as watch:
        samples = None
        if data is not None and contract is not None:
            samples = _samples(data, contract, "verdict", None, watch, _input(file))
            run_samples.try_metric(metric, samples.labels[:TRIED], max(1, len(samples.class_names)))
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
            found = latency.latency(runtime.NAME, file, threads=threads, seed=seed, progress=tick)
        else:
            (compared,) = latency.compare_latency(
                runtime.NAME, against, [file], threads=threads, seed=seed, progress=tick
            )
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
        found = {**found, **memory.footprint(runtime.NAME, file, threads=threads)}
        if samples is not None:
            with temporary_folder() as work:
                tick = watch.step(f"scoring {len(samples)} pictures")
                scores = run_samples.score(
                    runtime.NAME, file, samples, threads=threads, metric=metric, work=Path(work), progress=tick
                )
            from pocketfit.search.run.run_trial import mean_score

            found["accuracy"] = mean_score(scores.centred)
        result["disturbed"] = list(found["latency_ms"].disturbed)
        result["measurements"] = {name: m.to_json() for name, m in found.items()}
        watch.step("per-operator cost")
        session = runtime.load(file, threads=threads)
        inputs = latency.random_inputs(session.signature, seed)
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
    from pocketfit.cli.progress_bar import watch_for_terminal
    from pocketfit.measure import compare_files

    _check_files(a, b)
    contract = _contract(model, preprocess, a)
    fed = _input(a), _input(b)
    with watch_for_terminal() as watch, temporary_folder() as work:
        samples = _samples(data, contract, split, limit, watch, *fed)
        watch.step(f"comparing on {len(samples)} pictures")
        found = compare_files.compare(a, b, samples, threads=threads, work=Path(work))
    return {"a": str(a), "b": str(b), "split": split, **found.to_json()}


def inspect(source: Source) -> dict[str, Any]:
    """The layers of a network, or the operators of a file."""
    from pocketfit import runtimes

    path = Path(source.model)
    if path.suffix.lower() in runtimes.EXTENSIONS:
        _check_files(path)
        contents = runtimes.for_file(path).inspect(path)
        return {
            "file": source.model,
            "bytes": path.stat().st_size,
            **contents.to_json(),
            "op_counts": contents.op_counts(),
            "weight_dtypes": contents.weight_dtypes(),
            "macs": sum(op.macs for op in contents.ops),
            "parameters": int(sum(np.prod(op.weight_shape) for op in contents.ops if op.weight_shape)),
            "not_taken": not_taken(contents),
        }
    from pocketfit.analysis.layer_table import layer_table, totals

    model = source.open()
    rows = layer_table(model)
    return {
        "model": source.model,
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


def explain(
    source: Source,
    data: Path,
    out: Path | None,
    runtime: str,
    weight_bits: int,
    keep_float: str,
    samples: int,
    threads: int,
    quiet: bool,
) -> dict[str, Any]:
    """Which layers cost a plain int8 file its accuracy; with `out`, explain.json and explain.html are written there."""
    from pocketfit.analysis.quantization import explain as analysis
    from pocketfit.cli.progress_bar import watch_for_terminal
    from pocketfit.core.support.files import OF_A_RUN, OF_LOOKS, check_folder
    from pocketfit.report.quantization.explain import write_explanation
    from pocketfit.search.run.job import about_order, aligned, with_labels

    if out is not None:
        check_folder(out, (*OF_LOOKS, *OF_A_RUN))
    ask = analysis.Ask(runtime, weight_bits, listed(keep_float), threads=threads)
    opened = source.open()
    with watch_for_terminal(quiet) as watch, temporary_folder() as work:
        given = dataset(data, watch)
        network = with_labels(opened, given.class_names)
        given.check_fits(network.signature.inputs[0], network.preprocess)
        for sentence in about_order(opened, network, given.class_names):
            watch.say(sentence)

        def split(name: str, limit: int) -> Samples:
            tick = watch.step(f"reading the {name} split")
            found = given.split(
                name, network.preprocess, split_seed=network.split_seed, limit=limit, progress=tick, cache=Path(work)
            )
            return aligned(found, given.class_names, network.labels)

        found = analysis.explain(
            network,
            split("calibration", ask.calibration),
            split("search", samples),
            ask,
            out=Path(work),
            training=split("train", TRAINING_LOOKED_AT),
            watch=watch,
        )
    result = {"data": data.name, **found.to_json()}
    if out is not None:
        write_explanation(out, result)
    return result


def _check_files(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and not path.is_file():
            there = "is not a file" if path.exists() else "does not exist"
            raise UserError(f"The file {path} {there}")
        if path is not None and readable(str(path)) != str(path):
            raise UserError(f"The name {readable(str(path))} is not UTF-8, and runtimes open no such files: rename it")


def _contract(model: str | None, preprocess: str | None, file: Path) -> tuple[Preprocess, tuple[str, ...], int]:
    """How pictures are prepared, what the classes are called, and the split seed: from a model folder, a bundle, or the
    bundle that the file lies in. --preprocess overrules."""
    from pocketfit.bundle.manifest import read_manifest
    from pocketfit.sources.input_contract import check_preprocess, read_preprocess

    folder = Path(model) if model is not None else file.parent
    given = None if preprocess is None else read_preprocess(preprocess, None)[0]
    if (path := folder / "model.json").is_file():
        mend = "make the folder again"
        told: ModelFile = checked(ModelFile, load(path, "model", mend), str(path), mend)
        return given or told.preprocess, told.labels, told.split_seed
    if (path := folder / "manifest.json").is_file():
        manifest = read_manifest(path)
        return given or check_preprocess(manifest["preprocess"], path), tuple(manifest["labels"]), 0
    if preprocess is None:
        raise UserError(
            f"Nothing says how pictures are prepared for {file.name}: give --model (a model folder or bundle),"
            " or --preprocess"
        )
    return read_preprocess(preprocess, None)[0], (), 0


def _input(file: Path) -> TensorSpec:
    """What a file takes."""
    from pocketfit import runtimes

    session = runtimes.for_file(file).load(file, threads=1)
    session.close()
    return session.signature.inputs[0]


def _samples(
    data: Path,
    contract: tuple[Preprocess, tuple[str, ...], int],
    split: str,
    limit: int | None,
    watch: Watch,
    *fed: TensorSpec,
) -> Samples:
    """The samples of a split, which all of these inputs take."""
    from pocketfit.search.run.job import aligned, order_of_numbers

    preprocess, labels, split_seed = contract
    given = dataset(data, watch)
    for spec in fed:
        given.check_fits(spec, preprocess)
    for sentence in order_of_numbers(given.class_names, labels) if labels else ():
        watch.say(sentence)
    tick = watch.step(f"reading the {split} split")
    samples = given.split(split, preprocess, split_seed=split_seed, limit=limit, progress=tick)
    return aligned(samples, given.class_names, labels) if labels else samples
