"""How results look on a terminal. Numbers are worded by report/page/words.py, the same as in the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pocketfit.core.errors import UserError
from pocketfit.core.support.json_file import load
from pocketfit.report.page.words import (
    format_value,
    limit_words,
    verdict_sentence,
)
from pocketfit.search import journal

MOST_ROWS = 400


class _Plain(Console):
    def on_broken_pipe(self) -> None:
        """Raise the error: rich would end the program with exit code 1, which has another meaning here."""
        raise BrokenPipeError


def plain() -> Console:
    """The console on which results are printed."""
    return _Plain(highlight=False, soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> Table:
    """A table with the first `left` columns aligned to the left, the others to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows[:MOST_ROWS]:
        table.add_row(*("–" if cell is None else escape(str(cell)) for cell in row))
    return table


def value(measurement: Mapping[str, Any] | None) -> str:
    if not measurement:
        return "–"
    if measurement["value"] is None:
        return f"not possible here: {measurement.get('reason', '')}"
    text = format_value(measurement["value"], measurement["unit"])
    return f"{text} (estimated)" if measurement["how"] == "estimated" else text


def show_result(data: Mapping[str, Any], out: Path) -> None:
    console = plain()
    starts = (line for line in journal.read_lines(out / "journal.jsonl") if line.get("kind") == "start")
    start = next(starts, None)
    name = start["inputs"]["model"] if start else "the network"
    console.print(f"[bold]{escape(verdict_sentence(data, name))}[/bold]")
    if data["limits"]:
        console.print()
        rows = [
            (
                limit_words(limit),
                "unknown" if check["value"] is None else format_value(check["value"], check["unit"]),
                "met, certified" if check["certified"] else "met, not certified" if check["met"] else "missed",
            )
            for limit, check in zip(data["budget"]["limits"], data["limits"], strict=True)
        ]
        console.print(table(("limit", "reached", ""), rows))
    console.print()
    for sentence in data["explanation"]:
        console.print(f"• {escape(sentence)}")
    if data["shortfall"]:
        console.print("\n[bold]Why the limits are not met[/bold]")
        for sentence in data["shortfall"]["sentences"]:
            console.print(f"• {escape(sentence)}")
    if data["chosen"]:
        console.print(f"\nfile    {escape(str(out / data['chosen']['artifact']['path']))}")
        for name in ("bundle", "report.html", "plan.json") if _is_delivered(data, out) else ("report.html",):
            if (out / name).exists():
                console.print(f"{name.split('.')[0]:7} {escape(str(out / name))}")


def _is_delivered(data: Mapping[str, Any], out: Path) -> bool:
    """Whether OUT's plan.json and bundle are those of the chosen plan; `choose` may have picked another one."""
    path = out / "plan.json"
    try:
        return bool(load(path, "plan") == json.loads(json.dumps(data["chosen"]["plan"])))
    except UserError:  # there is no plan.json, or another version wrote it
        return False


def short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)
