"""Average precision of boxes as COCO defines it. pycocotools matches boxes and gives the value.

Mean average precision is a number of all pictures at once. What a picture contributes is its pseudo-value of the
jackknife (Efron & Tibshirani 1993, chapter 11): with n pictures, the value v, and v_i without picture i,

    v + (u_i - mean of u),  u_i = n v - (n - 1) v_i

Their mean is v, and their variance over n is the jackknife's, also for the paired differences of two detectors.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.support.loading import require
from pocketfit.tasks.common import boxes

EXTRA = "detection"
ALL_OVERLAPS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())  # IoU from which a box counts as found, COCO's ten
RECALLS = np.linspace(0, 1, 101)  # at which the precision is read
ANY_AREA = 1e10


@dataclass(frozen=True)
class Found:
    """Average precision over the overlaps.

    value     the mean over the classes that occur
    by_class  [classes], NaN where a class has no box in the targets
    of_each   pseudo-values [n]
    """

    value: float
    by_class: NDArray[np.float64]
    of_each: NDArray[np.float64]


@dataclass(frozen=True)
class _Class:
    """What is found of one class: boxes by falling score, over all pictures.

    picture  int [D];  right, wrong  bool [T, D] at each overlap;  wanted  int [n], boxes to be found in each picture
    """

    picture: NDArray[np.int64]
    right: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    wanted: NDArray[np.int64]

    def precision(self, but: int = -1) -> float:
        """The mean of the interpolated precision, without one picture; NaN where nothing is to be found."""
        wanted = int(self.wanted.sum()) - (int(self.wanted[but]) if but >= 0 else 0)
        if wanted == 0:
            return float("nan")
        rows = self.picture != but
        right, wrong = self.right[:, rows].cumsum(axis=1), self.wrong[:, rows].cumsum(axis=1)
        if not right.shape[1]:
            return 0.0
        share = np.maximum.accumulate((right / np.maximum(right + wrong, 1))[:, ::-1], axis=1)[:, ::-1]
        total = 0.0
        for each, found in zip(share, right / wanted, strict=True):
            place = np.searchsorted(found, RECALLS, side="left")
            total += float(np.append(each, 0.0)[place].mean())
        return total / len(right)


def average_precision(kept: NDArray[Any], targets: NDArray[Any], overlaps: tuple[float, ...]) -> Found:
    """kept: float32 [n, m, 6], as boxes.picked gives it; targets: [n, k, 6], x1, y1, x2, y2, class (-1: no box), and 1
    where it stands for a crowd, in which any number of boxes may lie."""
    n = len(kept)
    count = 1 + int(max(kept[..., 5].max(initial=-1), targets[..., 4].max(initial=-1), 0))
    if not (targets[..., 4] >= 0).any():
        empty = 1.0 - ((kept[..., 5] >= 0) & (kept[..., 4] >= boxes.SHOWN_SCORE)).any(axis=1)
        return Found(float(empty.mean()), np.full(count, np.nan), np.asarray(empty, np.float64))
    evaluation = _evaluated(kept, targets, overlaps)
    precision = evaluation.eval["precision"][..., 0, 0]  # [T, R, classes]
    ids = np.asarray(evaluation.params.catIds)
    by_class = np.full(count, np.nan)
    known = (precision > -1).all(axis=(0, 1))
    by_class[ids[known]] = np.asarray(precision[..., known].mean(axis=(0, 1)))
    value = float(np.nanmean(by_class)) if known.any() else 0.0
    return Found(value, by_class, _pseudo_values(_classes(evaluation, n), n, value))


def _pseudo_values(classes: list[_Class], n: int, value: float) -> NDArray[np.float64]:
    whole = np.array([one.precision() for one in classes])
    without = np.repeat(whole[:, None], n, axis=1)
    for row, one in enumerate(classes):
        for picture in np.union1d(one.picture, np.flatnonzero(one.wanted)).tolist():
            without[row, picture] = one.precision(picture)
    known = ~np.isnan(without)
    left = np.where(known, without, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    each = -(n - 1) * left
    return np.asarray(value + each - each.mean())


def _classes(evaluation: Any, n: int) -> list[_Class]:
    """The matches of pycocotools, class by class."""
    found, pictures = [], len(evaluation.params.imgIds)
    for place in range(len(evaluation.params.catIds)):
        parts = [
            (picture, part)
            for picture, part in enumerate(evaluation.evalImgs[place * pictures : (place + 1) * pictures])
            if part is not None
        ]
        wanted = np.zeros(n, np.int64)
        for picture, part in parts:
            wanted[picture] = int((~np.asarray(part["gtIgnore"], bool)).sum())
        if not wanted.any():
            continue
        scores = np.concatenate([part["dtScores"] for _, part in parts])
        order = np.argsort(-scores, kind="mergesort")
        matched = np.concatenate([part["dtMatches"] for _, part in parts], axis=1)[:, order] > 0
        ignored = np.concatenate([part["dtIgnore"] for _, part in parts], axis=1)[:, order].astype(bool)
        whose = np.concatenate([np.full(len(part["dtScores"]), picture) for picture, part in parts])[order]
        found.append(_Class(whose.astype(np.int64), matched & ~ignored, ~matched & ~ignored, wanted))
    return found


def _evaluated(kept: NDArray[Any], targets: NDArray[Any], overlaps: tuple[float, ...]) -> Any:
    """pycocotools' COCOeval after its accumulation. Boxes count from 1, as 0 stands for "no match" there."""
    library = require("pycocotools.cocoeval", EXTRA)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports each step
        wanted: list[dict[str, Any]] = []
        given: list[dict[str, Any]] = []
        for row, (ours, theirs) in enumerate(zip(kept, targets, strict=True)):
            for box in theirs[theirs[:, 4] >= 0].astype(float).tolist():
                wanted.append(_annotation(len(wanted) + 1, row, box, int(box[4])) | {"iscrowd": int(box[5])})
            for box in ours[ours[:, 5] >= 0].astype(float).tolist():
                given.append(_annotation(len(given) + 1, row, box, int(box[5])) | {"iscrowd": 0, "score": box[4]})
        categories = sorted({one["category_id"] for one in (*wanted, *given)})
        evaluation = library.COCOeval(
            _indexed(wanted, len(kept), categories), _indexed(given, len(kept), categories), "bbox"
        )
        settings = evaluation.params
        settings.iouThrs, settings.recThrs = np.asarray(overlaps), RECALLS
        settings.maxDets, settings.areaRng, settings.areaRngLbl = [boxes.MOST], [[0, ANY_AREA]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _annotation(number: int, row: int, box: list[float], label: int) -> dict[str, Any]:
    x1, y1, x2, y2 = box[:4]
    sides = (x2 - x1, y2 - y1)
    return {
        "id": number,
        "image_id": row,
        "category_id": label,
        "bbox": [x1, y1, *sides],
        "area": max(sides[0], 0.0) * max(sides[1], 0.0),
    }


def _indexed(annotations: list[dict[str, Any]], n: int, categories: list[int]) -> Any:
    coco = require("pycocotools.coco", EXTRA).COCO()
    coco.dataset = {
        "images": [{"id": row} for row in range(n)],
        "annotations": annotations,
        "categories": [{"id": label} for label in categories],
    }
    coco.createIndex()
    return coco
