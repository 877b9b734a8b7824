"""Build a network again from its origin: a name of the zoo, or a factory of the user's."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketfit import zoo
from pocketfit.core.errors import UserError
from pocketfit.core.model import Origin

CLASS_ARGUMENTS = ("classes", "num_classes")
# What a model folder may hand to a factory: it must not be able to call just anything with just any argument.
SAFE_ARGUMENTS: Mapping[str, type] = {"classes": int, "num_classes": int, "width": float}


def build(origin: Origin) -> nn.Module:
    """The network with random weights (always the same ones), in eval mode.

    Raises UserError for an unknown name, a factory that raises or gives no module, and an origin that can't be built.
    """
    arguments = {name: _checked(name, value, origin) for name, value in origin.arguments.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if origin.kind == "zoo":
            try:
                return zoo.build(origin.name, **arguments).eval()
            except ValueError as error:
                raise UserError(str(error).rstrip(".")) from error
        if origin.kind == "factory":
            function = factory(origin.name)
            network = _call(function, origin.name, _accepted(function, arguments))
            if not isinstance(network, nn.Module):
                raise UserError(
                    f"The factory {origin.name} gives a {type(network).__name__}: it must give a torch.nn.Module"
                )
            return network.eval()
    raise UserError(f"The network {origin.name} was handed over as an object and can't be built again: give a factory")


def counts_classes(origin: Origin, classes: int) -> Origin:
    """The same origin for this number of classes. Raises UserError where the factory takes no number of classes."""
    if classes < 1:
        raise UserError(f"A classifier can't have {classes} classes: give a number from 1")
    name = "classes" if origin.kind == "zoo" else class_argument(factory(origin.name))
    if name is None:
        raise UserError(
            f"The factory {origin.name} takes no argument 'classes' or 'num_classes', so it can't be given {classes}"
        )
    return replace(origin, arguments={**origin.arguments, name: classes})


def class_argument(function: Callable[..., Any]) -> str | None:
    """Under which name a factory takes the number of classes, None where it takes none."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in callables have no signature
        return None
    return next((name for name in CLASS_ARGUMENTS if name in parameters), None)


def factory(name: str) -> Callable[..., Any]:
    """The function called "package.module:function", with the current directory on the path."""
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name or module_name.split(".")[0] in sys.stdlib_module_names:
        raise UserError(f"'{name}' names no factory: write package.module:function")
    try:
        with _current_directory():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise UserError(
                f"There is no module {module_name} in the current directory or among the packages"
            ) from error
        raise UserError(f"The module {module_name} can't be imported: {_cause(error)}") from error
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything
        raise UserError(f"The module {module_name} can't be imported: {_cause(error)}") from error
    function: Any = module
    for part in function_name.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise UserError(f"The module {module_name} has no function {function_name}")
    return function  # type: ignore[no-any-return]


def _accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The class count under the factory's own name for it. Where it takes none, a new head's size is set afterwards."""
    name, count = class_argument(function), next((arguments[n] for n in CLASS_ARGUMENTS if n in arguments), None)
    return {name: count} if name is not None and count is not None else {}


def _call(function: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> Any:
    try:
        with _current_directory():
            return function(**arguments)
    except (Exception, SystemExit) as error:  # a stranger's factory may raise anything
        raise UserError(f"The factory {name} failed: {_cause(error)}") from error


@contextmanager
def _current_directory() -> Iterator[None]:
    """The current directory on the import path, for a factory that lies beside the user's work."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _cause(error: BaseException) -> str:
    """One line: the kind of error, its message, and the last place outside of installed packages."""
    message = (str(error).strip() or "no message").splitlines()[0]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {message}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    own = [f for f in frames if "site-packages" not in f.filename and Path(f.filename) != Path(__file__)]
    own = [f for f in own if not f.filename.startswith(str(Path(inspect.__file__).parent))]
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {message}{where}"


def _checked(name: str, value: Any, origin: Origin) -> Any:
    kind = SAFE_ARGUMENTS.get(name)
    if kind is None or isinstance(value, bool) or not isinstance(value, int | kind):
        raise UserError(
            f"{origin.name} can't be built with {name}={value!r}: only {', '.join(SAFE_ARGUMENTS)} are passed on"
        )
    return value
