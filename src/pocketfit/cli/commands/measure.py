"""`pocketfit measure`: one file, timed and scored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pocketfit.cli.exit_codes import guarded, print_result
from pocketfit.cli.options import METRICS, PATH, PREPROCESS, data_option, seed_option, task_option, threads_option

Size = tuple[int, ...]  # of an input, without the batch
MOST_SIZES = 64
PROFILE_RUNS = 30
TRIED = 32  # samples on which a user's own metric is tried


class _Sizes(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3
    """ "3x48x160,3x48x320" -> ((3, 48, 160), (3, 48, 320))."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Size, ...]:
        try:
            sizes = tuple(tuple(int(side) for side in one.split("x")) for one in str(value).split(","))
        except ValueError:
            sizes = ()
        if not 0 < len(sizes) <= MOST_SIZES or any(side < 1 for size in sizes for side in size):
            self.fail(f"'{value}' is not a list of sizes such as 3x48x160,3x48x320", param, ctx)
        return sizes


@click.command("measure")
@click.argument("file", type=PATH)
@click.option("--against", type=PATH, help="A second file of the same runtime, timed in turns with FILE.")
@data_option("Adds the accuracy on this data's test split.", required=False)
@click.option("--model", help="Model folder or bundle that says how images are prepared (with --data).")
@click.option("--preprocess", help=f"{PREPROCESS}; with --data, without --model.")
@task_option
@click.option("--metric", default="", metavar="METRIC", help=f"With --data: {METRICS}")
@click.option(
    "--sizes",
    type=_Sizes(),
    metavar="SIZES",
    help="Only memory and cold start, at these sizes of the input of a file with dynamic axes (3x48x160,3x48x320).",
)
@click.option("--runtime", default="", help="Which one, where several take such a file: micro for a .tflite.")
@threads_option
@seed_option
@guarded
def command(as_json: bool, sizes: tuple[Size, ...] | None, **options: Any) -> int:
    """Size, cold start, latency, memory and per-operator cost of any .tflite, .onnx or .xml FILE."""
    if sizes:
        print_result(over_sizes(options["file"], sizes, options["threads"]), as_json, show_sizes)
    else:
        print_result(measure(**options), as_json, show)
    return 0


def over_sizes(file: Path, sizes: tuple[Size, ...], threads: int) -> dict[str, Any]:
    """Memory of a file at several sizes of its input."""
    from pocketfit.api.memory import memory_over_sizes
    from pocketfit.cli.progress_bar import watch_for_terminal

    with watch_for_terminal() as watch:
        return memory_over_sizes(file, sizes, threads=threads, watch=watch).to_json()


def measure(file: Path, data: Path | None, against: Path | None, **options: Any) -> dict[str, Any]:
    """Everything that can be measured of one file, or of two against each other."""
    from pocketfit.api.measure import measure as measured
    from pocketfit.cli.progress_bar import watch_for_terminal

    with watch_for_terminal() as watch:
        return measured(file, against=against, samples=data, watch=watch, **options).to_json()


def show_sizes(data: Mapping[str, Any]) -> None:
    from rich.markup import escape

    from pocketfit.cli.terminal import plain, table, value

    console = plain()
    console.print(f"{escape(data['file'])}  ({data['runtime']})\n")
    columns = ("memory", "of it weights", "activations", "runtime alone", "process", "cold start")
    names = [f"memory_{part}bytes" for part in ("", "weights_", "activations_", "runtime_", "gross_")]
    rows = []
    for row in data["sizes"]:
        found = row["measurements"]
        size = "x".join(str(side) for side in row["size"])
        rows.append((size, *(value(found[name]) for name in (*names, "cold_start_ms"))))
    console.print(table(("input", *columns), rows))


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
