"""One folder a runtime, its file runtime.py with the same functions in each (Protocol: core.runtime.Runtime)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pocketfit.core.errors import UserError
from pocketfit.core.plan.runtime_list import RUNTIMES

if TYPE_CHECKING:
    from pocketfit.core.runtime import Runtime

__all__ = ["for_file", "get", "is_file_of_one"]


def get(name: str) -> Runtime:
    """The runtime called `name`; its packages are loaded when one of its functions needs them.

    Raises UserError for a name that is none of core.runtime_list.RUNTIMES.
    """
    if name not in RUNTIMES:
        raise UserError(f"No runtime is called '{name}': known are {', '.join(RUNTIMES)}")
    return cast("Runtime", importlib.import_module(RUNTIMES[name].module or f"pocketfit.runtimes.{name}.runtime"))


def is_file_of_one(path: str | Path) -> bool:
    """Whether the name has the suffix of some runtime's files.

    >>> is_file_of_one("model.ONNX"), is_file_of_one("mobilenet_v2")
    (True, False)
    """
    return Path(path).suffix.lower() in {listed.suffix for listed in RUNTIMES.values()}


def for_file(path: str | Path, named: str = "") -> Runtime:
    """The runtime that runs this file: the one that is named, else the first with its suffix. Raises UserError where no
    runtime takes it, or the named one does not.

    >>> for_file("model.onnx").NAME
    'onnxruntime'
    """
    suffix = Path(path).suffix.lower()
    if named and suffix != get(named).EXTENSION:
        raise UserError(f"'{path}' is no file of {named}, whose files end in {get(named).EXTENSION}")
    for name, listed in RUNTIMES.items():
        if listed.suffix == suffix and named in ("", name):
            return get(name)
    known = ", ".join(listed.suffix for listed in RUNTIMES.values())
    raise UserError(f"No runtime takes '{path}': its name should end in one of {known}")
