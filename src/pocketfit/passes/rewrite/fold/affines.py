"""Scales and offsets move into the convolutions and linear layers beside them.

    behind a layer    a (W x + b) + c = (a W) x + (a b + c)                       always
    before a layer    W (a x + c) + b = (W a) x + (b + W c)                       no padding, or c = 0
    before padding    pad(a x + c) = a pad(x + c / a)                             the scale passes, the offset stays
A convolution pads with zeros after the offset has been added. So an offset can't pass a padding, a scale can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pocketfit.passes.rewrite.fold.view import View

LAYERS = ("conv", "conv_transpose", "linear")
SMALLEST = 1e-4  # an offset divided by a smaller scale would be of another order of magnitude


@dataclass(frozen=True)
class Affine:
    """value * scale + offset, with numbers for each channel or one for all: float64 [C] or []."""

    value: fx.Node
    scale: Tensor
    offset: Tensor


def affines(view: View) -> int:
    """Move scales and offsets into layers, and return how many."""
    count = 0
    for node in list(view.graph.nodes):
        if node.users and node.op != "output":
            count += _behind(view, node, batch_norms=False)
    view.refresh()
    for node in reversed(list(view.graph.nodes)):
        if node.users and node.op != "output":
            count += _before(view, node, batch_norms=False)
    return count


def batch_norms(view: View) -> int:
    """Move batch norms into layers before or behind them, and return how many."""
    count = 0
    for node in list(view.graph.nodes):
        if node.users and view.kind(node) == "batch_norm":
            count += _behind(view, node, batch_norms=True) or _before(view, node, batch_norms=True)
    return count


def affine_of(view: View, node: fx.Node, *, batch_norms: bool) -> Affine | None:
    """A node as scale and offset along the channels of its input; None for anything else."""
    kind = view.kind(node)
    if kind == "batch_norm":
        return _of_batch_norm(view, node) if batch_norms else None
    if kind not in ("add", "sub", "mul", "div") or len(node.args) != 2 or node.kwargs:
        return None
    for value, other in ((node.args[0], node.args[1]), (node.args[1], node.args[0])):
        numbers = view.constant(other)
        if numbers is None or not isinstance(value, fx.Node) or view.constant(value) is not None:
            continue
        channels = _per_channel(numbers.double(), view.shape(value), linear=_linear_around(view, node, value))
        if channels is None or view.shape(value) != view.shape(node):
            return None
        return _of_arithmetic(kind, value, channels, turned=value is node.args[1])
    return None


def _of_arithmetic(kind: str, value: fx.Node, numbers: Tensor, *, turned: bool) -> Affine | None:
    """x + n, x - n, x n, x / n; `turned`: n stands first."""
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    if kind == "mul":
        return Affine(value, numbers, zero)
    if kind == "div":
        return None if turned or bool((numbers == 0).any()) else Affine(value, 1 / numbers, zero)
    if kind == "sub" and turned:
        return Affine(value, -one, numbers)
    return Affine(value, one, -numbers if kind == "sub" else numbers)


def _linear_around(view: View, node: fx.Node, value: fx.Node) -> bool:
    """Whether channels are along the last dimension here: a linear layer makes or reads them."""
    return view.kind(value) == "linear" or any(view.kind(user) == "linear" for user in node.users)


def _per_channel(numbers: Tensor, shape: tuple[int, ...], *, linear: bool) -> Tensor | None:
    """[] for one number, [C] for one a channel; None for numbers that change along anything else."""
    if numbers.numel() == 1:
        return numbers.reshape(())
    rank = len(shape)
    dim = rank - 1 if linear else 1
    if rank < 2 or numbers.ndim > rank:
        return None
    whole = numbers.reshape([1] * (rank - numbers.ndim) + list(numbers.shape))
    if whole.shape[dim] != shape[dim] or whole.numel() != shape[dim]:
        return None
    return whole.reshape(-1)


def _of_batch_norm(view: View, node: fx.Node) -> Affine | None:
    norm, value = view.module(node), node.args[0]
    if norm.running_mean is None or not isinstance(value, fx.Node) or view.calls[str(node.target)] > 1:
        return None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    offset = -norm.running_mean.double() * scale
    return Affine(value, scale, offset if norm.bias is None else offset + norm.bias.detach().double())


def _can_change(view: View, node: Any) -> bool:
    """A convolution or linear layer that is called once, whose weights are its own."""
    if view.kind(node) not in LAYERS or view.calls[str(node.target)] != 1:
        return False
    module = view.module(node)
    plain = {"weight", "bias"} >= set(module._parameters) and not hasattr(module, "parametrizations")
    shared = sum(1 for p in view.network.parameters() if p is module.weight) != 1
    return plain and not shared and len(node.args) == 1 and not node.kwargs and not module._forward_pre_hooks


def _behind(view: View, node: fx.Node, *, batch_norms: bool) -> int:
    """Move an affine into the layer before it, if nothing else reads that layer."""
    found = affine_of(view, node, batch_norms=batch_norms)
    if found is None or not _can_change(view, found.value) or view.only_user(found.value) is not node:
        return 0
    module, kind = view.module(found.value), view.kind(found.value)
    if found.scale.ndim and len(found.scale) != _outputs(module):
        return 0
    weight = module.weight.detach().double()
    scale = found.scale.expand(_outputs(module))
    bias = module.bias.detach().double() if module.bias is not None else torch.zeros_like(scale)
    if kind == "conv_transpose":  # [in, out / groups, ...]
        factor = scale.reshape(module.groups, 1, -1)
        grouped = weight.reshape(module.groups, -1, *weight.shape[1:])
        weight = (grouped * factor.reshape(*factor.shape, *[1] * (weight.ndim - 2))).reshape(weight.shape)
    else:
        weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    _set(module, weight, bias * scale + found.offset)
    view.replace(node, found.value)
    return 1


def _outputs(module: Any) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)


def _before(view: View, node: fx.Node, *, batch_norms: bool) -> int:
    """Move an affine that only layers read into all of them; before padding, its scale alone."""
    found = affine_of(view, node, batch_norms=batch_norms)
    users = list(node.users)
    if found is None or not users or not all(_can_change(view, user) for user in users):
        return 0
    if any(view.kind(user) == "conv_transpose" for user in users):
        return 0
    if found.scale.ndim and any(len(found.scale) != _inputs(view.module(user)) for user in users):
        return 0
    offset_passes = not bool(found.offset.any()) or not any(_pads(view.module(user)) for user in users)
    if not offset_passes:
        return _scale_on(view, node, found)
    for user in users:
        _take_before(view.module(user), found.scale, found.offset)
        user.replace_input_with(node, found.value)
    return 1


def _scale_on(view: View, node: fx.Node, found: Affine) -> int:
    """a x + c -> x + c / a, with a moved into the layers. `node`: a batch norm, or the sum behind a product."""
    inner = affine_of(view, found.value, batch_norms=False)
    if view.kind(node) == "batch_norm":
        value, scale, offset = found.value, found.scale, found.offset
    elif inner is not None and view.only_user(found.value) is node and not bool(inner.offset.any()):
        value, scale, offset = inner.value, inner.scale, found.offset
    else:
        return 0
    if bool((scale.abs() < SMALLEST).any()) or bool((found.scale != 1).any() and view.kind(node) != "batch_norm"):
        return 0
    left = offset / scale
    operand: Any = float(left) if left.numel() == 1 else None
    with view.graph.inserting_before(node):
        if operand is None:
            operand = _stored(view, left.reshape(-1, *[1] * (len(view.shape(node)) - 2)), node)
        moved = view.graph.call_function(torch.add, (value, operand))
    moved.meta.update(node.meta)
    for user in list(node.users):
        _take_before(view.module(user), scale, torch.zeros((), dtype=torch.float64))
        user.replace_input_with(node, moved)
    return 1


def _stored(view: View, numbers: Tensor, near: fx.Node) -> fx.Node:
    dtype = view.network.get_parameter(next(name for name, _ in view.network.named_parameters())).dtype
    name, number = f"{near.name}_offset", 1
    while hasattr(view.network, name):
        name, number = f"{near.name}_offset_{number}", number + 1
    view.network.register_parameter(name, nn.Parameter(numbers.to(dtype)))
    return view.graph.get_attr(name)


def _inputs(module: Any) -> int:
    return int(module.in_features if isinstance(module, nn.Linear) else module.in_channels)


def _pads(module: Any) -> bool:
    return not isinstance(module, nn.Linear) and (isinstance(module.padding, str) or any(module.padding))


def _take_before(module: Any, scale: Tensor, offset: Tensor) -> None:
    """W (a x + c) + b; `scale` and `offset` along the layer's inputs, over the groups."""
    weight = module.weight.detach().double()
    inputs, groups = _inputs(module), getattr(module, "groups", 1)
    spread = [numbers.expand(inputs).reshape(groups, 1, -1) for numbers in (scale, offset)]
    behind = [1] * (weight.ndim - 2)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    factor, shift = (numbers.reshape(*numbers.shape, *behind) for numbers in spread)
    bias = module.bias.detach().double() if module.bias is not None else None
    added = (grouped * shift).flatten(2).sum(-1).reshape(-1)
    if bias is not None or bool(added.any()):
        bias = added if bias is None else bias + added
    _set(module, (grouped * factor).reshape(weight.shape), bias)


def _set(module: Any, weight: Tensor, bias: Tensor | None) -> None:
    """New numbers; they are frozen where the layer's weight was."""
    dtype, trained = module.weight.dtype, module.weight.requires_grad
    module.weight = nn.Parameter(weight.to(dtype), requires_grad=trained)
    if bias is not None:
        module.bias = nn.Parameter(bias.to(dtype), requires_grad=trained)
