"""Detection: boxes with classes, from the raw outputs of a YOLO-like network, or from outputs that are chosen already.

The task is named with the form of the outputs behind a colon, "detection:yolov5"; without one, the shape of the outputs
says it (common/boxes.py has the forms). Targets are float32 [n, k, 6]: x1, y1, x2, y2 in pixels of the network's input,
class, and 1 for a crowd, in which any number of boxes may lie; rows of -1 are none. A picture may have no box at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec
from pocketfit.core.task.task import Form, Group, Kept, Metric, Targets
from pocketfit.core.task.task_list import TaskName
from pocketfit.tasks.common import average_precision, boxes
from pocketfit.tasks.common.class_names import label_mapping

if TYPE_CHECKING:
    from torch import Tensor

FORMS = boxes.FORMS
PAD = -1.0


def _precision_of(overlaps: tuple[float, ...]) -> Metric:
    many = len(overlaps) > 1
    return Metric(
        "mAP 50-95" if many else "mAP 50",
        "COCO's mean average precision, "
        + ("the mean over IoU from 0.5 to 0.95" if many else "boxes are found from IoU 0.5")
        + "; intervals are those of the jackknife over pictures",
        whole=True,
        by_class=lambda kept, targets: average_precision.average_precision(kept, targets, overlaps).by_class,
    )


OVERLAPS = {"map": average_precision.ALL_OVERLAPS, "map50": average_precision.ALL_OVERLAPS[:1]}


@dataclass(frozen=True)
class Detection:
    """The task for outputs of one form, a key of boxes.FORMS; "": the shape says it."""

    form: str = ""

    NAME: ClassVar[TaskName] = "detection"
    TITLE: ClassVar[str] = "Detection"
    ANSWERS: ClassVar[str] = "boxes"
    FORM: ClassVar[Form] = "boxes"
    SOFTMAX: ClassVar[bool] = False
    METRICS: ClassVar[Mapping[str, Metric]] = {
        **{name: _precision_of(overlaps) for name, overlaps in OVERLAPS.items()},
        "f1": Metric(
            "F1",
            f"2 TP / (boxes found + boxes wanted) of a picture, with scores from {boxes.SHOWN_SCORE} and IoU from 0.5",
        ),
    }

    def why_not(self, outputs: Sequence[TensorSpec], labels: Sequence[str]) -> str:
        shape = outputs[0].shape
        said = f"The network gives the shape [batch, {', '.join(map(str, shape[1:]))}]"
        if len(shape) != 3:
            return f"{said}, and boxes are {_shapes()}: say with --task what its outputs mean"
        name = self.form or boxes.recognised(shape)
        if not name:
            return f"{said}, which may be boxes in several forms: give --task detection:FORM, one of {_shapes()}"
        why = _unread(name, FORMS[name], shape, labels)
        return f"{said}, {why}" if why else ""

    def classes(self, outputs: Sequence[TensorSpec]) -> int:
        """How many classes the outputs have; 0: they do not say."""
        return self._form(outputs[0].shape).classes(outputs[0].shape)

    def form_of(self, outputs: Sequence[TensorSpec]) -> str:
        """The name of the outputs' form."""
        return self.form or boxes.recognised(outputs[0].shape)

    def read_targets(self, samples: Samples, labels: Sequence[str]) -> Samples:
        """The samples with their classes numbered as the network's labels are."""
        if samples.labels.ndim != 3 or not labels:
            return samples
        index = np.asarray([*label_mapping(samples.class_names, labels), -1], np.float32)
        targets = np.array(samples.labels, np.float32)
        targets[..., 4] = index[targets[..., 4].astype(np.int64)]
        return replace(samples, labels=targets)

    def kept(self, outputs: NDArray[np.float32]) -> Kept:
        """The best boxes of each sample, float32 [n, 100, 6]: x1, y1, x2, y2, score, class."""
        if outputs.ndim != 3:
            raise UserError(f"Boxes need outputs {_shapes()}; this file gives {list(outputs.shape)}")
        found: Kept = boxes.picked(outputs, self._form(outputs.shape))
        return found

    def answers(self, kept: Kept) -> Targets:
        """Boxes with a score that is shown, in the form of targets."""
        found = np.zeros_like(kept)
        found[..., :4], found[..., 4] = kept[..., :4], kept[..., 5]
        found[kept[..., 4] < boxes.SHOWN_SCORE] = PAD
        return found

    def has_target(self, targets: Targets) -> NDArray[np.bool_]:
        """All or none: a picture without boxes is labelled, too."""
        return np.full(len(targets), targets.ndim == 3)

    def scores(self, metric: str, kept: Kept, targets: Targets) -> NDArray[np.float64]:
        if metric in OVERLAPS:
            return average_precision.average_precision(kept, targets, OVERLAPS[metric]).of_each
        found = self.answers(kept)
        pairs = zip(found, targets, strict=True)
        return np.array([_f1(ours, theirs) for ours, theirs in pairs])

    def same(self, one: Targets, other: Targets) -> NDArray[np.bool_]:
        """Where each box of either has one of the other's, of the same class and with IoU from 0.5."""
        return np.array([_f1(ours, theirs) == 1.0 for ours, theirs in zip(one, other, strict=True)], bool)

    def words(self, target: Targets, labels: Sequence[str]) -> str:
        """How many boxes of each class."""
        found, counts = np.unique(target[target[:, 4] >= 0, 4].astype(int), return_counts=True)
        names = [labels[i] if i < len(labels) else f"class {i}" for i in found.tolist()]
        return ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True)) or "no boxes"

    def groups(self, samples: Samples, labels: Sequence[str]) -> list[Group]:
        """The pictures that hold each class; without targets, the kinds of pictures that the data name."""
        if samples.labels.ndim != 3:
            kinds = np.asarray(samples.kinds, str)
            return [Group(kind, np.flatnonzero(kinds == kind)) for kind in sorted(set(samples.kinds))]
        present = samples.labels[..., 4]
        return [
            Group(labels[label] if label < len(labels) else f"class {label}", rows)
            for label in np.unique(present[present >= 0]).astype(int).tolist()
            if len(rows := np.flatnonzero((present == label).any(axis=1)))
        ]

    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        from pocketfit.tasks.common import box_losses

        return box_losses.loss(outputs, targets, self._form(outputs.shape))

    def distance(self, outputs: Tensor, theirs: Tensor, temperature: float = 1.0) -> Tensor:
        from pocketfit.tasks.common import box_losses

        return box_losses.distance(outputs, theirs, self._form(outputs.shape), temperature)

    def influence(self, outputs: Tensor) -> Tensor:
        from pocketfit.tasks.common import box_losses

        return box_losses.influence(outputs, self._form(outputs.shape))

    def _form(self, shape: Sequence[int | None]) -> boxes.Form:
        return FORMS[self.form or boxes.recognised((None, *shape[1:])) or "yolov8-rows"]


def with_settings(settings: str) -> Detection:
    """The task for outputs of a named form. Raises UserError for a name that is none."""
    if settings and settings not in FORMS:
        raise UserError(f"There is no form of boxes '{settings}': known are {_shapes()}")
    return Detection(settings)


def _unread(name: str, form: boxes.Form, shape: Sequence[int | None], labels: Sequence[str]) -> str:
    """Why an output [n, a, b] is not of this form; "": it may be."""
    reads, classes = f"and --task detection:{name} reads {form.shape}", form.classes(shape)
    if form.selected:
        return "" if shape[2] == 6 else f"{reads}: x1, y1, x2, y2, score and class"
    if classes < 1:
        return f"{reads}: these are too few numbers for a box"
    if labels and len(labels) != classes:
        return f"{classes} classes as detection:{name} reads it, and there are {len(labels)} labels"
    try:
        boxes.cells(shape[1] or 0) if form.cells else None
    except ValueError as error:
        return f"{reads}, but {error}"
    return ""


def _shapes() -> str:
    return ", ".join(f"{name} {form.shape}" for name, form in FORMS.items())


def _f1(found: Targets, wanted: Targets) -> float:
    """2 TP / (found + wanted) of boxes [m, 6] and [k, 6]; 1 where both have none. Boxes in a crowd do not count."""
    ours, theirs = found[found[:, 4] >= 0], wanted[wanted[:, 4] >= 0]
    overlap = boxes.iou(ours[:, :4], theirs[:, :4]) * (ours[:, None, 4] == theirs[None, :, 4])
    crowd = theirs[:, 5] > 0
    in_crowd = (overlap[:, crowd] > 0).any(axis=1)
    free, right = ~crowd, np.zeros(len(ours), bool)
    for row in range(len(ours)):  # by falling score
        best = int(np.argmax(np.where(free, overlap[row], -1.0))) if free.any() else -1
        if best >= 0 and overlap[row, best] >= boxes.MATCHED:
            free[best], right[row] = False, True
    counted = int((right | ~in_crowd).sum()) + int((~crowd).sum())
    return 2 * int(right.sum()) / counted if counted else 1.0
