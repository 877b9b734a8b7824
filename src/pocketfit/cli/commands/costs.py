"""`pocketfit costs`: what channels cost on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pocketfit.cli.arguments import Source
from pocketfit.cli.exit_codes import guarded, print_result
from pocketfit.cli.options import PATH, quiet_option, seed_option, source_options, threads_option
from pocketfit.core.plan.runtime_list import for_apps

if TYPE_CHECKING:
    pass

MOST_EDGES = 12


@click.command("costs")
@click.argument("model")
@click.option("-o", "--out", type=PATH, help="JSON file to write.")
@source_options("preprocess", "labels")
@click.option(
    "--runtime",
    type=click.Choice(for_apps()),
    default="litert",
    show_default=True,
    help="Whose kernels are measured.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16", "dynamic-int8", "int8"]),
    default="float32",
    show_default=True,
    help="Of the measured files.",
)
@click.option(
    "--networks",
    type=click.IntRange(6),
    default=24,
    show_default=True,
    help="Sub-networks to measure; those that were measured before count.",
)
@threads_option
@click.option("--cache", type=PATH, help="Where tables are kept.  [default: ~/.cache/pocketfit]")
@seed_option
@quiet_option
@guarded
def command(as_json: bool, **options: Any) -> int:
    """What channels cost: latency of each layer at several widths, measured in the runtime on this machine.

    Random sub-networks are exported and timed; a stopped run goes on where it was. The error of latencies predicted
    from the table is measured on sub-networks that were left out of it.
    """
    print_result(costs(**options), as_json, lambda d: show(d, options["out"]))
    return 0


def costs(source: Source, out: Path | None, cache: Path | None, quiet: bool, **options: Any) -> dict[str, Any]:
    """What the channels of a network cost in a runtime on this machine: see api.costs.ChannelCosts.to_json."""
    from pocketfit.api.costs import costs as measured
    from pocketfit.cli.progress_bar import watch_for_terminal
    from pocketfit.core.support.files import check_file, check_writable, write_json

    if out is not None:
        check_file(out, ("full_ms", "held_out"))
    if cache is not None:
        check_writable(cache)
    network = source.open()
    with watch_for_terminal(quiet) as watch:
        found = measured(network, cache=cache, watch=watch, **options)
    version, *rest = found.to_json().items()
    result = dict([version, ("model", source.model), *rest])
    if out is not None:
        write_json(out, result)
    return result


def show(data: Mapping[str, Any], out: Path | None) -> None:
    from rich.markup import escape

    from pocketfit.cli.terminal import plain, table

    console = plain()
    where, errors = data["environment"], data["held_out"]
    threads = f"{data['threads']} thread" + ("" if data["threads"] == 1 else "s")
    console.print(
        f"[bold]{escape(data['model'])} takes {data['full_ms']:.2f} ms in {data['runtime']}[/bold]"
        f" ({data['precision']}, {threads}, {escape(str(where.get('cpu', '')))}, load {where.get('load_average')})"
    )
    console.print(
        f"Latency predicted for sub-networks that were not fitted on ({errors['n']}, each left out once): median error"
        f" {errors['median']:.1%}, within 10 % for {errors['share_within']:.0%}, rank correlation {errors['rank']:.3f}"
    )
    if data["disturbed"]:
        console.print(f"Not to be trusted: {escape(data['disturbed'])}")
    blocks = [f"{kind} {inputs} in, {outputs} out" for kind, (inputs, outputs) in data["steps"].items()]
    console.print(f"Kernels work in blocks of channels: {', '.join(blocks)}")
    console.print("\nThe network with one group alone made narrower, predicted latency of the whole")
    columns = ("group", "channels", "at 3/4", "at 1/2", "at 1/4", "edges of steps")
    console.print(table(columns, [_group_row(group) for group in data["groups"]]))
    if out is not None:
        console.print(f"table   {escape(str(out))}")


def _group_row(group: Mapping[str, Any]) -> tuple[str, ...]:
    from pocketfit.report.page.words import format_ratio

    ratios = []
    for share in (0.75, 0.5, 0.25):
        near = min(range(len(group["widths"])), key=lambda i: abs(group["widths"][i] - share * group["channels"]))
        ratios.append(format_ratio(group["ratios"][near]))
    edges = [str(width) for width in group["edges"]]
    shown = edges if len(edges) <= MOST_EDGES else [*edges[: MOST_EDGES - 1], "…", edges[-1]]
    return (group["layer"], str(group["channels"]), *ratios, " ".join(shown))
