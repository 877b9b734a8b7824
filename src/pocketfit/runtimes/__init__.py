"""One folder a runtime, its file runtime.py with the same functions in each (Protocol: core.runtime.Runtime)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pocketfit.core.errors import UserError

if TYPE_CHECKING:
    from pocketfit.core.runtime import Runtime

__all__ = ["EXTENSIONS", "NAMES", "for_file", "get"]

NAMES = ("litert", "onnxruntime", "torch")
EXTENSIONS = {".tflite": "litert", ".onnx": "onnxruntime", ".pt2": "torch"}


def get(name: str) -> Runtime:
    """The runtime called `name`; its packages are loaded when one of its functions needs them.

    Raises UserError for a name that is none of NAMES.
    """
    if name not in NAMES:
        raise UserError(f"No runtime is called '{name}': known are {', '.join(NAMES)}")
    return cast("Runtime", importlib.import_module(f"pocketfit.runtimes.{name}.runtime"))


def for_file(path: str | Path) -> Runtime:
    """The runtime that runs this file, by its extension.

    >>> for_file("model.onnx").NAME
    'onnxruntime'
    """
    extension = Path(path).suffix.lower()
    if extension not in EXTENSIONS:
        known = ", ".join(EXTENSIONS)
        raise UserError(f"No runtime takes '{path}': its name should end in one of {known}")
    return get(EXTENSIONS[extension])
