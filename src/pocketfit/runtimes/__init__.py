"""One folder a runtime, its file runtime.py with the same functions in each (Protocol: core.runtime.Runtime)."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from pocketfit.core.errors import MissingPackage, UserError

if TYPE_CHECKING:
    from pocketfit.core.runtime import Runtime

__all__ = ["EXTENSIONS", "NAMES", "for_file", "get", "require"]

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


def require(package: str, extra: str) -> ModuleType:
    """Import a package of one of pocketfit's extras; a package that is not there is MissingPackage."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package.split(".", maxsplit=1)[0]:
            raise  # the package is there; something that it needs is not
        raise MissingPackage(package.split(".", maxsplit=1)[0], extra) from error
