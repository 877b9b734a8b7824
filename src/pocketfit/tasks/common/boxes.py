"""Raw outputs of a detector -> boxes: the forms of outputs, decoding and non-maximum suppression.

    outputs [n, ..., ...] ──decoded──▶ corners [n, A, 4], scores [n, A, C] ──picked──▶ boxes [n, MOST, 6]

A box is x1, y1, x2, y2 in pixels of the network's input, score, class; rows that are not used hold -1. numpy alone: a
copy of this very file stands in the bundles of detectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MOST = 100  # boxes a picture, as in COCO's evaluation
LEAST_SCORE = 0.001  # of boxes that average precision sees
SHOWN_SCORE = 0.25  # of boxes that are an answer
OVERLAP = 0.7  # IoU above which non-maximum suppression drops the box with the lower score of the same class
CANDIDATES = 1000  # pairs of box and class that non-maximum suppression looks at
MATCHED = 0.5  # IoU from which two boxes are the same
STRIDES = (8, 16, 32)  # of the maps whose cells "yolox" counts through
FAR = 1e5  # pixels between the boxes of two classes, so that they never overlap


@dataclass(frozen=True)
class Form:
    """How the numbers of a detector's output [n, a, b] are laid out.

    anchors_last  [n, numbers of a box, boxes] instead of [n, boxes, numbers of a box]
    corners       a box is x1, y1, x2, y2 instead of centre x, centre y, width, height
    objectness    whether a probability that there is anything stands between the box and its classes
    cells         centres count in cells of maps with STRIDES, sizes are logarithms of cells
    selected      few boxes that are chosen already (NMS, top-k): x1, y1, x2, y2, score, class
    shape         the shape in words, for sentences
    """

    shape: str
    anchors_last: bool = False
    corners: bool = False
    objectness: bool = False
    cells: bool = False
    selected: bool = False

    def classes(self, shape: Any) -> int:
        """How many classes an output of this shape [n, a, b] has; 0: the shape does not say."""
        if self.selected:
            return 0
        return int(shape[1 if self.anchors_last else 2] or 0) - 4 - self.objectness


FORMS = {
    "yolov8": Form("[batch, 4 + classes, boxes]", anchors_last=True),
    "yolov8-rows": Form("[batch, boxes, 4 + classes]"),
    "yolov5": Form("[batch, boxes, 5 + classes]", objectness=True),
    "yolox": Form("[batch, boxes, 5 + classes]", objectness=True, cells=True),
    "corners": Form("[batch, boxes, 4 + classes]", corners=True),
    "nms": Form("[batch, boxes, 6]", corners=True, selected=True),
}
MOST_SELECTED = 1000  # boxes of an output that is taken for "nms"


def recognised(shape: Any) -> str:
    """The form that an output of this shape [n, a, b] has beyond doubt; "": it might have several.

    >>> recognised((None, 84, 8400)), recognised((None, 300, 6)), recognised((None, 25200, 85))
    ('yolov8', 'nms', '')
    """
    _, a, b = shape
    if a is None or b is None:
        return ""
    if 4 < a < b:
        return "yolov8"
    return "nms" if b == 6 and a <= MOST_SELECTED else ""


def decoded(outputs: Any, form: Form, xp: Any = np) -> tuple[Any, Any]:
    """(x1, y1, x2, y2 [n, A, 4], scores [n, A, C]) of outputs that are not `selected`; xp: numpy or torch."""
    rows = outputs.swapaxes(1, 2) if form.anchors_last else outputs
    first, second, third, fourth = (rows[..., i] for i in range(4))
    if form.cells:
        places = cells(rows.shape[1])
        x, y, stride = (xp.asarray(places[:, i], dtype=rows.dtype) for i in range(3))
        first, second = (first + x) * stride, (second + y) * stride
        third, fourth = xp.exp(third) * stride, xp.exp(fourth) * stride
    if not form.corners:
        left, top = first - third / 2, second - fourth / 2
        first, second, third, fourth = left, top, left + third, top + fourth
    scores = rows[..., 5:] * rows[..., 4:5] if form.objectness else rows[..., 4:]
    return xp.stack((first, second, third, fourth), -1), scores


def cells(boxes: int) -> Any:
    """float64 [boxes, 3]: column, row and stride of each cell of the maps of a square input. ValueError where no
    square has so many."""
    side = round((boxes / sum(1 / stride**2 for stride in STRIDES)) ** 0.5)
    if side % STRIDES[-1] or sum((side // stride) ** 2 for stride in STRIDES) != boxes:
        raise ValueError(f"no square input has maps with {boxes} cells at strides of {STRIDES}")
    found = []
    for stride in STRIDES:
        row, column = np.mgrid[0 : side // stride, 0 : side // stride].reshape(2, -1)
        found.append(np.stack((column, row, np.full(len(row), stride)), -1))
    return np.concatenate(found).astype(np.float64)


def picked(outputs: Any, form: Form) -> Any:
    """The best boxes of each sample, float32 [n, MOST, 6], by falling score: x1, y1, x2, y2, score, class; -1 where
    there are no more."""
    found = np.full((len(outputs), MOST, 6), -1.0, np.float32)
    if form.selected:
        for row, boxes in enumerate(outputs):
            known = boxes[boxes[:, 4] >= LEAST_SCORE]
            kept = known[np.argsort(-known[:, 4], kind="stable")][:MOST]
            found[row, : len(kept)] = kept
            found[row, : len(kept), 5] = np.rint(kept[:, 5])
        return found
    corners, scores = decoded(outputs, form)
    for row in range(len(outputs)):
        kept = suppressed(corners[row], scores[row])
        found[row, : len(kept)] = kept
    return found


def shown(outputs: Any, form: str, size: Any, place: Any) -> Any:
    """The boxes of one sample that are an answer, [m, 6], with places in the picture of `size` (height, width).

    form   a key of FORMS
    place  (down, across, top, left), where the picture lies in the network's input; None: places are the input's
    """
    rows = picked(outputs, FORMS[form])[0].astype(np.float64)
    rows = rows[rows[:, 4] >= SHOWN_SCORE]
    if place is not None:
        down, across, top, left = place
        rows[:, 0:4:2] = ((rows[:, 0:4:2] - left) / across).clip(0, size[1])
        rows[:, 1:4:2] = ((rows[:, 1:4:2] - top) / down).clip(0, size[0])
    return rows


def suppressed(corners: Any, scores: Any) -> Any:
    """Non-maximum suppression class by class: corners [A, 4], scores [A, C] -> [m, 6] by falling score."""
    anchors, classes = np.nonzero(scores >= LEAST_SCORE)
    values = scores[anchors, classes]
    best = np.argsort(-values, kind="stable")[:CANDIDATES]
    boxes, values, classes = corners[anchors[best]].astype(np.float64), values[best], classes[best]
    overlap = iou(boxes + FAR * classes[:, None], boxes + FAR * classes[:, None])
    free, kept = np.ones(len(best), bool), []
    for place in range(len(best)):
        if free[place]:
            kept.append(place)
            if len(kept) == MOST:
                break
            free &= overlap[place] <= OVERLAP
    return np.concatenate((boxes[kept], values[kept, None], classes[kept, None]), axis=1)


def iou(one: Any, other: Any) -> Any:
    """Intersection over union of corners [n, 4] and [m, 4]: [n, m]; 0 where both are empty.

    >>> iou(np.array([[0, 0, 2, 2]]), np.array([[1, 0, 3, 2], [0, 0, 2, 2]])).round(3).tolist()
    [[0.333, 1.0]]
    """
    first, last = np.maximum(one[:, None, :2], other[None, :, :2]), np.minimum(one[:, None, 2:], other[None, :, 2:])
    both = np.clip(last - first, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (one, other)]
    return both / np.maximum(areas[0][:, None] + areas[1][None] - both, 1e-12)
