"""How `explain` looks on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from pocketfit.cli.terminal import plain, table
from pocketfit.report.page.words import format_bytes, format_points, format_share

MOST_LAYERS = 12


def explained(data: Mapping[str, Any], out: Path | None) -> None:
    console = plain()
    console.print(f"[bold]{escape(data['headline'])}[/bold]\n")
    of = f"{data['samples']} samples of the {data['split']} split, in {data['runtime']}"
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
