"""`pocketfit fit`: the main job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pocketfit.cli.arguments import Files, Pruning, Source, Teacher, dataset, listed
from pocketfit.cli.exit_codes import LIMITS_NOT_MET, guarded, print_result
from pocketfit.cli.options import (
    METRICS,
    PATH,
    data_option,
    file_options,
    limit_options,
    pruning_options,
    quiet_option,
    seed_option,
    source_options,
    task_option,
    teacher_options,
    threads_option,
)
from pocketfit.core.budget import Budget
from pocketfit.core.errors import UserError


@click.command("fit")
@click.argument("model")
@data_option(required=False)
@click.option(
    "--no-data", is_flag=True, help="One int8 file from what batch norms remember; its accuracy stays unknown."
)
@click.option("-o", "--out", required=True, type=PATH, help="Output folder; a stopped run goes on there.")
@source_options()
@teacher_options
@limit_options
@click.option("--max-time", metavar="TIME", help="Time for the whole run, over all resumes: 10min.")
@click.option("--max-trials", type=int, help="Number of plans to try, baselines included.")
@task_option
@click.option("--metric", default="", metavar="METRIC", help=METRICS)
@file_options
@pruning_options
@click.option(
    "--device",
    type=click.Choice(["local"]),
    default="local",
    show_default=True,
    expose_value=False,  # there is no other yet
    help="Where to measure.",
)
@threads_option
@seed_option
@quiet_option
@guarded
def command(as_json: bool, no_data: bool, **options: Any) -> int:
    """The main job: find a plan that meets the limits, and hand over the file with its proof.

    MODEL is a model folder, an .onnx file, a zoo name with --weights, or package.module:factory with --weights.
    Started again with the same inputs and output folder, it goes on where it was stopped.
    """
    from pocketfit.cli.terminal import show_result

    if no_data == (options["data"] is not None):
        raise UserError("Give --data with a folder, a manifest or arrays, or --no-data, and not both")
    data = fit(**options)
    print_result(data, as_json, lambda d: (show_made_without_data if no_data else show_result)(d, options["out"]))
    return 0 if data["status"] == "met" else LIMITS_NOT_MET


def fit(
    source: Source,
    data: Path | None,
    out: Path,
    teacher: Teacher,
    pruning: Pruning,
    files: Files,
    task: str,
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

    from pocketfit.api.fit import run, run_without_data
    from pocketfit.cli.progress_bar import watch_for_terminal
    from pocketfit.core.support.files import check_folder
    from pocketfit.measurement.run_samples import check_metric
    from pocketfit.search.run.begin import check_out
    from pocketfit.search.run.job import Job

    check_folder(out) if data is None else check_out(out)
    check_metric(metric)
    network = source.open(teacher.model, pruning.criterion, metric)
    taught_by = teacher.open(network, source.agreed(teacher.model, pruning.criterion, metric))
    with watch_for_terminal(quiet) as watch:
        kept = out / "cache" if (out / "journal.jsonl").exists() else None
        job = Job(
            model=network,
            data=dataset(data, watch, labels=network.labels, cache=kept),
            out=out,
            runtimes=names,
            budget=budget,
            model_name=network.origin.name,
            data_name="no data" if data is None else data.name,
            io=files.io,
            layout=files.layout or "",
            keep_resolution=files.keep_resolution,
            keep_float=listed(files.keep_float),
            threads=threads,
            seed=seed,
            task=task,
            metric=metric,
            allocation=pruning.allocation,
            criterion=pruning.criterion,
            rounds=pruning.rounds,
            layer_ratios=layer_ratios,
            teacher=taught_by,
        )
        if data is None:
            return run_without_data(job, watch)
        return run(job, watch).data


def show_made_without_data(data: Mapping[str, Any], out: Path) -> None:
    """What `fit --no-data` made."""
    from rich.markup import escape

    from pocketfit.cli.terminal import plain, table, value

    console = plain()
    console.print(f"[bold]{escape(data['warning'])}[/bold]\n")
    rows = []
    for trial in data["trials"]:
        found = trial["measurements"]
        quantities = ("size_bytes", "download_bytes", "latency_ms", "latency_ratio", "memory_bytes")
        rows.append((trial["artifact"]["runtime"], trial["code"], *(value(found.get(name)) for name in quantities)))
    console.print(table(("runtime", "plan", "size", "download", "latency", "ratio", "memory"), rows, left=2))
    for limit in data["limits"]:
        word = "missed" if not limit["met"] else "met" if limit["certified"] else "met, not certified"
        console.print(f"limit on {limit['quantity']}, {escape(limit['text'])}: {word}")
    chosen = data["trials"][data["chosen"]]
    for sentence in (*data["doubts"], *chosen["details"]["findings"]):
        console.print(f"• {escape(sentence)}")
    console.print(f"\nfile    {escape(str(out / chosen['artifact']['path']))}")
    for name in ("bundle", "plan.json", "result.json"):
        console.print(f"{name.split('.')[0]:7} {escape(str(out / name))}")
