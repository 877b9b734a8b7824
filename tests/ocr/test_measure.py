"""What benchmarks/ocr/measure.py says of two files."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.ocr import fonts, lines, measure, pages, recogniser, scores


@pytest.fixture(autouse=True)
def results_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)


def labelled(texts: tuple[str, ...]) -> recogniser.LabelledLines:
    kinds = ("name", "date") * (len(texts) // 2)
    return recogniser.LabelledLines(np.zeros((len(texts), 3, 48, 320), np.float32), texts, kinds, ("f",) * len(texts))


def test_scores_of_texts_are_paired_and_by_kind():
    found = scores.compared_texts(labelled(("ab", "cd", "ef", "gh")), ["ab", "cd", "ef", "g"], ["ab", "cx", "", "g"])
    whole, dates = found["all"], found["date"]
    assert whole["exact"]["original"]["value"] == 0.75 and whole["exact"]["candidate"]["value"] == 0.25
    assert whole["exact"]["drop"]["points"] == 50 and whole["exact"]["drop"]["differing"] == 2
    assert whole["cer"]["original"] == 1 / 8 and whole["cer"]["rise"] == pytest.approx(37.5)
    assert whole["cer"]["low"] <= 37.5 <= whole["cer"]["high"]
    assert whole["same_text"]["value"] == 0.5
    assert dates["n"] == 2 and dates["exact"]["candidate"]["value"] == 0


def test_a_file_with_dynamic_axes_is_timed_as_a_copy_with_fixed_sizes(rapidocr: Path):
    original = rapidocr / fonts.RECOGNISER.relative_to(fonts.RECOGNISER.parents[2])
    copy = measure.fixed(original, measure.LINE)
    shape = onnx.load(str(copy)).graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_value for size in shape] == [1, 3, 48, 320]
    assert measure.fixed(copy, measure.LINE) == copy


def test_the_original_against_itself(tmp_path: Path, rapidocr: Path, ocr_fonts: Path):
    original = rapidocr / fonts.RECOGNISER.relative_to(fonts.RECOGNISER.parents[2])
    lines.write(tmp_path / "lines", {"test": 12}, 0, ocr_fonts)
    given = Namespace(what="lines", lines=tmp_path / "lines", split="test", limit=None, threads=1, untimed=True)
    found = measure.measured(given, original, original)
    whole = found["texts"]["all"]
    assert whole["exact"]["original"]["value"] > 0.7 and whole["exact"]["drop"]["points"] == 0
    assert whole["same_text"]["value"] == 1
    assert any("| all | 12 |" in row for row in measure.report(found))


def test_masks_of_the_detector_against_itself_and_no_others(tmp_path: Path, rapidocr: Path, ocr_fonts: Path):
    detector = rapidocr / measure.DETECTOR.relative_to(fonts.RECOGNISER.parents[2])
    pages.write(tmp_path / "pages", 1, "test", 0, ocr_fonts)
    found = scores.compared_masks((detector, detector), scores.pages_in(tmp_path / "pages", None), threads=1)
    assert found["iou_pixels"] == 1 and 0.005 < found["text"] < 0.5
