"""`pocketfit sensitivity`: what each layer loses when it is pruned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pocketfit.cli.arguments import Source
from pocketfit.cli.exit_codes import guarded, print_result
from pocketfit.cli.options import CRITERIA, PATH, data_option, quiet_option, source_options
from pocketfit.core.errors import UserError
from pocketfit.core.plan.runtime_list import for_apps


@click.command("sensitivity")
@click.argument("model")
@data_option(required=True)
@click.option("-o", "--out", type=PATH, help="Folder for the page and the JSON; a stopped run goes on there.")
@source_options()
@click.option(
    "--ratios", default="0.25,0.5,0.75", show_default=True, metavar="SHARE[,SHARE]", help="Of channels to remove."
)
@click.option(
    "--target",
    metavar="TARGET",
    help="Also make a plan: macs:0.5x, size:0.5x, drop:1pt, or latency:0.5x (latency:5ms), estimated from a table of"
    " measured costs.",
)
@click.option(
    "--runtime",
    type=click.Choice(for_apps()),
    help="In which a target for the latency counts, in float32 on this machine.  [default: onnxruntime]",
)
@click.option("--threads", type=click.IntRange(1, 64), help="Threads of the runtime.  [default: 1]")
@click.option(
    "--criterion", type=click.Choice(CRITERIA), default="l2", show_default=True, help="Which channels go first."
)
@click.option("--multiple", type=click.IntRange(1), default=8, show_default=True, help="Channels stay in multiples.")
@click.option("--samples", type=click.IntRange(1), default=1000, show_default=True, help="Judged on at most this many.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes of one thread.")
@quiet_option
@guarded
def command(as_json: bool, **options: Any) -> int:
    """Which channels a network can do without: each coupled group alone, pruned at several ratios, without training."""
    print_result(sensitivity(**options), as_json, lambda d: show(d, options["out"]))
    return 0


def sensitivity(
    source: Source,
    data: Path,
    out: Path | None,
    ratios: str,
    target: str | None,
    runtime: str | None,
    threads: int | None,
    criterion: Any,
    multiple: int,
    samples: int,
    workers: int,
    quiet: bool,
) -> dict[str, Any]:
    """Which channels a network can do without, and with `target` a plan that follows; see `pocketfit sensitivity -h`.

    With `out`, sensitivity.json, sensitivity.html and (with a plan) prune.json are written there, and out/cache keeps
    what has been evaluated. Returns

        schema_version  1
        data            name of the data
        model, labelled, samples, split, criterion, multiple, how: what was asked, how = "estimated"
        loss, accuracy, macs, size_bytes   of the whole network (float32; without labels: KL divergence 0, agreement 1)
        latency         null without a target for the latency, or runtime, threads, precision, environment, full_ms (of
                        the whole network, measured), networks (sub-networks measured), held_out (errors of predictions
                        for sub-networks that were not fitted on: n, median, worst, share_within, rank), how =
                        "estimated", disturbed (a sentence where other work ran beside the timing)
        curves          one object a group, in the order of the network: group, layers, pattern (for Prune.layers),
                        channels, edge ("first", "last", ""), why_not, points
                        a point: ratio, kept, loss, loss_rise, loss_rise_se, accuracy, drop_points, drop_points_se,
                        macs, size_bytes (of the network with this cut alone), latency_ratio (of it, predicted; null
                        without `latency`, and for what the first layer makes), why_not; numbers are null where it does
                        not run
        findings        sentences
        sentences       the headline, then what it stands on
        plan            null, or target, macs, size_bytes, macs_ratio, size_ratio (exact), drop_points, loss_rise (sums
                        of what groups alone cost), latency_ratio, latency_ms (predicted; null without
                        `latency`), multiple, criterion, line (Python), pass (for a plan.json)
    """
    from pocketfit.analysis.pruning.plan_for_target import Target, planned
    from pocketfit.analysis.pruning.sensitivity import checked_ratios
    from pocketfit.api import sensitivity as road
    from pocketfit.cli.progress_bar import watch_for_terminal
    from pocketfit.core.support.files import OF_A_RUN, OF_LOOKS, check_folder
    from pocketfit.report.pruning.sensitivity import sentences, write_sensitivity

    if out is not None:
        check_folder(out, (*OF_LOOKS, *OF_A_RUN))
    shares = checked_ratios(_numbers(ratios))
    aim = None if target is None else Target.parse(target)
    if (aim is None or aim.name != "latency") and (runtime is not None or threads is not None):
        raise UserError("--runtime and --threads say where a latency counts: give --target latency:0.5x with them")
    network = source.open()
    with watch_for_terminal(quiet) as watch:
        table = road.sensitivity(
            network,
            data,
            shares,
            criterion=criterion,
            multiple=multiple,
            limit=samples,
            workers=workers,
            store=None if out is None else out / "cache",
            target=aim,
            runtime=runtime or "onnxruntime",
            threads=threads or 1,
            watch=watch,
        )
    plan = None if aim is None else planned(table, aim).to_json()
    result = {"schema_version": 1, "data": data.name, **table.to_json(), "plan": plan}
    result["sentences"] = sentences(result)
    if out is not None:
        write_sensitivity(out, result)
    return result


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UserError(f"--ratios '{text}' cannot be read: give shares with commas, such as 0.25,0.5,0.75") from error


def show(data: Mapping[str, Any], out: Path | None) -> None:
    from rich.markup import escape

    from pocketfit.cli.terminal import plain, table
    from pocketfit.core.samples import split_words
    from pocketfit.report.pruning.sensitivity import latency_words, plan_words, reference

    console = plain()
    headline, *others = data["sentences"]
    console.print(f"[bold]{escape(headline)}[/bold]")
    for sentence in others:
        console.print(f"• {escape(sentence)}")
    at = reference(data["curves"])
    ratios = [f"{100 * point['ratio']:g} %" for point in data["curves"][0]["points"]]
    lost = "points of accuracy lost" if data["labelled"] else "points of agreement lost"
    console.print(
        f"\nEach group alone, {lost} with that share of its channels removed ({data['samples']} samples of the"
        f" {split_words(data['split'])} split, estimated)"
    )
    if data["latency"]:
        console.print(escape(latency_words(data)))
    times = (f"latency at {ratios[at]}",) if data["latency"] else ()
    columns = ("group", "channels", *ratios, f"MACs at {ratios[at]}", *times)
    console.print(table(columns, [_row(curve, data, at) for curve in data["curves"]]))
    for sentence in data["findings"]:
        console.print(f"• {escape(sentence)}")
    if data["plan"]:
        console.print(f"\n[bold]A plan for {data['plan']['target']}[/bold]")
        console.print(escape(plan_words(data)))
        console.print("For the passes of a plan.json:")
        console.print(escape(json.dumps(data["plan"]["pass"])))
    if out is not None:
        console.print(f"\npage    {escape(str(out / 'sensitivity.html'))}")
        if data["plan"]:
            console.print(f"pass    {escape(str(out / 'prune.json'))}")


def _row(curve: Mapping[str, Any], data: Mapping[str, Any], at: int) -> list[object]:
    from pocketfit.report.page.words import format_ratio
    from pocketfit.report.pruning.sensitivity import cost

    costs = [
        None if point["kept"] == curve["channels"] else cost(point).removesuffix(" pt") for point in curve["points"]
    ]
    ratio = format_ratio(curve["points"][at]["macs"] / data["macs"])
    time = curve["points"][at]["latency_ratio"]
    times = [None if time is None else format_ratio(time)] if data["latency"] else []
    return [curve["group"], curve["channels"], *costs, ratio, *times]
