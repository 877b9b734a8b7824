"""Boxes as a task: forms that the user names, labels, answers, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pocketfit import tasks
from pocketfit.core.errors import UserError
from pocketfit.core.signature import TensorSpec
from pocketfit.tasks.choose_task import with_task
from pocketfit.tasks.detection import Detection
from tests.tasks.examples import data_of, model_of


def of(*shape: int | None) -> list[TensorSpec]:
    return [TensorSpec("boxes", (None, *shape))]


@pytest.mark.parametrize(
    ("form", "shape", "labels", "why"),
    [
        ("", (7, 64), "abc", ""),
        ("", (64, 8), "", "may be boxes in several forms: give --task detection:FORM, one of yolov8"),
        ("yolov5", (64, 8), "abc", ""),
        ("yolov5", (64, 8), "abcd", "3 classes as detection:yolov5 reads it, and there are 4 labels"),
        ("yolov5", (64, 5), "", "too few numbers for a box"),
        ("yolox", (64, 8), "abc", r"no square input has maps with 64 cells at strides of \(8, 16, 32\)"),
        ("yolox", (84, 8), "abc", ""),
        ("nms", (64, 7), "abc", "x1, y1, x2, y2, score and class"),
        ("", (4, 8, 8), "", "and boxes are yolov8 .*: say with --task what its outputs mean"),
    ],
)
def test_what_outputs_fit(form: str, shape: tuple[int, ...], labels: str, why: str) -> None:
    import re

    said = Detection(form).why_not(of(*shape), tuple(labels))
    assert re.search(why, said) if why else said == ""


def test_names_of_forms_and_of_classes_are_checked(tmp_path: Path) -> None:
    model = model_of("detection")
    assert tasks.get("detection:yolov5").answers is not None and with_task(model, "none", asked="detection:yolov8")
    with pytest.raises(UserError, match="no form of boxes 'yolov99': known are yolov8"):
        with_task(model, "none", asked="detection:yolov99")
    with pytest.raises(UserError, match="The task 'text' has no settings"):
        with_task(model, "none", asked="text:ctc")
    from dataclasses import replace

    bare = replace(model, labels=())
    assert with_task(bare, "boxes", ("x", "y", "z")).labels == ("x", "y", "z")
    with pytest.raises(UserError, match="has 3 classes of boxes, and the data name 2"):
        with_task(bare, "boxes", ("x", "y"))
    samples = data_of("detection", tmp_path, labelled=True, count=8).split("train", model.preprocess, split_seed=0)
    with pytest.raises(UserError, match=r"The data's class 'disc' .* is none of the model's 3 labels"):
        tasks.get("detection").read_targets(samples, ("x", "y", "z"))
    turned = tasks.get("detection").read_targets(samples, ("star", "disc", "ring"))
    assert (turned.labels[..., 4] == np.where(samples.labels[..., 4] < 0, -1, (samples.labels[..., 4] + 1) % 3)).all()


def test_answers_match_at_half_an_overlap_and_in_their_class() -> None:
    task = tasks.get("detection")
    one = np.array([[[0, 0, 10, 10, 1, 0], [-1] * 6]], np.float32)
    moved, other = one.copy(), one.copy()
    moved[0, 0, 0:4:2] += 3  # IoU 7 / 13
    other[0, 0, 4] = 2
    assert task.same(one, moved).tolist() == [True] and task.same(one, other).tolist() == [False]
    moved[0, 0, 0:4:2] += 1
    assert task.same(one, moved).tolist() == [False]
    kept = np.full((1, 3, 6), -1, np.float32)
    kept[0, :2] = (0, 0, 10, 10, 0.9, 1), (50, 50, 60, 60, 0.3, 1)
    assert task.scores("f1", kept, one) == pytest.approx([2 / 3])
    assert task.words(one[0], ("a", "b")) == "1 b" and task.words(one[0, 1:], ()) == "no boxes"
