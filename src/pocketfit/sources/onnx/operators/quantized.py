"""Stored integers that stand for float weights: they become the weights. Anything else on integers is refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pocketfit.sources.onnx.builder import CannotConvert
from pocketfit.sources.onnx.call import Call, Table, dim_of
from pocketfit.sources.onnx.refusals import INTEGER


def dequantize(call: Call) -> Any:
    if call.stored(0) is None:
        raise CannotConvert(f"it {INTEGER}")
    zero = call.constant(2) if call.has(2) else None
    rank = call.rank(0)
    axis = dim_of(call.get("axis", 1), rank) if rank > 1 and call.rank(1) else 0
    return call.emit(floats, call.constant(0), call.constant(1), zero, axis, call.get("block_size", 0))


def floats(values: Tensor, scale: Tensor, zero: Tensor | None, axis: int, block: int) -> Tensor:
    """(values - zero) scale, with one scale for all, for each entry along `axis`, or for each block along it."""

    def spread(numbers: Tensor) -> Tensor:
        if numbers.ndim == 1 and values.ndim > 1 and numbers.numel() > 1 and not block:
            return numbers.view([-1 if dim == axis else 1 for dim in range(values.ndim)])
        if block:
            return numbers.repeat_interleave(block, axis).narrow(axis, 0, values.shape[axis])
        return numbers

    kind = scale.dtype
    numbers = values.to(torch.float32)
    if zero is not None:
        numbers = numbers - spread(zero.to(torch.float32))
    return (numbers * spread(scale.to(torch.float32))).to(kind)


TABLE: Table = {"DequantizeLinear": dequantize}
