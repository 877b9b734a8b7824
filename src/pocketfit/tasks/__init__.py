"""What the outputs of a network mean: one file a task, each with the functions of core.task.task.Task."""

from __future__ import annotations

from importlib import import_module

from pocketfit.core.task.task import Task
from pocketfit.core.task.task_list import TASKS


def get(name: str) -> Task:
    """The task of this name.

    >>> get("classification").FORM
    'classes'
    """
    if name not in TASKS:
        raise ValueError(f"'{name}' is none of the tasks {', '.join(TASKS)}")
    task: Task = import_module(f"pocketfit.tasks.{name}")
    return task
