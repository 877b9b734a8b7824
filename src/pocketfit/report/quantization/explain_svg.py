"""The drawings of explain.html: the gain of each rung, a tensor's histogram, the spread of range methods.

As in svg.py: widths are percentages, heights pixels, colours come from CSS classes, all text is escaped here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pocketfit.report.page.svg import nice_ticks, percent

ROW = 44  # height of a rung in pixels
HISTOGRAM_HEIGHT = 120
METHOD_HEIGHT = 22
LABEL_ROOM = 15  # pixels between the labels of two clips


def rungs(steps: Sequence[Mapping[str, Any]], aria: str) -> str:
    """A line through the rungs (downwards) and their decibels (rightwards). steps: [{"name", "value", "text"}]."""
    values = [float(step["value"]) for step in steps]
    low, high = _span(values)
    height = ROW * len(steps) + 6

    def across(value: float) -> float:
        return 0.02 + 0.96 * (value - low) / (high - low)

    parts = [f'<svg class="rungs" role="img" aria-label="{escape(aria)}" width="100%" height="{height + 18}">']
    for tick in nice_ticks(low, high, 6):
        at = percent(across(tick))
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="0" y2="{height}"/>')
        parts.append(f'<text class="tick" x="{at}" y="{height + 14}" text-anchor="middle">{tick:g} dB</text>')
    places = [(percent(across(value)), ROW * row + 32) for row, value in enumerate(values)]
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        parts.append(f'<line class="climb" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}"/>')
    for step, value, (x, y) in zip(steps, values, places, strict=True):
        side, shift = ("end", -10) if across(value) > 0.5 else ("start", 10)
        parts.append(f'<text class="rung-name" x="0" y="{y - 15}">{escape(step["name"])}</text>')
        parts.append(f'<circle class="now" cx="{x}" cy="{y}" r="5"/>')
        parts.append(f'<text class="rung-value" x="{x}" dx="{shift}" y="{y + 4}" text-anchor="{side}">')
        parts.append(f"{escape(step['text'])}</text>")
    return "".join([*parts, "</svg>"])


def histogram(data: Mapping[str, Any], aria: str) -> str:
    """Values of a tensor in bins, heights by the logarithm of the counts, with the ends of clips as lines.

    data    {"low", "high", "counts", "clips": [{"label", "low", "high"}]}
    """
    low, high = min(float(data["low"]), 0.0), max(float(data["high"]), 0.0)
    width = (high - low) or 1.0
    counts = data["counts"]
    step = (float(data["high"]) - float(data["low"])) / max(1, len(counts))
    top = math.log1p(max(counts, default=1)) or 1.0
    room = LABEL_ROOM * len(data["clips"])
    bottom = room + HISTOGRAM_HEIGHT

    def across(value: float) -> float:
        return min(max((value - low) / width, 0.0), 1.0)

    parts = [f'<svg class="histogram" role="img" aria-label="{escape(aria)}" width="100%" height="{bottom + 20}">']
    for number, count in enumerate(counts):
        if count:
            tall = max(1.0, HISTOGRAM_HEIGHT * math.log1p(count) / top)
            left = across(float(data["low"]) + number * step)
            parts.append(
                f'<rect class="was" x="{percent(left)}" y="{bottom - tall:.1f}" width="{percent(step / width)}"'
                f' height="{tall:.1f}"/>'
            )
    parts.append(f'<line class="axis" x1="0" x2="100%" y1="{bottom}" y2="{bottom}"/>')
    for value, anchor in _ends(low, high, across):
        text = f"{value:.3g}"
        parts.append(
            f'<text class="tick" x="{percent(across(value))}" y="{bottom + 15}" text-anchor="{anchor}">{text}</text>'
        )
    for number, clip in enumerate(data["clips"]):
        parts.append(_clip(clip, number, bottom, across))
    return "".join([*parts, "</svg>"])


def _clip(clip: Mapping[str, Any], number: int, bottom: int, across: Any) -> str:
    y = LABEL_ROOM * number + 11
    a, b = across(float(clip["low"])), across(float(clip["high"]))
    anchor, at = ("end", b) if b > 0.5 else ("start", b)
    shift = -5 if anchor == "end" else 5
    lines = "".join(
        f'<line class="clip clip-{number}" x1="{percent(x)}" x2="{percent(x)}" y1="{y - 9}" y2="{bottom}"/>'
        for x in (a, b)
    )
    return (
        f'{lines}<text class="clip-label clip-{number}" x="{percent(at)}" dx="{shift}" y="{y}"'
        f' text-anchor="{anchor}">{escape(clip["label"])}</text>'
    )


def _ends(low: float, high: float, across: Any) -> list[tuple[float, str]]:
    """(value, anchor) of the axis labels: at both ends, and at 0 where that is far from both."""
    found = [(low, "start"), (high, "end")]
    return [*found, (0.0, "middle")] if 0.12 < across(0.0) < 0.88 else found


def spread(ends: tuple[float, float, float], span: tuple[float, float], aria: str) -> str:
    """A drawing of (lowest, median, highest) on an axis that several drawings share."""
    (lowest, middle, highest), (low, high) = ends, span

    def across(value: float) -> str:
        return percent(0.02 + 0.96 * (value - low) / ((high - low) or 1.0))

    y = METHOD_HEIGHT // 2
    return (
        f'<svg class="spread" role="img" aria-label="{escape(aria)}" width="100%" height="{METHOD_HEIGHT}">'
        f'<line class="zero" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
        f'<line class="reach" x1="{across(lowest)}" x2="{across(highest)}" y1="{y}" y2="{y}"/>'
        f'<circle class="now" cx="{across(middle)}" cy="{y}" r="5"/></svg>'
    )


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis: a little more than from the smallest to the largest value, at least 1 dB."""
    low, high = min(values), max(values)
    margin = max(0.12 * (high - low), 0.5)
    return low - margin, high + margin
