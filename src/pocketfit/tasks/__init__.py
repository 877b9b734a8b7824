"""What the outputs of a network mean: one file a task, each with the functions of core.task.task.Task."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from pocketfit.core.task.task import Task
from pocketfit.core.task.task_list import TASKS


def get(name: str) -> Task:
    """The task of this name, with its settings where some stand behind a colon (core.task.task_list.TaskKey).

    >>> get("classification").FORM
    'classes'
    """
    name, _, settings = name.partition(":")
    if name not in TASKS:
        raise ValueError(f"'{name}' is none of the tasks {', '.join(TASKS)}")
    module = module_of(name)
    task: Task = module.with_settings(settings) if hasattr(module, "with_settings") else module
    return task


def module_of(name: str) -> ModuleType:
    """The file of a task."""
    return import_module(f"pocketfit.tasks.{name}")
