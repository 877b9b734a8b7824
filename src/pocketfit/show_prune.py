"""How the verbs that look at pruning show on a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from pocketfit.cli.terminal import plain, table
from pocketfit.report.page.words import format_ratio
from pocketfit.report.pruning.sensitivity import cost, latency_words, plan_words, reference

MOST_EDGES = 12


def sensitivity(data: Mapping[str, Any], out: Path | None) -> None:
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
        f" {data['split']} split, estimated)"
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
    costs = [
        None if point["kept"] == curve["channels"] else cost(point).removesuffix(" pt") for point in curve["points"]
    ]
    ratio = format_ratio(curve["points"][at]["macs"] / data["macs"])
    time = curve["points"][at]["latency_ratio"]
    times = [None if time is None else format_ratio(time)] if data["latency"] else []
    return [curve["group"], curve["channels"], *costs, ratio, *times]


def costs(data: Mapping[str, Any], out: Path | None) -> None:
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
    ratios = []
    for share in (0.75, 0.5, 0.25):
        near = min(range(len(group["widths"])), key=lambda i: abs(group["widths"][i] - share * group["channels"]))
        ratios.append(format_ratio(group["ratios"][near]))
    edges = [str(width) for width in group["edges"]]
    shown = edges if len(edges) <= MOST_EDGES else [*edges[: MOST_EDGES - 1], "…", edges[-1]]
    return (group["layer"], str(group["channels"]), *ratios, " ".join(shown))
