"""Activations and norms that come in pieces become one layer each.

x relu6(x + 3) / 6                        Hardswish         Howard et al. 2019
relu6(x + 3) / 6, clamp(x / 6 + 1/2)      Hardsigmoid
x sigmoid(x)                              SiLU
x (1 + erf(x / sqrt 2)) / 2               GELU              Hendrycks and Gimpel 2016
(x - mean) / sqrt(variance + eps) w + b   LayerNorm
instance norm between two reshapes        GroupNorm         as torch's exporters write it
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from pocketfit.passes.rewrite.fold.view import View, close
from pocketfit.sources.onnx.names import ROLE

SIXTH, HALF = 1 / 6, 0.5
GELU_SLOPE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


def activations(view: View) -> int:
    """Put activations together, and return how many."""
    count = 0
    for node in list(view.graph.nodes):
        found = _gated(view, node) or _hard_sigmoid(view, node)
        if found is None:
            continue
        module, value = found
        if isinstance(value, fx.Node):
            kind = type(module).__name__.lower()
            view.replace(node, view.add_module(module, _scope(node, kind), node, value))
            count += 1
    return count


def _scope(node: fx.Node, kind: str) -> str:
    """ "features.3.hardswish" where one of the pieces is called "features.3.relu6"."""
    seen, open_nodes = set(), [node]
    for _ in range(8):
        if not open_nodes:
            break
        current = open_nodes.pop(0)
        if current.op == "call_module" and current not in seen:
            parent, _, last = str(current.target).rpartition(".")
            if last.rstrip("_0123456789") in ("relu6", "sigmoid", "hardsigmoid", "hardtanh", "tanh"):
                return f"{parent}.{kind}" if parent else kind
        seen.add(current)
        open_nodes += [n for n in current.all_input_nodes if n not in seen]
    return kind


def _gated(view: View, node: fx.Node) -> tuple[nn.Module, Any] | None:
    """x times a function of x."""
    number, factors = view.product(node)
    if len(factors) != 2 or view.kind(node) not in ("mul", "div"):
        return None
    for value, gate in (factors, factors[::-1]):
        layer = _gate(view, gate, value, number)
        if layer is not None:
            return layer, value
    return None


def _gate(view: View, gate: Any, value: Any, number: float) -> nn.Module | None:
    """The layer that gives `number` times `value` times `gate`."""
    if close(number, SIXTH) and _is_relu6_of_shifted(view, gate, value):
        return nn.Hardswish()
    if close(number, HALF):
        kind = _gelu_gate(view, gate, value)
        return nn.GELU(approximate=kind) if kind else None
    if not close(number, 1.0):
        return None
    inner = _hard_sigmoid(view, gate)
    if (inner is not None and inner[1] is value) or (view.kind(gate) == "hardsigmoid" and gate.args[0] is value):
        return nn.Hardswish()
    return nn.SiLU() if view.kind(gate) == "sigmoid" and gate.args[0] is value else None


def _is_relu6_of_shifted(view: View, node: Any, value: Any) -> bool:
    inner = view.clamped(node)
    shifted = view.plus(inner[0]) if inner is not None and inner[1:] == (0.0, 6.0) else None
    return shifted is not None and shifted[0] is value and close(shifted[1], 3.0)


def _hard_sigmoid(view: View, node: Any) -> tuple[nn.Module, Any] | None:
    scaled, number = view.scaled(node)
    inner = view.clamped(scaled)
    if inner is None:
        return None
    if inner[1:] == (0.0, 6.0) and close(number, SIXTH) and scaled is not node:
        shifted = view.plus(inner[0])
        return (nn.Hardsigmoid(), shifted[0]) if shifted is not None and close(shifted[1], 3.0) else None
    if inner[1:] == (0.0, 1.0) and scaled is node:
        shifted = view.plus(inner[0])
        if shifted is not None and close(shifted[1], HALF):
            value, slope = view.scaled(shifted[0])
            return (nn.Hardsigmoid(), value) if close(slope, SIXTH) else None
    return None


def _gelu_gate(view: View, gate: Any, value: Any) -> str:
    """ "none" for 1 + erf(x / sqrt 2), "tanh" for 1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)), else ""."""
    shifted = view.plus(gate)
    if shifted is None or not close(shifted[1], 1.0):
        return ""
    kind = view.kind(shifted[0])
    if kind not in ("erf", "tanh"):
        return ""
    inner, slope = view.scaled(shifted[0].args[0])
    if kind == "erf":
        return "none" if inner is value and close(slope, math.sqrt(HALF)) else ""
    pair = view.two(inner, "add")
    if pair is None or not close(slope, GELU_SLOPE):
        return ""
    for one, cube in (pair, pair[::-1]):
        number, factors = view.product(cube)
        powers = [3 if view.two(f, "pow") == (value, 3) else 1 if f is value else 0 for f in factors]
        if one is value and close(number, GELU_CUBE) and sum(powers) == 3 and 0 not in powers:
            return "tanh"
    return ""


def norms(view: View) -> int:
    """Put layer norms and group norms together, and return how many."""
    count = 0
    for node in list(view.graph.nodes):
        if not node.users:
            continue
        count += _layer_norm(view, node) or _group_norm(view, node)
    return count


def _layer_norm(view: View, node: fx.Node) -> int:
    """`node`: the quotient; a product and a sum with stored numbers behind it belong to the layer."""
    parts = _centred(view, node)
    if parts is None:
        return 0
    value, eps = parts
    size = view.shape(value)[-1]
    last, weight, bias, name = _affine_behind(view, node, (size,))
    if weight is None and bias is not None:
        last, bias = node, None  # a sum without a product belongs to no layer norm
    layer = nn.LayerNorm(size, eps, elementwise_affine=weight is not None, bias=bias is not None)
    _fill(layer, weight, bias, (size,))
    view.replace(last, view.add_module(layer, name or _scope(node, "layernorm"), last, value))
    return 1


def _centred(view: View, node: fx.Node) -> tuple[fx.Node, float] | None:
    """(x - mean) / sqrt(mean((x - mean)^2) + eps) over the last dimension -> (x, eps)."""
    top, bottom = _quotient(view, node)
    pair = view.two(top, "sub")
    inner = view.plus(bottom)
    if pair is None or inner is None or inner[1] < 0:
        return None
    value, mean = pair
    squares = _mean_of(view, inner[0])
    if not isinstance(value, fx.Node) or _mean_of(view, mean) is not value or squares is None:
        return None
    squared = view.two(squares, "mul") == (top, top) or view.two(squares, "pow") in ((top, 2), (top, 2.0))
    squared = squared or (view.kind(squares) == "square" and squares.args[0] is top)
    return (value, inner[1]) if squared else None


def _quotient(view: View, node: fx.Node) -> tuple[Any, Any]:
    """a / sqrt(b), a rsqrt(b), a (1 / sqrt(b)) -> (a, b)."""
    pair = view.two(node, "div")
    if pair is not None and view.kind(pair[1]) == "sqrt":
        return pair[0], pair[1].args[0]
    pair = view.two(node, "mul")
    for top, factor in (pair, pair[::-1]) if pair is not None else ():
        if view.kind(factor) == "rsqrt":
            return top, factor.args[0]
        if view.kind(factor) == "reciprocal" and view.kind(factor.args[0]) == "sqrt":
            return top, factor.args[0].args[0]
    return None, None


def _mean_of(view: View, node: Any) -> fx.Node | None:
    """The tensor whose mean over the last dimension (kept, with size 1) this node is; None for other nodes."""
    if view.kind(node) != "mean":
        return None
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    source = node.args[0]
    dims = [dims] if isinstance(dims, int) else list(dims or ())
    rank = len(view.shape(source))
    return source if keep and rank and [dim % rank for dim in dims] == [rank - 1] else None


def _affine_behind(
    view: View, node: fx.Node, shape: tuple[int, ...]
) -> tuple[fx.Node, Tensor | None, Tensor | None, str]:
    """The last node of "times w plus b" behind a node, with w and b of this shape, and the name they suggest."""
    last, weight, bias, name = node, None, None, ""
    for kind in ("mul", "add"):
        user = view.only_user(last)
        pair = view.two(user, kind)
        if user is None or pair is None:
            continue
        other = pair[1] if pair[0] is last else pair[0]
        numbers = view.constant(other)
        if not isinstance(other, fx.Node) or numbers is None or not _fits(tuple(numbers.shape), shape):
            continue
        layer = ROLE.sub("", str(other.target))
        name = name or (layer if layer != str(other.target) else "")
        last = user
        weight, bias = (numbers, bias) if kind == "mul" else (weight, numbers)
    return last, weight, bias, name


def _fits(there: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether `there` is `wanted` with ones in front."""
    front = len(there) - len(wanted)
    return front >= 0 and there[front:] == wanted and set(there[:front]) <= {1}


def _fill(layer: Any, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]) -> None:
    if weight is not None:
        layer.weight = nn.Parameter(weight.reshape(shape).clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.reshape(shape).clone())


def _group_norm(view: View, node: fx.Node) -> int:
    """[n, c, ...] -> [n, groups, -1] -> instance norm without numbers of its own -> [n, c, ...] times w plus b."""
    if view.kind(node) != "instance_norm":
        return 0
    module = view.module(node)
    before, behind = node.args[0], _reader(node)
    if not isinstance(before, fx.Node) or behind is None:
        return 0
    if view.kind(before) != "reshape" or view.kind(behind) != "reshape":
        return 0
    value = before.args[0]
    shape, groups = view.shape(value), module.num_features
    own = module.weight is not None and not bool((module.weight == 1).all() and (module.bias == 0).all())
    if own or view.shape(behind) != shape or len(shape) < 3 or view.shape(before)[:2] != (shape[0], groups):
        return 0
    channels = (shape[1], *[1] * (len(shape) - 2))
    last, weight, bias, name = _affine_behind(view, behind, channels)
    layer = nn.GroupNorm(groups, shape[1], module.eps, affine=weight is not None or bias is not None)
    _fill(layer, weight, bias, (shape[1],))
    own_name = str(node.target).rpartition(".")[0] or str(node.target)
    view.replace(last, view.add_module(layer, name or f"{own_name}_group", last, value))
    return 1


def _reader(node: fx.Node) -> fx.Node | None:
    """The only node that reads the numbers of this one; nodes that read its sizes don't count."""
    readers = [user for user in node.users if not (user.op == "call_method" and user.target == "size")]
    sizes = [user for user in node.users if user not in readers]
    if len(readers) != 1 or any(set(size.users) != {readers[0]} for size in sizes):
        return None
    return readers[0]


def constants(view: View) -> int:
    """Chains of numbers: (2 x) 3 -> 6 x, (x + 1) + 2 -> x + 3."""
    count = 0
    for node in list(view.graph.nodes):
        outer = view.plus(node)
        inner = view.plus(outer[0]) if outer is not None else None
        if outer is not None and inner is not None and set(outer[0].users) == {node}:
            _merge(view, node, torch.add, inner[0], inner[1] + outer[1])
            count += 1
            continue
        number, factors = view.product(node)
        nested = view.kind(node) in ("mul", "div") and any(view.kind(a) in ("mul", "div") for a in node.args)
        if len(factors) == 1 and nested and isinstance(factors[0], fx.Node) and factors[0] is not node:
            _merge(view, node, torch.mul, factors[0], number)
            count += 1
    return count


def _merge(view: View, node: fx.Node, function: Any, value: Any, number: float) -> None:
    with view.graph.inserting_before(node):
        merged = view.graph.call_function(function, (value, number))
    merged.meta.update(node.meta)
    view.replace(node, merged)
