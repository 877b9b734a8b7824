"""Mean average precision: pycocotools gives it, and the jackknife says what a picture contributes."""

from __future__ import annotations

import numpy as np
import pytest

from pocketfit.tasks.common import average_precision, boxes
from pocketfit.tasks.common.average_precision import ALL_OVERLAPS


def detected(n: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that are about right, with false ones among them, and targets of three classes."""
    rng = np.random.default_rng(0)
    kept, targets = np.full((n, boxes.MOST, 6), -1.0, np.float32), np.full((n, 4, 6), -1.0)
    for row in range(n):
        count = int(rng.integers(0, 4))
        corner, size = rng.uniform(0, 50, (count, 2)), rng.uniform(8, 20, (count, 2))
        targets[row, :count] = np.c_[corner, corner + size, rng.integers(0, 3, count), np.zeros(count)]
        false = np.c_[np.full((3, 2), 5.0), np.full((3, 2), 15.0), rng.uniform(0.01, 0.6, 3), rng.integers(0, 4, 3)]
        near = np.c_[targets[row, :count, :4] + rng.normal(0, 1, (count, 4)), rng.uniform(0.2, 1, count)]
        found = np.r_[np.c_[near, targets[row, :count, 4]], false]
        kept[row, : len(found)] = found[np.argsort(-found[:, 4])]
    return kept, targets


def test_the_pseudo_values_are_those_of_leaving_pictures_out() -> None:
    kept, targets = detected()
    whole = average_precision.average_precision(kept, targets, ALL_OVERLAPS)
    n = len(kept)
    left = []
    for row in range(n):
        rest = np.delete(np.arange(n), row)
        left.append(average_precision.average_precision(kept[rest], targets[rest], ALL_OVERLAPS).value)
    each = n * whole.value - (n - 1) * np.array(left)
    assert 0.05 < whole.value < 0.95
    assert whole.of_each.mean() == pytest.approx(whole.value)
    assert whole.of_each - whole.of_each.mean() == pytest.approx(each - each.mean(), abs=1e-9)
    assert np.nanmean(whole.by_class) == pytest.approx(whole.value) and np.isnan(whole.by_class[3:]).all()


def test_a_crowd_takes_any_number_of_boxes() -> None:
    """Of 3 boxes in a crowd none is wrong; without the crowd, two precede the right one."""
    targets = np.full((1, 2, 6), -1.0)
    targets[0, 0], targets[0, 1] = (0, 0, 60, 60, 0, 1), (70, 70, 80, 80, 0, 0)
    kept = np.full((1, boxes.MOST, 6), -1.0, np.float32)
    for place in range(3):
        kept[0, place] = (5 + 10 * place, 5, 15 + 10 * place, 15, 0.9 - 0.1 * place, 0)
    kept[0, 3] = (70, 70, 80, 80, 0.5, 0)
    assert average_precision.average_precision(kept, targets, (0.5,)).value == pytest.approx(1)
    targets[0, 0] = -1
    assert average_precision.average_precision(kept, targets, (0.5,)).value == pytest.approx(0.25)


def test_pictures_without_objects_are_right_where_nothing_is_shown() -> None:
    kept, targets = np.full((2, boxes.MOST, 6), -1.0, np.float32), np.full((2, 1, 6), -1.0)
    kept[1, 0] = (0, 0, 9, 9, 0.9, 0)
    found = average_precision.average_precision(kept, targets, (0.5,))
    assert found.value == 0.5 and found.of_each.tolist() == [1, 0]
