"""How results look on a terminal. Numbers are worded by `report.words`, the same as in the report."""

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
    format_bytes,
    format_count,
    format_share,
    format_value,
    limit_words,
    verdict_sentence,
)
from pocketfit.search import journal

MOST_ROWS = 400


class _Plain(Console):
    def on_broken_pipe(self) -> None:
        """rich ends the program with exit code 1 here, which means something else."""
        raise BrokenPipeError


def plain() -> Console:
    """Where results are printed."""
    return _Plain(highlight=False, soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> Table:
    """The first `left` columns to the left, the others to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows[:MOST_ROWS]:
        table.add_row(*("–" if cell is None else escape(str(cell)) for cell in row))
    return table


def _value(measurement: Mapping[str, Any] | None) -> str:
    if not measurement:
        return "–"
    if measurement["value"] is None:
        return f"not possible here: {measurement.get('reason', '')}"
    text = format_value(measurement["value"], measurement["unit"])
    return f"{text} (estimated)" if measurement["how"] == "estimated" else text


def trained(data: Mapping[str, Any]) -> None:
    console = plain()
    console.print(
        f"{escape(data['model'])}: {data['architecture']} for {len(data['labels'])} classes,"
        f" {format_share(data['search_accuracy'])} right on the search split"
        f" (n = {format_count(data['search_samples'])}, in PyTorch; trained on {format_count(data['train_samples'])})"
    )


def result(data: Mapping[str, Any], out: Path) -> None:
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


def made_without_data(data: Mapping[str, Any], out: Path) -> None:
    """What `fit --no-data` made."""
    console = plain()
    console.print(f"[bold]{escape(data['warning'])}[/bold]\n")
    rows = []
    for trial in data["trials"]:
        found = trial["measurements"]
        quantities = ("size_bytes", "download_bytes", "latency_ms", "latency_ratio", "memory_bytes")
        rows.append((trial["artifact"]["runtime"], trial["code"], *(_value(found.get(name)) for name in quantities)))
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


def _is_delivered(data: Mapping[str, Any], out: Path) -> bool:
    """Whether OUT's plan.json and bundle are those of the chosen plan; `choose` may have picked another one."""
    path = out / "plan.json"
    try:
        return bool(load(path, "plan") == json.loads(json.dumps(data["chosen"]["plan"])))
    except UserError:  # none, or none that this pocketfit wrote
        return False


def applied(data: Mapping[str, Any]) -> None:
    console = plain()
    console.print(f"{escape(data['path'])}  {format_bytes(data['bytes'])}  sha256 {data['sha256']}")
    for sentence in (*data["notes"], *data["findings"]):
        console.print(f"• {escape(sentence)}")


def measured(data: Mapping[str, Any]) -> None:
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
        rows.append((name, _value(m), interval, m["n"]))
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


def compared(data: Mapping[str, Any]) -> None:
    console = plain()
    for key, value in data.items():
        if isinstance(value, list):
            if value and isinstance(value[0], dict):
                columns = list(value[0])
                console.print(f"\n[bold]{escape(key)}[/bold]")
                console.print(table(columns, [[_short(row.get(c)) for c in columns] for row in value]))
        elif isinstance(value, dict):
            inside = ", ".join(f"{k} {_short(v)}" for k, v in value.items())
            console.print(f"{escape(key):22} {escape(inside)}")
        else:
            console.print(f"{escape(key):22} {escape(_short(value))}")


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)


def inspected(data: Mapping[str, Any]) -> None:
    console = plain()
    if "layers" in data:
        totals = data["totals"]
        console.print(f"{escape(data['model'])}: {escape(data['architecture'])}, {data['labels']} classes")
        rows = [
            (
                r["name"],
                r["type"],
                _shape(r["input_shape"]),
                _shape(r["output_shape"]),
                format_count(r["params"]),
                format_count(r["macs"]),
                format_bytes(r["size_bytes"]),
            )
            for r in data["layers"]
        ]
        console.print(table(("layer", "type", "input", "output", "params", "MACs", "float32"), rows, left=2))
        console.print(
            f"\n{totals['layers']} layers, {format_count(totals['params'])} parameters,"
            f" {format_count(totals['macs'])} MACs, {format_bytes(totals['size_bytes'])} in float32"
        )
    else:
        console.print(
            f"{escape(data['file'])}: {data['format']}, {format_bytes(data['bytes'])}, {format_count(data['macs'])}"
            f" MACs"
        )
        for side in ("inputs", "outputs"):
            for tensor in data[side]:
                console.print(
                    f"{side[:-1]:6} {escape(tensor['name'])} {tensor['dtype']} {_shape(tensor['shape'])}"
                    f" {tensor['layout']}"
                )
        rows = [
            (
                op["index"],
                op["type"],
                op["layer"] or op["name"][-50:],
                _shape(op["output_shape"]),
                op["weight_dtype"],
                op["compute_dtype"],
                format_count(op["macs"]) if op["macs"] else "",
            )
            for op in data["ops"]
        ]
        console.print(table(("#", "type", "layer or name", "output", "weights", "computes in", "MACs"), rows, left=3))
        for sentence in data["not_taken"]:
            console.print(f"• {escape(sentence)}")
    for sentence in data.get("findings", ()):
        console.print(f"• {escape(sentence)}")


def _shape(shape: Sequence[int | None]) -> str:
    return "×".join("n" if size is None else str(size) for size in shape)


def doctored(data: Mapping[str, Any]) -> None:
    console = plain()
    for runtime in data["runtimes"]:
        mark = "[green]PASS[/green]" if runtime["ok"] else "[red]FAIL[/red]"
        console.print(f"{mark}  {runtime['name']:12} {runtime['version']:10} {escape(runtime['detail'])}")
    console.print(
        f"\n{escape(', '.join(f'{k} {v}' for k, v in data['environment'].items() if isinstance(v, str | int)))}"
    )
