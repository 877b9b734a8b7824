"""Boxes from raw outputs, on boxes drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocketfit.tasks.common import boxes
from pocketfit.tasks.common.boxes import FORMS

# two objects at (8, 6)..(24, 18) and (40, 40)..(56, 44), classes 1 and 0 of 3
CORNERS = np.array([[8, 6, 24, 18], [40, 40, 56, 44]], np.float32)
SCORES = np.array([[0.0, 0.9, 0.1], [0.6, 0.0, 0.0]], np.float32)
CENTRES = np.array([[16, 12, 16, 12], [48, 42, 16, 4]], np.float32)
HIDDEN = np.full((10, 4), 5.0, np.float32)  # boxes with a probability of 0


def rows_of(name: str) -> np.ndarray:
    """[12, numbers], the two boxes first."""
    form = FORMS[name]
    if form.selected:
        return np.array([[8, 6, 24, 18, 0.9, 1], [40, 40, 56, 44, 0.6, 0], [0, 0, 0, 0, 0, 0]], np.float32)
    places = CORNERS if form.corners else CENTRES
    scores = [0.5 * np.ones((2, 1), np.float32), 2 * SCORES] if form.objectness else [SCORES]
    found = np.concatenate([places, *scores], 1)
    hidden = np.concatenate([HIDDEN, np.zeros((10, found.shape[1] - 4), np.float32)], 1)
    return np.concatenate([found, hidden])


def in_cells() -> np.ndarray:
    """The same boxes as YOLOX gives them for an input of 64 x 64, which has 64 + 16 + 4 cells."""
    found = np.zeros((84, 8), np.float32)
    for place, (box, scores) in zip((9, 71), zip(CENTRES, 2 * SCORES, strict=True), strict=True):
        column, row, stride = boxes.cells(84)[place]
        found[place, :2] = box[:2] / stride - (column, row)
        found[place, 2:4] = np.log(box[2:] / stride)
        found[place, 4], found[place, 5:] = 0.5, scores
    return found


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_boxes(name: str) -> None:
    rows = in_cells() if name == "yolox" else rows_of(name)
    outputs = rows.T[None] if FORMS[name].anchors_last else rows[None]
    found = boxes.picked(outputs, FORMS[name])
    assert found.shape == (1, boxes.MOST, 6) and (found[0, 3:] == -1).all()
    known = found[0, found[0, :, 4] >= boxes.SHOWN_SCORE]
    assert known == pytest.approx(np.array([[8, 6, 24, 18, 0.9, 1], [40, 40, 56, 44, 0.6, 0]]), abs=1e-3)
    if not FORMS[name].selected:
        corners, scores = boxes.decoded(torch.from_numpy(outputs.copy()), FORMS[name], torch)
        assert corners.shape == (1, rows.shape[0], 4) and scores.shape == (1, rows.shape[0], 3)


def test_of_two_boxes_of_a_class_that_overlap_the_better_one_stays() -> None:
    corners = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [0, 0, 10, 5]], np.float32)
    scores = np.array([[0.5, 0], [0.8, 0], [0, 0.4], [0.3, 0]], np.float32)
    found = boxes.suppressed(corners, scores)
    assert found[:, 4:].tolist() == pytest.approx(np.array([[0.8, 0], [0.4, 1], [0.3, 0]]))


def test_boxes_lie_in_the_picture_as_it_was_read() -> None:
    """A picture of 32 x 64 in an input of 64 x 64: half of the size is 16 pixels of grey above."""
    outputs = np.array([[[10, 20, 30, 40, 0.9, 2], [0, 0, 64, 64, 0.1, 0]]], np.float32)
    found = boxes.shown(outputs, "nms", (32, 64), (1.0, 1.0, 16, 0))
    assert found.tolist() == pytest.approx(np.array([[10, 4, 30, 24, 0.9, 2]]))


@pytest.mark.parametrize(
    ("shape", "name"),
    [((None, 7, 64), "yolov8"), ((1, 100, 6), "nms"), ((1, 8400, 85), ""), ((1, 5000, 6), ""), ((1, 4, 9), "")],
)
def test_a_shape_says_the_form_or_does_not(shape: tuple[int | None, ...], name: str) -> None:
    assert boxes.recognised(shape) == name


def test_cells_are_counted_for_squares_only() -> None:
    assert len(boxes.cells(3549)) == 3549  # 416 x 416
    with pytest.raises(ValueError, match="no square input has maps with 3550 cells"):
        boxes.cells(3550)
