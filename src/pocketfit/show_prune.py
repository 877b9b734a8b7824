"""How the verbs that look at pruning show on a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from pocketfit.report.channel_sensitivity import cost, plan_words, reference
from pocketfit.report.words import format_ratio
from pocketfit.show import table


def sensitivity(data: Mapping[str, Any], out: Path | None) -> None:
    console = Console(highlight=False, soft_wrap=True)
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
    columns = ("group", "channels", *ratios, f"MACs at {ratios[at]}")
    console.print(table(columns, [_row(curve, data, at) for curve in data["curves"]]))
    for sentence in data["findings"]:
        console.print(f"• {escape(sentence)}")
    if data["plan"]:
        console.print(f"\n[bold]A plan for {data['plan']['target']}[/bold]")
        console.print(escape(plan_words(data["plan"], labelled=data["labelled"])))
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
    return [curve["group"], curve["channels"], *costs, ratio]
