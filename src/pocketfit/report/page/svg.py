"""Small pure functions that draw SVG strings.

Nothing here is scaled: widths are percentages and heights pixels, so text keeps its size on a phone and on a desk.
Colours come from CSS classes, so one drawing serves light and dark. All text is escaped here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

SHAPES = (
    '<circle r="4.6"/>',
    '<rect x="-4.3" y="-4.3" width="8.6" height="8.6"/>',
    '<path d="M0 -5.4 L5.2 4 L-5.2 4 Z"/>',
    '<path d="M0 -5.8 L5.8 0 L0 5.8 L-5.8 0 Z"/>',
)
PLOT_HEIGHT = 340
Place = Callable[[float], float]


def percent(share: float) -> str:
    """
    >>> percent(1 / 3)
    '33.33%'
    """
    return f"{100 * share:.2f}%"


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about `count` of them.

    >>> nice_ticks(0, 9.7)
    [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    if high <= low:
        return [low]
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(f * magnitude for f in (1, 2, 5, 10) if f * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def budget_bar(
    before: float | None,
    after: float | None,
    limit: float | None,
    *,
    aria: str,
    limit_label: str = "",
    low: float | None = None,
    high: float | None = None,
    floor: bool = False,
) -> str:
    """Two bars from zero, before above after, with the limit as a line; `floor`: the limit is a lower bound.

    A value that is None has no bar. [low, high] is the 95 % interval of `after`.
    """
    known = [v for v in (before, after, limit, high) if v is not None]
    top = max([v for v in known if v > 0], default=1.0) * (1.0 if floor else 1.04)
    parts = [f'<svg class="bar" role="img" aria-label="{escape(aria)}" width="100%" height="56">']
    parts.append('<line class="axis" x1="0" x2="0" y1="18" y2="54"/>')
    for value, y, css in ((before, 22, "was"), (after, 38, "now")):
        if value is not None:
            parts.append(
                f'<rect class="{css}" x="0" y="{y}" width="{percent(max(value, 0) / top)}" height="12" rx="1"/>'
            )
    parts.append(_whisker(low, high, 44, lambda v: v / top))
    parts.append(_limit_line(limit, limit_label, lambda v: v / top))
    return "".join([*parts, "</svg>"])


def interval_bar(
    value: float,
    limit: float | None,
    *,
    aria: str,
    limit_label: str = "",
    low: float | None = None,
    high: float | None = None,
) -> str:
    """A value with its interval on an axis that shows zero, with the limit as a line."""
    known = [0.0, *(v for v in (value, limit, low, high) if v is not None)]
    first, last = min(known), max(known)
    margin = 0.06 * ((last - first) or 1.0)
    first, last = first - margin, last + margin

    def place(v: float) -> float:
        return (v - first) / (last - first)

    zero = percent(place(0))
    parts = [
        f'<svg class="bar" role="img" aria-label="{escape(aria)}" width="100%" height="56">',
        '<line class="axis" x1="0" x2="100%" y1="38" y2="38"/>',
        f'<line class="axis" x1="{zero}" x2="{zero}" y1="30" y2="46"/>',
        f'<text class="tick" x="{zero}" y="55" text-anchor="{_anchor(place(0))}">0</text>',
        _whisker(low, high, 38, place),
        f'<circle class="now" cx="{percent(place(value))}" cy="38" r="5.5"/>',
        _limit_line(limit, limit_label, place, bottom=46),
    ]
    return "".join([*parts, "</svg>"])


def _whisker(low: float | None, high: float | None, y: int, place: Place) -> str:
    if low is None or high is None:
        return ""
    a, b = percent(place(low)), percent(place(high))
    return (
        f'<g class="whisker"><line x1="{a}" x2="{b}" y1="{y}" y2="{y}"/>'
        f'<line x1="{a}" x2="{a}" y1="{y - 4}" y2="{y + 4}"/>'
        f'<line x1="{b}" x2="{b}" y1="{y - 4}" y2="{y + 4}"/></g>'
    )


def _limit_line(limit: float | None, label: str, place: Place, bottom: int = 54) -> str:
    if limit is None:
        return ""
    x = percent(place(limit))
    return (
        f'<line class="limit" x1="{x}" x2="{x}" y1="15" y2="{bottom}"/>'
        f'<text class="limit-label" x="{x}" y="11" text-anchor="{_anchor(place(limit))}">{escape(label)}</text>'
    )


def _anchor(share: float) -> str:
    return "start" if share < 0.3 else "end" if share > 0.7 else "middle"


def pareto_plot(plot: Mapping[str, Any], prefix: str) -> str:
    """The trials of one plot of `report_data`: x rightwards, drop upwards; the lower left corner is best.

    plot    x and y: {"low", "high", "ticks": [(value, text)], "limit": value or None, "limit_label", "title"};
            points: [{"x", "y", "shape", "css", "title", "label", "low", "high"}]; front: [(x, y), …]; aria: text
    prefix  of the ids of the marker shapes, so that two plots can stand in one page
    """
    x, y = plot["x"], plot["y"]

    def across(v: float) -> float:
        return min(max((v - float(x["low"])) / float(x["high"] - x["low"]), 0.0), 1.0)

    def down(v: float) -> float:
        return PLOT_HEIGHT * (1 - min(max((v - float(y["low"])) / float(y["high"] - y["low"]), 0.0), 1.0))

    symbols = "".join(f'<g id="{prefix}{i}">{shape}</g>' for i, shape in enumerate(SHAPES))
    parts = [
        f'<svg class="plot" role="img" aria-label="{escape(plot["aria"])}" width="100%" height="{PLOT_HEIGHT}">',
        f"<defs>{symbols}</defs>",
        _inside(x, y, across, down),
        _axes(x, y, across, down),
        _limits(x, y, across, down),
        _front(plot["front"], across, down),
    ]
    for point in plot["points"]:
        parts.append(_point(point, prefix, across, down))
    return "".join([*parts, "</svg>"])


def _inside(x: Any, y: Any, across: Place, down: Place) -> str:
    """The region inside the limits, shaded."""
    if x["limit"] is None and y["limit"] is None:
        return ""
    right = 1.0 if x["limit"] is None else across(x["limit"])
    top = 0.0 if y["limit"] is None else down(y["limit"])
    return f'<rect class="inside" x="0" y="{top:.1f}" width="{percent(right)}" height="{PLOT_HEIGHT - top:.1f}"/>'


def _axes(x: Any, y: Any, across: Place, down: Place) -> str:
    parts = []
    for value, text in y["ticks"]:
        at = f"{down(value):.1f}"
        css = "zero" if value == 0 else "grid"
        parts.append(f'<line class="{css}" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="tick" x="-8" y="{at}" dy="4" text-anchor="end">{escape(text)}</text>')
    for value, text in x["ticks"]:
        at = percent(across(value))
        parts.append(f'<line class="axis" x1="{at}" x2="{at}" y1="{PLOT_HEIGHT}" y2="{PLOT_HEIGHT + 5}"/>')
        parts.append(f'<text class="tick" x="{at}" y="{PLOT_HEIGHT + 19}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<line class="axis" x1="0" x2="100%" y1="{PLOT_HEIGHT}" y2="{PLOT_HEIGHT}"/>')
    return "".join(parts)


def _limits(x: Any, y: Any, across: Place, down: Place) -> str:
    parts = []
    if x["limit"] is not None:
        share = across(x["limit"])
        at, anchor, shift = percent(share), *(("end", -5) if share > 0.6 else ("start", 5))
        parts.append(f'<line class="limit" x1="{at}" x2="{at}" y1="0" y2="{PLOT_HEIGHT}"/>')
        parts.append(f'<text class="limit-label" x="{at}" y="12" dx="{shift}" text-anchor="{anchor}">')
        parts.append(f"{escape(x['limit_label'])}</text>")
    if y["limit"] is not None:
        at = f"{down(y['limit']):.1f}"
        parts.append(f'<line class="limit" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="limit-label" x="100%" y="{at}" dy="-5" text-anchor="end">')
        parts.append(f"{escape(y['limit_label'])}</text>")
    return "".join(parts)


def _front(front: Sequence[Sequence[float]], across: Place, down: Place) -> str:
    """The Pareto front as a staircase: nothing measured lies below and to the left of it."""
    parts = []
    for (x0, y0), (x1, y1) in itertools.pairwise(front):
        a, b = percent(across(x0)), percent(across(x1))
        parts.append(f'<line class="front" x1="{a}" x2="{b}" y1="{down(y0):.1f}" y2="{down(y0):.1f}"/>')
        parts.append(f'<line class="front" x1="{b}" x2="{b}" y1="{down(y0):.1f}" y2="{down(y1):.1f}"/>')
    return "".join(parts)


def _point(point: Mapping[str, Any], prefix: str, across: Place, down: Place) -> str:
    share, y = across(point["x"]), down(point["y"])
    x = percent(share)
    parts = [f'<g class="point {escape(point["css"])}"><title>{escape(point["title"])}</title>']
    if point.get("low") is not None and point.get("high") is not None:
        parts.append(
            f'<line class="error" x1="{x}" x2="{x}" y1="{down(point["low"]):.1f}" y2="{down(point["high"]):.1f}"/>'
        )
    if "chosen" in point["css"]:
        parts.append(f'<circle class="ring" cx="{x}" cy="{y:.1f}" r="10"/>')
    parts.append(f'<use href="#{prefix}{point["shape"] % len(SHAPES)}" x="{x}" y="{y:.1f}"/>')
    if point.get("label"):
        anchor, shift = ("end", -14) if share > 0.6 else ("start", 14)
        place = f'x="{x}" y="{y:.1f}" dx="{shift}" dy="-7" text-anchor="{anchor}"'
        parts.append(f'<text class="point-label" {place}>{escape(point["label"])}</text>')
    return "".join([*parts, "</g>"])
