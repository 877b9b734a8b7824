"""Which task a network has: the one that the user names, else the one that the data and the outputs suggest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pocketfit import tasks
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.task.task import Form, Task
from pocketfit.core.task.task_list import TASKS
from pocketfit.tasks.common import boxes
from pocketfit.tasks.common.class_names import with_box_labels, with_labels, with_order
from pocketfit.tasks.detection import Detection

CALLED: dict[Form, str] = {
    "classes": "classes",
    "texts": "texts",
    "masks": "masks",
    "identities": "identities",
    "boxes": "boxes",
    "tags": "tags",
    "numbers": "numbers",
    "pictures": "target pictures",
    "none": "no labels",
}


def with_task(model: Model, form: Form, class_names: Sequence[str] = (), asked: str = "") -> Model:
    """The model with its task, and with labels where it is a classifier without any.

    form         of the data's targets
    class_names  of the data
    asked        what the user named; "": it follows from the data's targets, and without these from the outputs

    Raises UserError where the network's outputs, or the data's targets, do not fit the task.
    """
    name = checked_task(asked or _suggested(model, form))
    task = tasks.get(name)
    if form not in ("none", task.FORM) and task.FORM != "none":
        raise UserError(
            f"The task '{name}' reads {CALLED[task.FORM]}, and the data have {CALLED[form]}: give --task"
            f" {task_reading(form)}, or --task fidelity, which compares with the original network alone"
        )
    known = replace(model, task=name)
    if name in ("classification", "multilabel"):
        known = with_labels(known, class_names)
    if name in ("ordinal", "binary"):
        known = with_order(known, class_names)
    if reason := task.why_not(known.signature.outputs, known.labels):
        raise UserError(reason)
    if isinstance(task, Detection):
        return with_box_labels(known, task.classes(known.signature.outputs), class_names)
    return known


def metric_of(task: Task, asked: str = "", *, labelled: bool = True) -> str:
    """The metric that the user named, else the task's first of those that compare with what there is: the data's
    targets where they are labelled, else the original network's answers. Raises UserError for another task's."""
    missing = "original" if labelled else "labels"
    fitting = [name for name, metric in task.METRICS.items() if metric.of != missing]
    if not asked and fitting:
        return fitting[0]
    if asked in task.METRICS and asked not in fitting:
        what = (
            "the original network's answers, and here the data's labels count"
            if labelled
            else "labels, and the data have none"
        )
        raise UserError(f"The metric '{asked}' compares with {what}: known are {', '.join(fitting)}")
    if ":" not in asked and asked not in task.METRICS:
        raise UserError(
            f"There is no metric '{asked}' for the task '{task.NAME}': known are {', '.join(task.METRICS)}, or"
            " package.module:function"
        )
    return asked


def title_of(task: Task, metric: str, *, labelled: bool = True) -> str:
    """The metric's name in tables and pages; without labels it is an agreement with the original network.

    >>> title_of(tasks.get("text"), "exact-match", labelled=False)
    'Exact match (with the original)'
    """
    known = task.METRICS.get(metric)
    title = metric if known is None else known.title
    own = task.FORM == "none" or (known is not None and known.of == "original")
    return title if labelled or own else f"{title} (with the original)"


def checked_task(name: str) -> str:
    """Raises UserError for a name that is no task."""
    known, colon, settings = name.partition(":")
    if known not in TASKS:
        raise UserError(f"There is no task '{name}': known are {', '.join(TASKS)}")
    if colon and not hasattr(tasks.module_of(known), "with_settings"):
        raise UserError(f"The task '{known}' has no settings, and '{settings}' stands behind its colon: leave it out")
    tasks.get(name)  # raises UserError for settings that it does not know
    return name


def task_reading(form: Form) -> str:
    """The name of the task that reads targets of this form; fidelity reads none.

    >>> task_reading("texts"), task_reading("none")
    ('text', 'fidelity')
    """
    return next(name for name in TASKS if form == tasks.get(name).FORM)


def _suggested(model: Model, form: Form) -> str:
    shape = model.signature.outputs[0].shape
    if shape[1:] in ((), (1,)) and (form == "classes" or (form == "none" and len(model.labels) == 2)):
        return "binary"
    return task_reading(form) if form != "none" else _told_by_outputs(model, shape)


def _told_by_outputs(model: Model, shape: Sequence[int | None]) -> str:
    if len(shape) == 2 and (model.labels or model.origin.kind == "zoo"):
        return "classification"
    if len(shape) == 3 and model.labels and not tasks.get("text").why_not(model.signature.outputs, model.labels):
        return "text"
    if len(shape) == 3 and shape[1] == len(model.labels) + 4 and boxes.recognised(shape) == "yolov8" and model.labels:
        return "detection"
    if len(shape) == 4 and shape[1] == 1:
        return "segmentation"
    return "fidelity"
