"""The result of `pocketfit sensitivity` -> sensitivity.json and sensitivity.html, one page that loads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from pocketfit import __version__
from pocketfit.core.errors import UserError
from pocketfit.core.samples import split_words
from pocketfit.report.page import words
from pocketfit.report.page.page import page, write_whole
from pocketfit.report.page.svg import nice_ticks, percent

TOP, PLOT, BOTTOM = 14, 84, 18  # heights of a small drawing in pixels: above its axes, of them, below them
WIDTH_95 = 1.96  # standard errors to either side of a 95 % interval
NAMED = 3  # how many groups are named as delicate
EDGES = {"first": "made by the first layer", "last": "read by the last layer"}
Json = Mapping[str, Any]


def write_sensitivity(out: Path, result: Json) -> Path:
    """Write `out`/sensitivity.json, the page made of it, and prune.json where there is a plan; the page's path."""
    text = render(result)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "sensitivity.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    if result["plan"]:
        write_whole(out / "prune.json", json.dumps(result["plan"]["pass"], indent=1) + "\n")
    return write_whole(out / "sensitivity.html", text)


def render(result: Json) -> str:
    """The page as text. Raises UserError for another version of the JSON."""
    if result.get("schema_version") != 1 or "curves" not in result:
        raise UserError("This is no sensitivity of channels that this pocketfit reads: it needs schema_version 1")
    drawings = {"curve": lambda one: Markup(drawing(one["drawn"], one["span"], one["aria"]))}
    return page("pruning/sensitivity.html", page_data(result), drawings)


def page_data(result: Json) -> dict[str, Any]:
    """Every text and number of the page."""
    told = sentences(result)
    span = _span(result["curves"])
    at = reference(result["curves"])
    delicate = {curve["group"] for curve in _ranked(result["curves"], at)[:NAMED]}
    lost = "points of accuracy" if result["labelled"] else "points of agreement with the whole network"
    curves = [_curve(curve, result, at, span, curve["group"] in delicate) for curve in result["curves"]]
    return {
        "name": result["model"],
        "headline": told[0],
        "sentences": told[1:],
        "judged": (
            f"Each group of coupled channels alone, everything else whole, without training: {lost} that are lost, on"
            f" {words.format_count(result['samples'])} samples of the {split_words(result['split'])} split of"
            f" {result['data']}, in PyTorch. Channels go by {result['criterion']}; those that stay are rounded to"
            f" multiples of {result['multiple']}."
        ),
        "whole": _whole(result),
        "latency": latency_words(result),
        "curves": curves,
        "ratios": [f"{point['ratio']:.0%}".replace("%", " %") for point in result["curves"][0]["points"]],
        "at": f"{100 * result['curves'][0]['points'][at]['ratio']:g} %",
        "plan": _plan(result),
        "findings": list(result["findings"]),
        "version": __version__,
    }


def sentences(result: Json) -> list[str]:
    """The headline, how much the other groups lose, and how delicate the first and the last layers are."""
    curves = result["curves"]
    at = reference(curves)
    ranked = _ranked(curves, at)
    if not ranked:
        return ["Rounded to the multiple, no group loses a channel at these ratios"]
    share = f"{100 * curves[0]['points'][at]['ratio']:g} %"
    worst = ranked[0]
    found = [f"{worst['group']} is the most delicate: without {share} of its channels, {_lost(worst, at, result)}"]
    others = ranked[1:NAMED]
    if others:
        named = ", ".join(f"{curve['group']} ({cost(curve['points'][at])})" for curve in others)
        middle = words.format_points(median(curve["points"][at]["drop_points"] for curve in ranked))
        found.append(f"Next by the rise of the loss are {named}; the median of {len(ranked)} groups is {middle}.")
    return [*found, *(_edge(edge, curves, ranked, at) for edge in EDGES)]


def _edge(edge: str, curves: Sequence[Json], ranked: Sequence[Json], at: int) -> str:
    what = "The first layer's channels" if edge == "first" else "The channels that the last layer reads"
    mine = next((curve for curve in curves if curve["edge"] == edge), None)
    if mine is None:
        return f"{what} can't be pruned, so nothing is known of them."
    if mine not in ranked:
        why = f"the network says '{mine['why_not']}'" if mine["why_not"] else "rounding leaves them whole"
        return f"{what} ({mine['group']}) could not be judged: {why}."
    rank = ranked.index(mine) + 1
    verdict = "are among the delicate quarter" if 4 * rank <= len(ranked) + 3 else "are not among the delicate quarter"
    kept = "; pruning leaves them whole all the same" if edge == "first" else ""
    return (
        f"{what} ({mine['group']}) {verdict}: place {rank} of {len(ranked)} by the rise of the loss,"
        f" {cost(mine['points'][at])}{kept}."
    )


def reference(curves: Sequence[Json]) -> int:
    """The index of the ratio at which groups are compared: the one nearest to a half.

    >>> reference([{"points": [{"ratio": 0.1}, {"ratio": 0.6}, {"ratio": 0.9}]}])
    1
    """
    ratios = [point["ratio"] for point in curves[0]["points"]]
    return min(range(len(ratios)), key=lambda n: abs(ratios[n] - 0.5))


def _ranked(curves: Sequence[Json], at: int) -> list[Json]:
    """Groups that lose channels at this ratio, the one with the largest rise of the loss first."""
    judged = [curve for curve in curves if not curve["why_not"] and curve["points"][at]["kept"] < curve["channels"]]
    return sorted(judged, key=lambda curve: -float(curve["points"][at]["loss_rise"]))


def _lost(curve: Json, at: int, result: Json) -> str:
    what = "of accuracy are lost" if result["labelled"] else "of the predictions change"
    return f"{cost(curve['points'][at])} {what}"


def cost(point: Json) -> str:
    """The drop with its 95 % interval in short.

    >>> cost({"drop_points": 12.34, "drop_points_se": 0.5, "why_not": ""})
    '12.3 ± 1.0 pt'
    """
    if point["why_not"]:
        return "does not run"
    if not point["drop_points_se"]:
        return words.format_points(point["drop_points"])
    shown = words.format_points(point["drop_points"]).removesuffix(" pt")
    return f"{shown} ± {WIDTH_95 * point['drop_points_se']:.1f} pt"


def _whole(result: Json) -> str:
    cost_of_it = f"{words.format_count(result['macs'])} MACs, {words.format_bytes(result['size_bytes'])} in float32"
    if not result["labelled"]:
        return f"The whole network: {cost_of_it}."
    return f"The whole network: {words.format_share(result['accuracy'])} right, {cost_of_it}."


def _curve(curve: Json, result: Json, at: int, span: tuple[float, float], delicate: bool) -> dict[str, Any]:
    points = curve["points"]
    there = points[at]
    whole = all(point["kept"] == curve["channels"] for point in points)
    drawn = [] if curve["why_not"] or whole else [_drawn(point) for point in points]
    told = ", ".join(f"{100 * point['ratio']:g} % removed: {cost(point)}" for point in points)
    ratio = there["macs"] / result["macs"]
    return {
        "name": curve["group"],
        "with": ", ".join(layer for layer in curve["layers"] if layer != curve["group"]),
        "channels": curve["channels"],
        "edge": EDGES.get(curve["edge"], ""),
        "blank": f"Can't be pruned: {curve['why_not']}" if curve["why_not"] else "Rounding leaves it whole.",
        "delicate": delicate,
        "lost": "" if not drawn else words.format_points(there["drop_points"]),
        "costs": [_cell(point, curve["channels"]) for point in points],
        "rise": "–" if not drawn else f"{there['loss_rise']:+.3f}",
        "rise_sort": "" if not drawn else there["loss_rise"],
        "rise_error": "" if not drawn else f"± {WIDTH_95 * there['loss_rise_se']:.3f}",
        "macs": words.format_ratio(ratio),
        "macs_sort": ratio,
        "time": "–" if there.get("latency_ratio") is None else words.format_ratio(there["latency_ratio"]),
        "time_sort": "" if there.get("latency_ratio") is None else there["latency_ratio"],
        "drawn": drawn,
        "span": span,
        "aria": f"{curve['group']}: {told}",
    }


def _cell(point: Json, channels: int) -> dict[str, Any]:
    same = point["kept"] == channels
    return {
        "text": "–" if same or point["why_not"] else cost(point),
        "kept": "stays whole" if same else f"{point['kept']} kept",
        "sort": "" if same or point["why_not"] else point["drop_points"],
    }


def _drawn(point: Json) -> dict[str, float]:
    error = WIDTH_95 * point["drop_points_se"]
    drop = float(point["drop_points"])
    return {"ratio": float(point["ratio"]), "drop": drop, "low": drop - error, "high": drop + error}


def _span(curves: Sequence[Json]) -> tuple[float, float]:
    """The axis that all drawings share: from zero or below to the largest loss, at least 2 pt."""
    drawn = [_drawn(point) for curve in curves if not curve["why_not"] for point in curve["points"]]
    low = min((one["drop"] for one in drawn), default=0.0)
    high = max((one["drop"] for one in drawn), default=0.0)
    return min(0.0, low), max(2.0, high)


def drawing(points: Sequence[Mapping[str, float]], span: tuple[float, float], aria: str) -> str:
    """Points lost (downwards is better) over the share of channels removed, from nothing removed on.

    points  [{"ratio", "drop", "low", "high"}]; what reaches above the span ends at the edge
    """
    low, high = span
    right = max([point["ratio"] for point in points], default=1.0)

    def across(ratio: float) -> str:
        return percent(0.02 + 0.94 * ratio / right)

    def down(drop: float) -> float:
        return TOP + PLOT * (1 - (min(max(drop, low), high) - low) / (high - low))

    height = TOP + PLOT + BOTTOM
    parts = [f'<svg class="cuts" role="img" aria-label="{escape(aria)}" width="100%" height="{height}">']
    for tick in nice_ticks(low, high, 3):
        css = "zero" if tick == 0 else "grid"
        parts.append(f'<line class="{css}" x1="0" x2="100%" y1="{down(tick):.1f}" y2="{down(tick):.1f}"/>')
        if tick > 0:
            parts.append(f'<text class="tick" x="0" y="{down(tick) - 3:.1f}">{tick:g} pt</text>')
    last = (0.0, 0.0)
    for point in points:
        x, y = across(point["ratio"]), down(point["drop"])
        anchor = "end" if point["ratio"] == right else "middle"
        parts.append(
            f'<line class="climb" x1="{across(last[0])}" y1="{down(last[1]):.1f}" x2="{x}" y2="{y:.1f}"/>'
            f'<line class="error" x1="{x}" x2="{x}" y1="{down(point["low"]):.1f}" y2="{down(point["high"]):.1f}"/>'
            f'<circle class="now" cx="{x}" cy="{y:.1f}" r="3.5"/>'
            f'<text class="tick" x="{x}" y="{height - 3}" text-anchor="{anchor}">'
            f"{100 * point['ratio']:g} %</text>"
        )
        last = (point["ratio"], point["drop"])
    return "".join([*parts, "</svg>"])


def _plan(result: Json) -> dict[str, Any] | None:
    plan = result["plan"]
    if not plan:
        return None
    return {
        "target": plan["target"],
        "words": plan_words(result),
        "line": plan["line"],
        "fragment": json.dumps(plan["pass"]),
    }


def plan_words(result: Json) -> str:
    """The expected effect of the plan, in a few sentences."""
    plan, lost = result["plan"], "accuracy" if result["labelled"] else "agreement"
    return (
        f"Prunes {len(plan['pass']['layers'])} groups to {words.format_ratio(plan['macs_ratio'])} of the MACs"
        f" ({words.format_count(plan['macs'])}) and {words.format_ratio(plan['size_ratio'])} of the float32 size"
        f" ({words.format_bytes(plan['size_bytes'])}), both exact.{_plan_latency(result)} Alone, these cuts cost"
        f" {words.format_points(plan['drop_points'])} of {lost} in sum, estimated; losses do not add up: before"
        " training, together they mostly cost more."
    )


def _plan_latency(result: Json) -> str:
    """The plan's latency with its error; "" where the result has no latencies."""
    if not result.get("latency"):
        return ""
    plan, latency = result["plan"], result["latency"]
    return (
        f" Its latency in {latency['runtime']} is {words.format_ratio(plan['latency_ratio'])} of the whole network's"
        f" ({plan['latency_ms']:.3g} ms), estimated: {_error(latency)}."
    )


def latency_words(result: Json) -> str:
    """Where latencies of the result come from, in a sentence; "" where it has none."""
    latency = result.get("latency")
    if not latency:
        return ""
    disturbed = f" Not to be trusted: {latency['disturbed']}." if latency.get("disturbed") else ""
    threads = f"{latency['threads']} thread" + ("" if latency["threads"] == 1 else "s")
    where = f"{latency['precision']}, {threads}, {latency['environment'].get('cpu', 'this machine')}"
    return (
        f"In {latency['runtime']} the whole network takes {latency['full_ms']:.3g} ms, measured ({where}); other"
        f" latencies are estimated: {_error(latency)}.{disturbed}"
    )


def _error(latency: Json) -> str:
    """The error of predicted latencies on sub-networks that were measured."""
    held_out = latency["held_out"]
    return (
        f"for {held_out['n']} measured sub-networks, each predicted without itself, the error is"
        f" {100 * held_out['median']:.1f} % in the median and {100 * held_out['worst']:.1f} % at worst"
    )
