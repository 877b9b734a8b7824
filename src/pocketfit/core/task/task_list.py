"""The names of the tasks, for whoever must not load one. A further task is a name here and a file in tasks/."""

from __future__ import annotations

from typing import Literal, get_args

TaskName = Literal[
    "classification",
    "text",
    "segmentation",
    "detection",
    "embedding",
    "binary",
    "multilabel",
    "regression",
    "ordinal",
    "image_to_image",
    "fidelity",
]
TaskKey = str  # a name, for some tasks with what they have to know of the outputs behind a colon: "detection:yolov5"
TASKS: tuple[TaskName, ...] = get_args(TaskName)
