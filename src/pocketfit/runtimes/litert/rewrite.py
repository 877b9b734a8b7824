"""Operators that litert-torch converts wrongly or not at all, replaced by others before the conversion.

Each function takes the arguments of its ATen operator and computes the same, for any batch:

    view                          -> reshape: channels-last images lie differently in memory
    instance_norm                 -> (x - mean) / deviation: the converter writes the batch size into the file, which
                                     answers wrongly for any other
    pools with ceil_mode          -> padding, then the pool: the converter counts the wrong elements at the far edge
    conv_transpose                -> one for each group, uncropped and then cropped: LiteRT has neither groups, nor
                                     dilation, nor any padding but that of its "SAME"
    conv3d with padding           -> padding, then conv3d: the converter crashes on some
    topk without indices, sort    -> topk with indices, and gather: LiteRT has no sort

Where one operator becomes many, `apply` returns a sentence about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional as F

Ints = int | list[int] | tuple[int, ...]


def apply(network: fx.GraphModule) -> list[str]:
    """Rewrite the graph in place; -> sentences on layers that were replaced by several operators."""
    notes = []
    for node in network.graph.nodes:
        if node.target in RECURRENT:
            notes.append(
                f"LiteRT has no operator for the recurrent layer '{layer_of(node)}': each of its steps is written out, "
                "which makes the file larger and each step slower"
            )
        if node.op != "call_function" or node.target not in REWRITES:
            continue
        if node.target == _aten.topk.default and any(user.args[1] == 1 and user.users for user in node.users):
            continue  # where its indices are read, LiteRT has this operator itself
        if node.target in TRANSPOSED and (groups := _argument(node, "groups")) > 1:
            notes.append(
                f"LiteRT has no grouped transposed convolution: layer '{layer_of(node)}' became {groups} operators, "
                "one for each group"
            )
        node.meta["original"], node.target = node.target, REWRITES[node.target]
    network.recompile()
    return notes


def layer_of(node: fx.Node) -> str:
    """Dotted name of the innermost module that called this, "" for the network itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]).split("@", maxsplit=1)[0] if stack else ""


def _argument(node: fx.Node, name: str) -> Any:
    target: Any = node.target  # an operator of ATen
    for place, argument in enumerate(target._schema.arguments):
        if argument.name == name:
            return node.args[place] if place < len(node.args) else node.kwargs.get(name, argument.default_value)
    raise ValueError(f"{node.target} has no argument '{name}'")


def _view(x: Tensor, size: Sequence[int]) -> Tensor:
    return torch.reshape(x, size)


def _instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> Tensor:
    """[N, C, ...]; with the statistics of each sample and channel, or with the running ones."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    if use_input_stats or mean is None or variance is None:
        around = tuple(range(2, x.ndim))
        centred = x - x.mean(around, keepdim=True)
        x = centred * torch.rsqrt((centred * centred).mean(around, keepdim=True) + eps)
    else:
        x = (x - mean.view(shape)) * torch.rsqrt(variance.view(shape) + eps)
    if weight is not None:
        x = x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _max_pool2d(
    x: Tensor, kernel: Ints, stride: Ints = (), padding: Ints = 0, dilation: Ints = 1, ceil_mode: bool = False
) -> Tensor:
    if not ceil_mode:
        return F.max_pool2d(x, kernel, stride or kernel, padding, dilation)
    windows = [_Windows(*each) for each in _by_axis(x, kernel, stride or kernel, padding, dilation)]
    padded = F.pad(x, _flat((w.padding, w.padding + w.beyond) for w in windows), value=-math.inf)
    return F.max_pool2d(padded, kernel, stride or kernel, 0, dilation)


def _avg_pool2d(
    x: Tensor,
    kernel: Ints,
    stride: Ints = (),
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """A window that reaches beyond the edge has a divisor of its own: the elements that count."""
    if not ceil_mode:
        return F.avg_pool2d(x, kernel, stride or kernel, padding, False, count_include_pad, divisor_override)
    windows = [_Windows(*each) for each in _by_axis(x, kernel, stride or kernel, padding, 1)]
    padded = F.pad(x, _flat((w.padding, w.padding + w.beyond) for w in windows))
    means = F.avg_pool2d(padded, kernel, stride or kernel)
    rows, columns = (np.array(w.counts(count_include_pad), np.float64) for w in windows)
    divisors = np.outer(rows, columns) if divisor_override is None else np.array(float(divisor_override))
    factors = windows[0].size * windows[1].size / divisors
    return means if (factors == 1).all() else means * torch.tensor(factors, dtype=x.dtype)


def _max_pool1d(
    x: Tensor, kernel: Ints, stride: Ints = (), padding: Ints = 0, dilation: Ints = 1, ceil_mode: bool = False
) -> Tensor:
    size, step, pads, gaps = _flat_settings((1, kernel), (1, stride or kernel), (0, padding), (1, dilation))
    return _max_pool2d(x.unsqueeze(2), size, step, pads, gaps, ceil_mode).squeeze(2)


def _avg_pool1d(
    x: Tensor,
    kernel: Ints,
    stride: Ints = (),
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    size, step, pads = _flat_settings((1, kernel), (1, stride or kernel), (0, padding))
    return _avg_pool2d(x.unsqueeze(2), size, step, pads, ceil_mode, count_include_pad).squeeze(2)


class _Windows:
    """The windows of a pool with ceil_mode along one axis.

    beyond  elements that the last window needs behind the padding

    >>> w = _Windows(5, 2, 2, 0, 1)
    >>> w.number, w.beyond, w.counts(True)
    (3, 1, [2, 2, 1])
    """

    def __init__(self, length: int, size: int, stride: int, padding: int, dilation: int) -> None:
        self.length, self.size, self.stride, self.padding = length, size, stride, padding
        reach = dilation * (size - 1) + 1
        self.number = -(-(length + 2 * padding - reach) // stride) + 1
        if (self.number - 1) * stride >= length + padding:  # the last window would begin in the padding behind
            self.number -= 1
        self.beyond = max((self.number - 1) * stride + reach - (length + 2 * padding), 0)

    def counts(self, include_padding: bool) -> list[int]:
        """How many elements each window's mean is over: what ceil_mode adds never counts."""
        found = []
        for start in range(-self.padding, self.number * self.stride - self.padding, self.stride):
            if include_padding:
                found.append(min(start + self.size, self.length + self.padding) - start)
            else:
                found.append(min(start + self.size, self.length) - max(start, 0))
        return found


def _conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """x [N, I, H, W], weight [I, O / groups, kh, kw]."""
    strides, paddings, extras, dilations = (_tuple(each, 2) for each in (stride, padding, output_padding, dilation))
    sizes = tuple(weight.shape[2:])
    if groups == 1 and dilations == (1, 1) and _native(sizes, strides, paddings, extras):
        return F.conv_transpose2d(x, weight, bias, strides, paddings, extras)
    for axis, step in enumerate(dilations):
        weight = _spread(weight, 2 + axis, step)
    late = any(extra > pad for extra, pad in zip(extras, paddings, strict=True))  # the bias is added after the padding
    pieces = []
    for number in range(groups):
        own = slice(number * weight.shape[0] // groups, (number + 1) * weight.shape[0] // groups)
        outputs = slice(number * weight.shape[1], (number + 1) * weight.shape[1])
        own_bias = None if bias is None or late else bias[outputs]
        pieces.append(F.conv_transpose2d(x[:, own], weight[own], own_bias, strides))
    whole = pieces[0] if groups == 1 else torch.cat(pieces, 1)
    missing = [max(extra - pad, 0) for extra, pad in zip(extras, paddings, strict=True)]
    if any(missing):
        whole = F.pad(whole, (0, missing[1], 0, missing[0]))
    for axis, (pad, extra) in enumerate(zip(paddings, extras, strict=True)):
        if pad:
            length = whole.shape[2 + axis] - missing[axis] - 2 * pad + extra
            whole = whole.narrow(2 + axis, pad, length)
    return whole + bias.view(1, -1, 1, 1) if bias is not None and late else whole


def _native(sizes: Sequence[int], strides: Sequence[int], paddings: Sequence[int], extras: Sequence[int]) -> bool:
    """Whether the padding is LiteRT's "VALID" (none) or its "SAME" (outputs = inputs x stride, equal at both ends)."""
    valid = not any(paddings) and not any(extras)
    return valid or (not any(extras) and all(k - s == 2 * p for k, s, p in zip(sizes, strides, paddings, strict=True)))


def _spread(weight: Tensor, axis: int, step: int) -> Tensor:
    """Zeros between the taps: [a, b, c], 2 -> [a, 0, b, 0, c]."""
    if step == 1:
        return weight
    taps = weight.unbind(axis)
    gap = torch.zeros_like(taps[0])
    spread = [taps[0]]
    for tap in taps[1:]:
        spread += [gap] * (step - 1) + [tap]
    return torch.stack(spread, axis)


def _conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    step, pads, extra, gaps = _flat_settings((1, stride), (0, padding), (0, output_padding), (1, dilation))
    flat = _conv_transpose2d(x.unsqueeze(2), weight.unsqueeze(2), bias, step, pads, extra, groups, gaps)
    return flat.squeeze(2)


def _conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    paddings = _tuple(padding, 3)
    if any(paddings):
        x = F.pad(x, _flat((each, each) for each in paddings))
    return F.conv3d(x, weight, bias, stride, 0, dilation, groups)


def _topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
    indices = torch.topk(x if largest else -x, k, dim)[1]
    return torch.gather(x, dim, indices), indices


def _sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    return _topk(x, int(x.shape[dim]), dim, descending)


def _argsort(x: Tensor, dim: int = -1, descending: bool = False) -> Tensor:
    return _sort(x, dim, descending)[1]


def _by_axis(x: Tensor, *settings: Ints) -> list[tuple[int, ...]]:
    """(length, and the settings) of each of the last two axes."""
    each = [_tuple(setting, 2) for setting in settings]
    return [(int(x.shape[2 + axis]), *(setting[axis] for setting in each)) for axis in (0, 1)]


def _tuple(value: Ints, count: int) -> tuple[int, ...]:
    """A setting of each axis: 2 -> (2, 2); [2] -> (2, 2)."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def _flat_settings(*settings: tuple[int, Ints]) -> list[tuple[int, ...]]:
    """Settings along one axis, after what holds along a first one of length 1."""
    return [(first, *_tuple(setting, 1)) for first, setting in settings]


def _flat(pads: Any) -> list[int]:
    """F.pad's order, last axis first: ((top, bottom), (left, right)) -> [left, right, top, bottom]."""
    return [each for pair in reversed(list(pads)) for each in pair]


_aten = torch.ops.aten
TRANSPOSED = (_aten.conv_transpose2d.input, _aten.conv_transpose1d.default)
RECURRENT = (_aten.lstm.input, _aten.gru.input, _aten.rnn_tanh.input, _aten.rnn_relu.input)
REWRITES: dict[Any, Callable[..., Any]] = {
    _aten.view.default: _view,
    _aten.instance_norm.default: _instance_norm,
    _aten.max_pool1d.default: _max_pool1d,
    _aten.max_pool2d.default: _max_pool2d,
    _aten.avg_pool1d.default: _avg_pool1d,
    _aten.avg_pool2d.default: _avg_pool2d,
    _aten.conv_transpose1d.default: _conv_transpose1d,
    _aten.conv_transpose2d.input: _conv_transpose2d,
    _aten.conv3d.default: _conv3d,
    _aten.topk.default: _topk,
    _aten.sort.default: _sort,
    _aten.argsort.default: _argsort,
}
