"""The result of `pocketfit explain` -> explain.json and explain.html, one page that loads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pocketfit import __version__
from pocketfit.core.errors import UserError
from pocketfit.core.samples import split_words
from pocketfit.core.support.text import some
from pocketfit.report.page import words
from pocketfit.report.page.page import page, write_whole
from pocketfit.report.quantization import explain_svg

SHOWN_CLIPS = ("min-max", "mse")
METHOD_WORDS = {
    "min-max": "minimum and maximum",
    "moving-average": "moving average",
    "percentile": "percentile",
    "mse": "least squared error",
    "kl": "least KL divergence",
}


def write_explanation(out: Path, result: Mapping[str, Any]) -> Path:
    """Write `out`/explain.json and the page made of it; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "explain.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return write_whole(out / "explain.html", render(result))


def render(result: Mapping[str, Any]) -> str:
    """The page as text, from the JSON of analysis.explain.Explanation. Raises UserError for another version of it."""
    if result.get("schema_version") != 1:
        raise UserError("This is not an explanation that this pocketfit reads: it needs schema_version 1")
    drawings = {
        "rungs": lambda chart: Markup(explain_svg.rungs(chart["steps"], chart["aria"])),
        "histogram": lambda one: Markup(explain_svg.histogram(one, one["aria"])),
        "spread": lambda one: Markup(explain_svg.spread(one["ends"], one["span"], one["aria"])),
    }
    return page("quantization/explain.html", explain_data(result), drawings)


def explain_data(result: Mapping[str, Any]) -> dict[str, Any]:
    """Every text and number of the page."""
    files = result["files"]
    plain = next(one for one in files if one["kind"] == "plain")
    table = result["table"]
    return {
        "name": result["model"],
        "headline": result["headline"],
        "measured": (
            f"Files are measured on {words.format_count(result['samples'])} samples of the"
            f" {split_words(result['split'])} split of {result['data']}, in {result['runtime']}; what a single layer"
            " costs on its own is estimated in PyTorch."
        ),
        "code": plain["code"],
        "chart": _chart(files),
        "labelled": result["labelled"],
        "files": [_file(one) for one in files if one["kind"] in ("float", "plain", "rung")],
        "kept": [_file(one) for one in files if one["kind"] in ("kept", "excluded")],
        "exclude": ",".join(result["exclude"]),
        "exclude_json": json.dumps(list(result["exclude"])),
        "layers": [_layer(row, result["drift_db"], table["layers"]) for row in _ranked(table["layers"])],
        "whole": _whole(table),
        "drift_note": result["drift_note"],
        "culprits": [_culprit(one, result) for one in result["culprits"]],
        "rung_names": list(result["after"]),
        "methods": _methods(result["ranges"]),
        "findings": list(result["findings"]),
        "version": __version__,
    }


def _ranked(layers: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(layers, key=lambda row: -row["share"])


def _chart(files: list[Mapping[str, Any]]) -> dict[str, Any] | None:
    steps = [one for one in files if one["kind"] in ("plain", "rung") and one["sqnr_db"] is not None]
    if len(steps) < 2:
        return None
    told = ", ".join(f"{one['name']} {decibels(one['sqnr_db'])}" for one in steps)
    return {
        "steps": [{"name": one["name"], "value": one["sqnr_db"], "text": _reached(one)} for one in steps],
        "aria": f"SQNR of the whole file after each rung: {told}",
    }


def _reached(file: Mapping[str, Any]) -> str:
    drop = file["drop"]
    lost = "" if drop is None else f", drop {words.format_points(drop['points'])}"
    return f"{decibels(file['sqnr_db'])}{lost}"


def _file(file: Mapping[str, Any]) -> dict[str, Any]:
    drop, cost = file["drop"], file["cost"]
    is_float = file["kind"] == "float"
    return {
        "name": file["name"],
        "code": file["code"],
        "keep_float": ", ".join(file["keep_float"]),
        "sqnr": "–" if is_float else decibels(file["sqnr_db"]),
        "sqnr_sort": "" if file["sqnr_db"] is None else file["sqnr_db"],
        "gain": f"{file['gain_db']:+.1f} dB",
        "gain_sort": file["gain_db"],
        "agreement": "–" if is_float or file["agreement"] is None else words.format_share(file["agreement"]),
        "agreement_sort": "" if file["agreement"] is None else file["agreement"],
        "accuracy": "–" if file["accuracy"] is None else words.format_share(file["accuracy"]),
        "drop": "–" if drop is None else words.format_points(drop["points"], 2),
        "drop_sort": "" if drop is None else drop["points"],
        "drop_interval": "" if drop is None else words.format_interval(drop["low"], drop["high"], "pt"),
        "cost": "–" if cost is None else words.format_points(cost["points"], 2),
        "cost_sort": "" if cost is None else cost["points"],
        "cost_interval": "" if cost is None else words.format_interval(cost["low"], cost["high"], "pt"),
        "size": words.format_bytes(file["size_bytes"]),
        "size_sort": file["size_bytes"],
    }


def _layer(row: Mapping[str, Any], drift: Mapping[str, Any], layers: list[Mapping[str, Any]]) -> dict[str, Any]:
    largest = max((one["share"] for one in layers), default=0.0) or 1.0
    outputs, has_weights = row["outputs"], row["weight_bits"] is not None
    wide = "–" if outputs is None else f"{words.three_digits(outputs['times'])}x"
    return {
        "name": row["layer"],
        "kind": f"{row['weight_bits']}-bit weights" if has_weights else "no weights",
        "share": f"{100 * row['share']:.1f} %",
        "share_sort": row["share"],
        "bar": round(100 * row["share"] / largest, 2),
        "weights": _sortable(row["weights_db"], known=has_weights),
        "tensor": _sortable(row["activations_db"], known=outputs is not None),
        "all_but": _sortable(row["all_but_db"]),
        "gain": f"{row['gain_db']:+.1f} dB",
        "own": _sortable(row["own_db"], known=outputs is not None),
        "neighbours": _sortable(row["neighbours_db"], known=row["neighbours_db"] is not None),
        "drift": _sortable(drift.get(row["layer"]), known=row["layer"] in drift),
        "wide": wide,
        "wide_sort": "" if outputs is None else outputs["times"],
        "which": _which(outputs),
    }


def _which(channels: Mapping[str, Any] | None) -> str:
    if channels is None or not channels["wide"]:
        return ""
    named = some(list(map(str, channels["which"])), of=channels["wide"])
    return f"channel{'s' if channels['wide'] > 1 else ''} {named}"


def _sortable(value: float | None, *, known: bool = True) -> dict[str, Any]:
    """A cell in decibels; null stands for no noise at all, unless it is not known."""
    if not known:
        return {"text": "–", "sort": ""}
    return {"text": decibels(value), "sort": 999 if value is None else value}


def decibels(value: float | None) -> str:
    """
    >>> decibels(13.44), decibels(None)
    ('13.4 dB', 'exact')
    """
    return "exact" if value is None else f"{value:.1f} dB"


def _whole(table: Mapping[str, Any]) -> str:
    return (
        f"Estimated, on {table['judged']} calibration samples with ranges from {table['observed']} others: everything"
        f" quantized {decibels(table['whole_db'])}, weights only {decibels(table['weights_db'])}, tensors only"
        f" {decibels(table['activations_db'])}. All layers' noise, each quantized alone, adds up to"
        f" {decibels(table['added_db'])}: the nearer to the first number, the more the shares mean."
    )


def _culprit(one: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    drawn = next((h for h in result["histograms"] if h["layer"] == one["layer"]), None)
    after = result["after"]
    return {
        "layer": one["layer"],
        "share": f"{one['share']:.0%} of the noise",
        "cause": one["cause"],
        "after": [decibels(after[rung][one["layer"]]) if one["layer"] in after[rung] else "–" for rung in after],
        "histogram": None if drawn is None or not drawn["counts"] else _histogram(drawn),
    }


def _histogram(drawn: Mapping[str, Any]) -> dict[str, Any]:
    clips = [
        {"label": METHOD_WORDS[name], "low": drawn["clips"][name][0], "high": drawn["clips"][name][1]}
        for name in SHOWN_CLIPS
    ]
    told = "; ".join(f"{clip['label']} {clip['low']:.3g} to {clip['high']:.3g}" for clip in clips)
    return {
        **{key: drawn[key] for key in ("low", "high", "counts")},
        "clips": clips,
        "aria": f"Values of the tensor behind {drawn['layer']}, from {drawn['low']:.3g} to {drawn['high']:.3g}; {told}",
        "told": told,
    }


def _methods(ranges: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    known = [value for one in ranges for value in one["sqnr_db"] if value is not None]
    span = (min(known), max(known)) if known else (0.0, 1.0)
    found = []
    for one in ranges:
        ends = (one["lowest_db"], one["median_db"], one["highest_db"])
        texts = [decibels(value) for value in ends]
        found.append(
            {
                "name": METHOD_WORDS.get(one["method"], one["method"]),
                "lowest": texts[0],
                "median": texts[1],
                "highest": texts[2],
                "sort": "" if ends[1] is None else ends[1],
                "ends": None if None in ends else ends,
                "span": span,
                "aria": f"{one['method']}: {texts[0]} to {texts[2]}, median {texts[1]}",
            }
        )
    return found
