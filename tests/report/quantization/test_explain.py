from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pocketfit.core.errors import UserError
from pocketfit.report.quantization import explain_svg
from pocketfit.report.quantization.explain import explain_data, render, write_explanation
from tests.report.page_checks import whole
from tests.report.quantization.sample_explain import explanation


def test_the_page_is_whole_and_loads_nothing() -> None:
    page = whole(render(explanation()))
    assert all(svg.get("aria-label") for svg in page.all("svg"))
    assert len(page.all("caption")) == len(page.all("table")) == 5


def test_what_a_person_looks_for_stands_there() -> None:
    text = render(explanation())
    assert "features.1.conv.1 costs 2.1 of the 2.9 points" in text.replace("\xa0", " ")
    assert "--keep-float features.1.conv.1,features.2.conv.0.0" in text
    assert "channel 5" in text and "97.3x" in text and "12 of 200 calibration samples" in text
    assert text.index("What each rung bought") < text.index("What to leave in float") < text.index("Layer by layer")


def test_layers_come_by_their_share_with_bars_beside_the_largest() -> None:
    data = explain_data(explanation())
    shares = [row["share_sort"] for row in data["layers"]]
    assert shares == sorted(shares, reverse=True)
    assert data["layers"][0]["bar"] == 100 and data["layers"][1]["bar"] == pytest.approx(100 * 0.12 / 0.71, abs=0.01)


def test_nothing_known_is_a_dash_and_no_noise_is_exact() -> None:
    rows = {row["name"]: row for row in explain_data(explanation())["layers"]}
    assert rows["features.3.add"]["weights"]["text"] == "–" and rows["features.3.add"]["drift"]["text"] == "–"
    assert rows["features.2.conv.0.0"]["drift"]["text"] == "exact"
    files = explain_data(explanation())["files"]
    assert files[0]["sqnr"] == "–" and files[0]["drop"] == "–"


def test_without_labels_there_are_no_points() -> None:
    found = explanation(labelled=False)
    for one in found["files"]:
        one["accuracy"] = one["drop"] = one["cost"] = None
    text = render(found)
    assert "They cost" not in text and "Accuracy</th>" not in text and "pt</td>" not in text


def test_an_empty_exclude_list_is_said() -> None:
    text = render(explanation(exclude=[], histograms=[]))
    assert "No layer is worth leaving in float." in text and "--keep-float" not in text
    assert 'class="histogram"' not in text


def test_every_text_is_escaped() -> None:
    bad = "<script>alert(1)</script>\"'"
    found = explanation(headline=bad, model=bad, data=bad, findings=[bad], exclude=[bad])
    found["table"]["layers"][1]["layer"] = found["culprits"][0]["cause"] = found["files"][1]["name"] = bad
    assert "<script>alert" not in render(found)


def test_both_files_are_written_and_the_json_is_strict(tmp_path: Path) -> None:
    page = write_explanation(tmp_path / "new", explanation())
    assert page.name == "explain.html" and page.read_text() == render(explanation())
    assert json.loads((tmp_path / "new" / "explain.json").read_text()) == json.loads(json.dumps(explanation()))


def test_another_version_is_refused() -> None:
    with pytest.raises(UserError, match="schema_version 1"):
        render(explanation(schema_version=2))


def test_clips_lie_where_they_are_in_the_histogram() -> None:
    data = {"low": -1.0, "high": 3.0, "counts": [1, 0, 5, 2], "clips": [{"label": "a", "low": -1.0, "high": 1.0}]}
    drawn = explain_svg.histogram(data, "told")
    lines = re.findall(r'class="clip clip-0" x1="([\d.]+)%"', drawn)
    assert [float(x) for x in lines] == [0.0, 50.0]
    assert drawn.count("<rect") == 3, "an empty bin has no bar"


def test_a_climb_has_a_point_a_rung_and_survives_equal_values() -> None:
    steps = [{"name": name, "value": 12.0, "text": "12.0 dB"} for name in ("a", "b", "c")]
    drawn = explain_svg.rungs(steps, "told")
    assert drawn.count("<circle") == 3 and drawn.count('class="climb"') == 2 and "nan" not in drawn
