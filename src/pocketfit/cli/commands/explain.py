"""`pocketfit explain`: where static int8 loses accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pocketfit.cli.arguments import Source, listed
from pocketfit.cli.exit_codes import guarded, print_result
from pocketfit.cli.options import PATH, data_option, quiet_option, source_options, threads_option
from pocketfit.core.plan.runtime_list import for_apps

if TYPE_CHECKING:
    pass

TRAINING_LOOKED_AT = 256  # training samples with which the calibration samples are compared
MOST_LAYERS = 12


@click.command("explain")
@click.argument("model")
@data_option(required=True)
@click.option("-o", "--out", type=PATH, help="Folder for explain.json and explain.html.")
@source_options()
@click.option(
    "--runtime",
    type=click.Choice(for_apps()),
    default="litert",
    show_default=True,
    help="Whose files are measured.",
)
@click.option("--weight-bits", type=click.Choice(["8", "4"]), default="8", show_default=True, help="Of most layers.")
@click.option("--keep-float", default="", metavar="NAME[,NAME]", help="Layers that stay in float from the start.")
@click.option(
    "--samples", type=click.IntRange(1), default=500, show_default=True, help="Files are measured on at most this many."
)
@threads_option
@quiet_option
@guarded
def command(as_json: bool, weight_bits: str, **options: Any) -> int:
    """Which layers cost a plain int8 file its accuracy, why, and what would help.

    Files are measured in their runtime; what a single layer costs on its own is estimated.
    """
    data = explain(weight_bits=int(weight_bits), **options)
    print_result(data, as_json, lambda d: show(d, options["out"]))
    return 0


def explain(
    source: Source, data: Path, out: Path | None, keep_float: str, samples: int, quiet: bool, **options: Any
) -> dict[str, Any]:
    """Which layers cost a plain int8 file its accuracy; with `out`, explain.json and explain.html are written there."""
    from pocketfit.api.explain import explain as explained
    from pocketfit.cli.progress_bar import watch_for_terminal
    from pocketfit.core.support.files import OF_A_RUN, OF_LOOKS, check_folder
    from pocketfit.report.quantization.explain import write_explanation

    if out is not None:
        check_folder(out, (*OF_LOOKS, *OF_A_RUN))
    network = source.open()
    with watch_for_terminal(quiet) as watch:
        found = explained(network, data, keep_float=listed(keep_float), limit=samples, watch=watch, **options)
    result = {"data": data.name, **found.to_json()}
    if out is not None:
        write_explanation(out, result)
    return result


def show(data: Mapping[str, Any], out: Path | None) -> None:
    from rich.markup import escape

    from pocketfit.cli.terminal import plain, table
    from pocketfit.core.samples import split_words

    console = plain()
    console.print(f"[bold]{escape(data['headline'])}[/bold]\n")
    of = f"{data['samples']} samples of the {split_words(data['split'])} split, in {data['runtime']}"
    console.print(f"Files, measured on {of}")
    console.print(
        table(("file", "SQNR", "agreement", "drop", "95 % interval", "size"), [_file(f) for f in data["files"]])
    )
    worst = sorted(data["table"]["layers"], key=lambda row: -row["share"])[:MOST_LAYERS]
    console.print("\nLayers by their share of the noise (estimated; the last column is read from the deployed file)")
    columns = ("layer", "share", "weights alone", "tensor alone", "gain in float", "widest channel", "tensor in file")
    console.print(table(columns, [_layer(row, data["drift_db"]) for row in worst]))
    console.print("\nGuilty layers alone, after each rung (estimated)")
    rungs = list(data["after"])
    rows = [[one["layer"], *(_db(data["after"][rung].get(one["layer"])) for rung in rungs)] for one in data["culprits"]]
    console.print(table(("layer", *rungs), rows))
    console.print("\nRanges over three calibration seeds: SQNR of the network (estimated)")
    methods = [(r["method"], _db(r["lowest_db"]), _db(r["median_db"]), _db(r["highest_db"])) for r in data["ranges"]]
    console.print(table(("method", "lowest", "median", "highest"), methods))
    for sentence in data["findings"]:
        console.print(f"• {escape(sentence)}")
    console.print(f"\n{escape(excluding(data))}")
    if out is not None:
        console.print(f"page    {escape(str(out / 'explain.html'))}")


def excluding(data: Mapping[str, Any]) -> str:
    """The exclude list, ready to paste, or that there is none."""
    if not data["exclude"]:
        return "No layer is worth leaving in float."
    return f"--keep-float {','.join(data['exclude'])}"


def _file(file: Mapping[str, Any]) -> list[object]:
    from pocketfit.report.page.words import format_bytes, format_points, format_share

    drop = file["drop"]
    return [
        file["name"],
        _db(file["sqnr_db"]) if file["kind"] != "float" else "–",
        None if file["agreement"] is None or file["kind"] == "float" else format_share(file["agreement"]),
        None if drop is None else format_points(drop["points"], 2),
        None if drop is None else f"{drop['low']:.2f} to {drop['high']:.2f}",
        format_bytes(file["size_bytes"]),
    ]


def _layer(row: Mapping[str, Any], drift: Mapping[str, Any]) -> list[object]:
    wide = row["outputs"]
    return [
        row["layer"],
        f"{row['share']:.1%}",
        _db(row["weights_db"]) if row["weight_bits"] is not None else None,
        _db(row["activations_db"]),
        f"{row['gain_db']:+.1f} dB",
        None if wide is None else f"{wide['times']:.1f}x",
        _db(drift[row["layer"]]) if row["layer"] in drift else None,
    ]


def _db(value: float | None) -> str:
    """Null stands for no noise at all."""
    return "exact" if value is None else f"{value:.1f} dB"
