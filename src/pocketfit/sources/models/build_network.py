"""Build a network again from its origin: a name of the zoo, or a factory of the user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pocketfit import zoo
from pocketfit.core.errors import UserError
from pocketfit.core.model import Origin
from pocketfit.core.support import user_code
from pocketfit.sources.models.unwrap import eval_mode

CLASS_ARGUMENTS = ("classes", "num_classes")
# Types of the arguments that a model folder may pass to a factory; a folder may come from a stranger.
SAFE_ARGUMENTS: Mapping[str, type[int] | type[float]] = {"classes": int, "num_classes": int, "width": float}
MOST_CLASSES, MOST_WIDTH = 10**6, 16.0
MOST_BYTES = 4 * 10**9  # limit for the weights of a network before it is pruned


def build(origin: Origin) -> nn.Module:
    """The network with random weights (always the same ones), in eval mode.

    Raises UserError for an unknown name, a factory that raises or gives no module, and an origin that can't be built.
    """
    arguments = {name: _checked(name, value, origin) for name, value in origin.arguments.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if origin.kind == "zoo":
            try:
                check_size(origin.name, arguments)
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
            eval_mode(network)
            return network
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
    """The name of a factory's argument for the number of classes, None where it has none."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in callables have no signature
        return None
    return next((name for name in CLASS_ARGUMENTS if name in parameters), None)


def factory(name: str) -> Callable[..., Any]:
    """The function called "package.module:function"; core/support/user_code.py says when it may be called."""
    return user_code.function(name, "factory")


def _accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The class count under the factory's own name for it. Where it takes none, a new head's size is set afterwards."""
    name, count = class_argument(function), next((arguments[n] for n in CLASS_ARGUMENTS if n in arguments), None)
    return {name: count} if name is not None and count is not None else {}


def _call(function: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> Any:
    try:
        with user_code.importable(user_code.closed_to(name)):
            return function(**arguments)
    except (Exception, SystemExit) as error:  # a stranger's factory may raise anything
        raise UserError(f"The factory {name} failed: {user_code.cause(error)}") from error


def check_size(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse a network that would not fit into memory, before its tensors are made."""
    if arguments.get("width", 1.0) <= 2 and arguments.get("classes", 0) <= 20_000:
        return
    with torch.device("meta"):
        sketch = zoo.build(name, **arguments)
    size = sum(tensor.numel() * tensor.element_size() for tensor in sketch.state_dict().values())
    if size > MOST_BYTES:
        told = ", ".join(f"{key} {value:g}" for key, value in arguments.items())
        raise UserError(f"{name} with {told} has {size / 1e9:.1f} GB, more than the {MOST_BYTES / 1e9:.0f} GB allowed")


def _checked(name: str, value: Any, origin: Origin) -> Any:
    kind = SAFE_ARGUMENTS.get(name)
    if kind is None or isinstance(value, bool) or not isinstance(value, int | kind):
        raise UserError(
            f"{origin.name} can't be built with {name}={value!r}: only {', '.join(SAFE_ARGUMENTS)} are passed on"
        )
    most = MOST_CLASSES if kind is int else MOST_WIDTH
    if not 0 < value <= most:
        raise UserError(f"{origin.name} can't be built with {name}={value:g}: give a number above 0 up to {most:,}")
    return value
