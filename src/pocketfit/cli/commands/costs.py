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
    from pocketfit.analysis.latency_predictor import Predictor
    from pocketfit.numerics.channel_shapes import LayerShape

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


def costs(
    source: Source,
    out: Path | None,
    runtime: str,
    precision: Any,
    networks: int,
    threads: int,
    cache: Path | None,
    seed: int,
    quiet: bool,
) -> dict[str, Any]:
    """What the channels of a network cost in a runtime on this machine; see `pocketfit costs -h`. Returns

    schema_version  1
    model, runtime, threads, precision, environment (where it was measured; load_average as of the start)
    disturbed       a sentence where other work ran beside the timing, ""
    full_ms         latency of the whole network
    networks        how many sub-networks the table holds
    steps           by kind of layer the blocks of channels in which its kernels work: [inputs, outputs]
    held_out        errors of predictions for networks that were not fitted on: n, median, worst, share_within (10 %),
                    rank (Spearman's correlation)
    layers          one object a layer: name, kind, inputs, outputs, us (predicted, of the whole network)
    groups          one object a group: layer, channels, widths, ratios (predicted latency of the network with this
                    group alone at each width, over that of the whole), edges (widths at the edges of steps)
    """
    from dataclasses import asdict

    from pocketfit.analysis import latency_predictor
    from pocketfit.cli.progress_bar import watch_for_terminal
    from pocketfit.core.plan.export import ExportSettings
    from pocketfit.core.support.files import check_file, check_writable, write_json
    from pocketfit.measurement import channel_cost_table
    from pocketfit.passes.graph.channel_graph import trace

    if out is not None:
        check_file(out, ("full_ms", "held_out"))
    if cache is not None:
        check_writable(cache)
    network = source.open()
    with watch_for_terminal(quiet) as watch:
        graph = trace(network.network, network.signature)
        table = channel_cost_table.measure(
            network,
            graph,
            ExportSettings(runtime, precision=precision),
            cache or channel_cost_table.cache_folder(watch),
            threads=threads,
            count=networks,
            seed=seed,
            watch=watch,
        )
    fitted = latency_predictor.fit(table)
    result = {
        "schema_version": 1,
        "model": source.model,
        "runtime": runtime,
        "threads": threads,
        "precision": precision,
        "environment": dict(table.environment),
        "disturbed": table.disturbed,
        "full_ms": table.full_ms,
        "networks": len(table.measured),
        "steps": {kind: list(steps) for kind, steps in fitted.steps.items()},
        "held_out": asdict(latency_predictor.held_out(table)),
        "layers": [_layer_cost(fitted, layer) for layer in table.skeleton.layers],
        "groups": [_group_cost(fitted, name) for name in table.skeleton.full],
    }
    if out is not None:
        write_json(out, result)
    return result


def _layer_cost(fitted: Predictor, layer: LayerShape) -> dict[str, Any]:
    inputs, outputs = fitted.skeleton.shape(layer, {})
    us = fitted.layers[layer.name].us(inputs, outputs)
    return {"name": layer.name, "kind": layer.kind, "inputs": inputs, "outputs": outputs, "us": us}


def _group_cost(fitted: Predictor, name: str) -> dict[str, Any]:
    from pocketfit.measurement.channel_cost_table import widths_of
    from pocketfit.search.propose.allocate_widths import Choice, on_edges

    known = fitted.skeleton
    widths = widths_of(known.full[name], known.per_id[name])
    edges = on_edges(Choice(name, widths, (0.0,) * len(widths)), fitted.terms(), known.full).widths
    full_ms = fitted.latency_ms({})
    ratios = [fitted.latency_ms({name: width}) / full_ms for width in widths]
    return {"layer": name, "channels": known.full[name], "widths": widths, "ratios": ratios, "edges": edges}


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
