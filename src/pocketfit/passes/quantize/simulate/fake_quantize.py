"""Fake quantization with gradients: the twin of numerics/affine.py that training can go through.

Rounding passes the gradient on unchanged (straight-through, Bengio et al. 2013), clipped values pass none; step sizes
and ranges learn as in LSQ (Esser et al. 2020, section 2.1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LEVELS = 256  # of an activation with 8 bits


def largest_integer(bits: int) -> int:
    """The end of a symmetric grid around the zero point 0: 127 for 8 bits, 7 for 4; -128 and -8 stay unused.

    >>> largest_integer(8), largest_integer(4)
    (127, 7)
    """
    return int(2 ** (bits - 1) - 1)


def widest_scale(weight: Tensor, bits: int, axis: int = 0) -> Tensor:
    """The scales that a runtime's quantizer gives a weight, max / 127 for 8 bits, shaped to broadcast along `axis`.

    The twin of numerics.affine.symmetric_scale.

    >>> widest_scale(torch.tensor([[0.5, -1.27], [0.0, 0.0]]), 8)
    tensor([[0.0100],
            [1.0000]])
    """
    others = [d for d in range(weight.ndim) if d != axis]
    largest = weight.detach().abs().amax(others, keepdim=True) if others else weight.detach().abs()
    scale = largest.double().div(largest_integer(bits)).float()
    return torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)


def fake_weight(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The weight on its grid, zero point 0; `scale` broadcasts against it and may learn."""
    rounded: Tensor = _Weight.apply(weight, scale, largest_integer(bits))  # type: ignore[no-untyped-call]  # torch's has no hints
    return rounded


def fake_activation(values: Tensor, low: Tensor, high: Tensor, levels: int = LEVELS) -> Tensor:
    """The values on the grid of the range [low, high]; both ends are tensors with one number and may learn."""
    rounded: Tensor = _Activation.apply(values, low, high, levels)  # type: ignore[no-untyped-call]  # torch's has no hints
    return rounded


def grid_of(low: float, high: float, levels: int = LEVELS) -> tuple[float, int]:
    """(scale, zero point counted from the lowest integer) of a range, widened to hold zero.

    The twin of numerics.affine.scale_from_range.

    >>> grid_of(-1.0, 1.55)[1], grid_of(0.0, 255.0)
    (100, (1.0, 0))
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (levels - 1)
    if scale < torch.finfo(torch.float32).tiny:
        return 1.0, 0
    return scale, int(min(max(round(-low / scale), 0), levels - 1))


class _Weight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, largest: int) -> Tensor:
        ratio = weight / scale
        integers = ratio.round().clamp_(-largest, largest)
        ctx.save_for_backward(ratio, integers)
        ctx.largest, ctx.shape = largest, scale.shape
        return integers * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (ratio, integers) = gradients, ctx.saved_tensors
        inside = ratio.abs() <= ctx.largest
        to_scale = None
        if ctx.needs_input_grad[1]:
            to_scale = (torch.where(inside, integers - ratio, integers) * gradient).sum_to_size(ctx.shape)
        return gradient * inside, to_scale, None


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, low: Tensor, high: Tensor, levels: int) -> Tensor:
        scale, zero = grid_of(float(low), float(high), levels)
        # What torch.fake_quantize_per_tensor_affine does, which on a CPU takes seven times as long as these four.
        inverse = 1 / torch.tensor(scale, dtype=torch.float32)
        rounded = values.mul(inverse).round_().clamp_(-zero, levels - 1 - zero).mul_(scale)
        ctx.save_for_backward(values, rounded)
        ctx.ends = -zero * scale, (levels - 1 - zero) * scale
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (values, rounded), (bottom, top) = gradients, ctx.saved_tensors, ctx.ends
        to_values = torch.ops.aten.hardtanh_backward(gradient, values, bottom, top)  # one pass over the tensor
        to_low = to_high = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            # Inside, a value moves with the step (top - bottom) / levels; what is clipped moves with its end.
            inside = (rounded - values).mul_(to_values).sum() / (top - bottom)
            below = gradient.masked_fill(values > bottom, 0).sum() if ctx.needs_input_grad[1] else 0.0
            to_low = below - inside
            to_high = gradient.sum() - to_values.sum() - below + inside
        return to_values, to_low, to_high, None
