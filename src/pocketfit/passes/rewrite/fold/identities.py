"""Remove operators that change nothing: times 1, plus 0, one layout after another and back; dropout."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from pocketfit.passes.rewrite.fold.view import View


def identities(view: View) -> int:
    """Remove them, and return how many."""
    count = 0
    for node in list(view.graph.nodes):
        source = _same(view, node)
        if source is not None:
            view.replace(node, source)
            count += 1
    return count


def dropouts(view: View) -> int:
    """Remove dropout, which only training needs, and nn.Identity; return how many."""
    count = 0
    for node in list(view.graph.nodes):
        kind, source = view.kind(node), node.args[0] if node.args else None
        off = kind == "identity" or (kind == "dropout" and node.kwargs.get("training") is False)
        if off and isinstance(source, fx.Node):
            view.replace(node, source)
            count += 1
    return count


def _same(view: View, node: fx.Node) -> fx.Node | None:
    """The node with the same output as this one, None where there is none."""
    kind = view.kind(node)
    source = node.args[0] if node.args else None
    if kind in ("mul", "add", "sub", "div") and len(node.args) == 2 and not node.kwargs:
        return _neutral(view, node, kind)
    if kind == "permute" and isinstance(source, fx.Node) and view.kind(source) == "permute":
        first, second = _order(view, source), _order(view, node)
        together = [first[dim] for dim in second]
        before = source.args[0]
        if together == sorted(together) and isinstance(before, fx.Node):
            return before
        with view.graph.inserting_before(node):
            merged = view.graph.call_function(torch.permute, (before, together))
        merged.meta.update(node.meta)
        return merged
    if kind in ("squeeze", "flatten", "reshape") and isinstance(source, fx.Node):
        return _undone(view, node, source)
    return None


def _neutral(view: View, node: fx.Node, kind: str) -> fx.Node | None:
    sides: list[tuple[Any, Any]] = [(node.args[0], node.args[1])]
    if kind in ("mul", "add"):
        sides.append((node.args[1], node.args[0]))
    for value, other in sides:
        constant = view.constant(other)
        if constant is None or not isinstance(value, fx.Node) or view.shape(value) != view.shape(node):
            continue
        if bool((constant == (1 if kind in ("mul", "div") else 0)).all()) and _same_kind(value, node):
            return value
    return None


def _same_kind(first: fx.Node, second: fx.Node) -> bool:
    return bool(first.meta["tensor_meta"].dtype == second.meta["tensor_meta"].dtype)


def _order(view: View, node: fx.Node) -> list[int]:
    dims: Any = node.args[1] if len(node.args) == 2 and not isinstance(node.args[1], int) else node.args[1:]
    rank = len(view.shape(node))
    return [int(dim) % rank for dim in dims]


def _undone(view: View, node: fx.Node, source: fx.Node) -> fx.Node | None:
    """A dimension put in and taken out again: unsqueeze and squeeze at one place.

    Reshapes are left: their sizes agree on one example, and need not agree always.
    """
    if view.kind(node) != "squeeze" or view.kind(source) != "unsqueeze" or len(node.args) < 2:
        return None
    rank = len(view.shape(source))
    given: Any = node.args[1]
    dims = [given] if isinstance(given, int) else list(given)
    inner, dim = source.args[0], cast(int, source.args[1])
    if len(dims) == 1 and dims[0] % rank == int(dim) % rank and isinstance(inner, fx.Node):
        return inner
    return None
