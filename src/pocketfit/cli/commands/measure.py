"""`pocketfit measure`: one file, timed and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pocketfit.cli.exit_codes import guarded, print_result
from pocketfit.cli.files_in import check_files, contract_of, input_of, samples_of
from pocketfit.cli.options import METRICS, PATH, PREPROCESS, data_option, seed_option, threads_option
from pocketfit.core.errors import UserError
from pocketfit.core.support.scratch import temporary_folder

PROFILE_RUNS = 30
TRIED = 32  # samples on which a user's own metric is tried


@click.command("measure")
@click.argument("file", type=PATH)
@click.option("--against", type=PATH, help="A second file of the same runtime, timed in turns with FILE.")
@data_option("Adds the accuracy on this data's verdict split.", required=False)
@click.option("--model", help="Model folder or bundle that says how pictures are prepared (with --data).")
@click.option("--preprocess", help=f"{PREPROCESS}; with --data, without --model.")
@click.option("--metric", default="accuracy", show_default=True, help=f"{METRICS}; with --data.")
@threads_option
@seed_option
@guarded
def command(as_json: bool, **options: Any) -> int:
    """Size, cold start, latency, memory and per-operator cost of any .tflite or .onnx FILE."""
    print_result(measure(**options), as_json, show)
    return 0


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
    from pocketfit.core.plan.export import ExportSettings
    from pocketfit.core.plan.plan import Plan
    from pocketfit.measurement import latency, memory, run_samples
    from pocketfit.runtimes.common.output_file import artifact_of

    run_samples.check_metric(metric)
    check_files(file, against)
    runtime = runtimes.for_file(file)
    if against is not None and runtimes.for_file(against).NAME != runtime.NAME:
        raise UserError(
            f"{file.name} and {against.name} belong to different runtimes: ratios are taken inside one runtime"
        )
    contract = None if data is None else contract_of(model, preprocess, file)
    with watch_for_terminal() as watch:
        samples = None
        if data is not None and contract is not None:
            samples = samples_of(data, contract, "verdict", None, watch, input_of(file))
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


def show(data: Mapping[str, Any]) -> None:
    from rich.markup import escape

    from pocketfit.cli.terminal import plain, table, value
    from pocketfit.report.page.words import format_bytes, format_value

    console = plain()
    console.print(f"{escape(data['file'])}  ({data['runtime']})")
    console.print(f"size {format_bytes(data['size_bytes'])}, download {format_bytes(data['download_bytes'])}\n")
    rows = []
    for name, m in data["measurements"].items():
        interval = (
            f"{format_value(m['low'], m['unit'])} to {format_value(m['high'], m['unit'])}"
            if m.get("low") is not None
            else ""
        )
        rows.append((name, value(m), interval, m["n"]))
    console.print(table(("quantity", "value", "95 % interval", "n"), rows))
    if data["disturbed"]:
        console.print(f"\nNot to be trusted, other work ran beside the timing: {escape('; '.join(data['disturbed']))}")
    if data["operators"]:
        console.print("\n[bold]Most expensive operators[/bold]")
        total = sum(op["time_us"] for op in data["operators"]) or 1.0
        top = sorted(data["operators"], key=lambda op: -op["time_us"])[:15]
        rows_ = [
            (op["name"][-60:], op["type"], op["ran_on"], f"{op['time_us']:.0f} µs", f"{op['time_us'] / total:.0%}")
            for op in top
        ]
        console.print(table(("operator", "type", "ran on", "time", "share"), rows_, left=3))
    elif "operators_not_possible_here" in data:
        console.print(f"\nper-operator times: not possible here: {escape(data['operators_not_possible_here'])}")
