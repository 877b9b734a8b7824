from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketfit.report.page import svg
from pocketfit.report.run.run_data import report_data
from tests.report.run import sample_run

NUMBERS = st.floats(1e-6, 1e9)


def share(element: ElementTree.Element, name: str) -> float:
    return float(element.attrib[name].removesuffix("%")) / 100


@given(NUMBERS, NUMBERS, NUMBERS)
def test_bars_are_as_long_as_their_values(before: float, after: float, limit: float) -> None:
    root = ElementTree.fromstring(svg.budget_bar(before, after, limit, aria="size", limit_label="limit"))
    was, now = (share(root.find(f"rect[@class='{css}']"), "width") for css in ("was", "now"))  # type: ignore[arg-type]
    line = share(root.find("line[@class='limit']"), "x1")  # type: ignore[arg-type]
    longest = max(before, after, limit) * 1.04
    assert (was, now, line) == pytest.approx((before / longest, after / longest, limit / longest), abs=1e-4)


def test_an_unknown_value_has_no_bar() -> None:
    root = ElementTree.fromstring(svg.budget_bar(2.0, None, None, aria="memory"))
    assert len(root.findall("rect")) == 1 and root.find("line[@class='limit']") is None


@given(st.floats(-50, 50), st.floats(0, 5), st.floats(0.1, 20))
def test_an_interval_stays_inside_and_in_order(value: float, half: float, limit: float) -> None:
    low, high = value - half, value + half
    root = ElementTree.fromstring(svg.interval_bar(value, limit, aria="drop", limit_label="l", low=low, high=high))
    whisker = root.find("g[@class='whisker']/line")
    dot = root.find("circle")
    assert whisker is not None and dot is not None
    places = [share(whisker, "x1"), share(dot, "cx"), share(whisker, "x2")]
    assert places == sorted(places) and places[0] >= 0 and places[-1] <= 1


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_inside_and_few(low: float, width: float) -> None:
    ticks = svg.nice_ticks(low, low + width)
    slack = 1e-6 * (abs(low) + width)
    assert 1 <= len(ticks) <= 6 and low - slack <= ticks[0] and ticks[-1] <= low + width + slack


def test_text_is_escaped() -> None:
    bar = svg.budget_bar(1, 1, 1, aria='"><script>', limit_label="<b>&")
    assert "<script>" not in bar and "<b>" not in bar
    ElementTree.fromstring(bar)


def test_the_plot_draws_each_point_and_both_limits() -> None:
    plot = report_data(sample_run.lines(), sample_run.result())["plots"][0]
    plot["points"][0]["title"] = "<script>"
    text = svg.pareto_plot(plot, "p-")
    root = ElementTree.fromstring(text)
    points = [g for g in root.iter("g") if g.attrib.get("class", "").startswith("point ")]
    assert len(points) == 12 and all(g.find("title") is not None for g in points)
    assert len(root.findall("line[@class='limit']")) == 2
    assert root.find("rect[@class='inside']") is not None
    ids = set(re.findall(r'id="(p-\d)"', text))
    assert {use.attrib["href"].removeprefix("#") for use in root.iter("use")} <= ids
    chosen = next(g for g in points if "chosen" in g.attrib["class"]).find("use")
    assert chosen is not None
    x = plot["x"]
    value = next(p["x"] for p in plot["points"] if "chosen" in p["css"])
    assert share(chosen, "x") == pytest.approx((value - x["low"]) / (x["high"] - x["low"]), abs=1e-4)
