"""Import packages of pocketfit's extras on first use; a missing one is one sentence with the pip line."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from types import ModuleType
from typing import Any

from pocketfit.core.errors import MissingPackage


def require(package: str, extra: str) -> ModuleType:
    """Import a package of one of pocketfit's extras. Raises MissingPackage where it is not installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package.split(".", maxsplit=1)[0]:
            raise  # the package is installed; something that it needs is not
        raise MissingPackage(package.split(".", maxsplit=1)[0], extra) from error


def installed(distribution: str) -> bool:
    """Whether a package is installed, by its name on PyPI; nothing is imported.

    >>> installed("numpy"), installed("no-such-package")
    (True, False)
    """
    try:
        return bool(importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return False


def called(name: str) -> Callable[..., Any]:
    """The function that "module:function" names: a part of pocketfit, or of a test.

    >>> called("pocketfit.core.support.loading:called") is called
    True
    """
    module, function = name.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
