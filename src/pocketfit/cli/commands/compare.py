"""`pocketfit compare`: how alike two files answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pocketfit.cli.exit_codes import guarded, print_result
from pocketfit.cli.options import PATH, PREPROCESS, data_option, task_option, threads_option


@click.command("compare")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@data_option("Pictures to compare the two on.", required=True)
@click.option("--model", help="Model folder or bundle that says how images are prepared.")
@click.option("--preprocess", help=f"{PREPROCESS}; without --model.")
@task_option
@click.option(
    "--split",
    type=click.Choice(["search", "verdict", "calibration", "train"]),
    default="search",
    show_default=True,
    help="Which part of the data.",
)
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="At most this many images.")
@threads_option
@guarded
def command(as_json: bool, **options: Any) -> int:
    """Where two files differ: agreement, accuracy, SQNR and cosine of the outputs, first layer that drifts."""
    print_result(compare(**options), as_json, show)
    return 0


def compare(a: Path, b: Path, data: Path, split: str, **options: Any) -> dict[str, Any]:
    """Where two files differ."""
    from pocketfit.api.compare import compare as compared
    from pocketfit.cli.progress_bar import watch_for_terminal

    with watch_for_terminal() as watch:
        found = compared(a, b, data, split=split, watch=watch, **options)
    return {"a": str(a), "b": str(b), "split": split, **found.to_json()}


def show(data: Mapping[str, Any]) -> None:
    from rich.markup import escape

    from pocketfit.cli.terminal import plain, short, table

    console = plain()
    for key, value in data.items():
        if isinstance(value, list):
            if value and isinstance(value[0], dict):
                columns = list(value[0])
                console.print(f"\n[bold]{escape(key)}[/bold]")
                console.print(table(columns, [[short(row.get(c)) for c in columns] for row in value]))
        elif isinstance(value, dict):
            inside = ", ".join(f"{k} {short(v)}" for k, v in value.items())
            console.print(f"{escape(key):22} {escape(inside)}")
        else:
            console.print(f"{escape(key):22} {escape(short(value))}")
