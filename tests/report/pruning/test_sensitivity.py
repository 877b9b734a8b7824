from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pocketfit.core.errors import UserError
from pocketfit.report.pruning.sensitivity import drawing, page_data, render, sentences, write_sensitivity
from tests.report.page_checks import Page, whole
from tests.report.pruning.sample_sensitivity import GROUPS, sensitivity, timed


def test_the_page_is_whole_and_loads_nothing() -> None:
    page = whole(render(sensitivity()))
    assert all(svg.get("aria-label") for svg in page.all("svg")) and len(page.all("svg")) == len(GROUPS) - 1


def test_the_delicate_ones_are_said_and_so_is_how_the_first_and_the_last_do() -> None:
    headline, beside, first, last = sentences(sensitivity())
    assert headline == (
        "features.3.conv.0 is the most delicate: without 50 % of its channels, 41.0 ± 1.0 pt of accuracy are lost"
    )
    assert (
        beside.startswith("Next by the rise of the loss are features.0.0 (22.5 ± 1.0 pt), features.1.conv.0")
        and "of 5 groups is 2.1" in beside
    )
    assert "features.0.0) are among the delicate quarter: place 2 of 5" in first and "leaves them whole" in first
    assert "features.18.0) are not among the delicate quarter: place 4 of 5" in last


def test_edges_that_are_not_known_are_not_made_up() -> None:
    result = sensitivity()
    result["curves"] = result["curves"][1:]
    result["curves"][-1]["why_not"] = "shape '[2, 1280]' is invalid"
    *_, first, last = sentences(result)
    assert first == "The first layer's channels can't be pruned, so nothing is known of them."
    assert "could not be judged: the network says 'shape" in last


def test_nothing_that_loses_channels_is_said() -> None:
    result = sensitivity()
    result["curves"] = result["curves"][4:5]
    assert "no group loses a channel" in sentences(result)[0]
    assert "no group loses a channel" in render(result)


def test_without_labels_nobody_speaks_of_accuracy() -> None:
    text = render(sensitivity(labelled=False, loss=0.0, accuracy=1.0))
    assert "accuracy" not in text and "agreement" in text and "% right" not in text.replace("\xa0", " ")


def test_a_plan_is_there_to_be_copied_or_is_not_there() -> None:
    text = render(sensitivity())
    assert 'data-from="plan"' in text and "0.88x of the MACs" in text.replace("\xa0", " ") and "do not add up" in text
    assert "A plan" not in render(sensitivity(plan=None))


def test_latencies_are_said_to_be_estimated_with_their_error() -> None:
    text = render(timed()).replace("\xa0", " ").replace("\u2060", "")
    assert "In onnxruntime the whole network takes 4.1 ms, measured (float32, 1 thread, Example 9000)" in text
    assert text.count("2.1 % in the median and 8.3 % at worst") == 2 and "is 0.87x of the whole network" in text
    assert 'Latency<span class="sub">estimated' in text
    shown = [curve["time"] for curve in page_data(timed())["curves"]]
    assert shown[0] == "–" and shown[1] == "0.95x"
    assert "Latency" not in render(sensitivity()) and page_data(sensitivity())["latency"] == ""


def test_groups_that_do_not_run_have_no_curve_and_no_numbers() -> None:
    result = sensitivity()
    broken = result["curves"][1]
    broken["why_not"] = "<b>shape</b>"
    for point in broken["points"]:
        point.update(dict.fromkeys(("loss", "loss_rise", "loss_rise_se", "accuracy", "drop_points", "drop_points_se")))
        point["why_not"] = "<b>shape</b>"
    text = render(result)
    assert len(Page(text).all("svg")) == len(GROUPS) - 2 and "&lt;b&gt;shape" in text and "<b>shape" not in text


def test_whole_groups_are_dashes_and_small_ones_keep_their_order() -> None:
    data = page_data(sensitivity())
    assert [c["name"] for c in data["curves"]] == [name for name, *_ in GROUPS]
    assert {cell["text"] for cell in data["curves"][4]["costs"]} == {"–"} == {data["curves"][4]["rise"]}
    assert data["curves"][4]["drawn"] == [] and "leaves it whole" in data["curves"][4]["blank"]
    assert [c["name"] for c in data["curves"] if c["delicate"]] == [
        "features.0.0",
        "features.1.conv.0",
        "features.3.conv.0",
    ]
    assert data["curves"][1]["with"] == "features.1.conv.3"


def test_every_text_is_escaped() -> None:
    bad = "<script>alert(1)</script>\"'"
    result = sensitivity(model=bad, data=bad, findings=[bad], criterion=bad)
    result["curves"][3]["group"] = result["curves"][3]["layers"][0] = result["plan"]["line"] = bad
    assert "<script>alert" not in render(result)


def test_what_is_drawn_lies_where_it_should() -> None:
    points = [
        {"ratio": 0.5, "drop": 0.0, "low": -1.0, "high": 1.0},
        {"ratio": 1.0, "drop": 10.0, "low": 9.0, "high": 12.0},
    ]
    drawn = drawing(points, (0.0, 10.0), "told")
    circles = [(float(x), float(y)) for x, y in re.findall(r'<circle class="now" cx="([\d.]+)%" cy="([\d.]+)"', drawn)]
    assert circles[0][0] < circles[1][0] and circles[0][1] > circles[1][1]
    assert drawn.count('class="climb"') == 2 and "nan" not in drawn
    top = min(float(y) for y in re.findall(r'class="error"[^>]*y2="([\d.]+)"', drawn))
    assert top == circles[1][1], "an interval that reaches above the drawing ends at its edge"


def test_all_files_are_written_and_the_json_is_strict(tmp_path: Path) -> None:
    page = write_sensitivity(tmp_path / "new", sensitivity())
    assert page.read_text() == render(sensitivity())
    assert json.loads((page.parent / "sensitivity.json").read_text()) == json.loads(json.dumps(sensitivity()))
    assert json.loads((page.parent / "prune.json").read_text()) == sensitivity()["plan"]["pass"]
    write_sensitivity(tmp_path / "other", sensitivity(plan=None))
    assert not (tmp_path / "other" / "prune.json").exists()


def test_another_version_is_refused() -> None:
    for wrong in (sensitivity(schema_version=2), {"schema_version": 1}):
        with pytest.raises(UserError, match="schema_version 1"):
            render(wrong)
