"""Padding around convolutions and pooling windows, as ONNX gives it: both sides apart, or "SAME"."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfit.sources.onnx.builder import CannotConvert
from pocketfit.sources.onnx.call import Call, Table

SAME = ("SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True)
class Window:
    """The window of a convolution or a pooling: one number for each dimension of the image."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]

    @property
    def reach(self) -> list[int]:
        """How many pixels the window spans."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]


def window(call: Call, kernel: Sequence[int]) -> Window:
    dims = len(kernel)
    given = list(call.get("kernel_shape", list(kernel)))
    if given != list(kernel):
        raise CannotConvert(f"its kernel_shape {given} is not that of its weights, {list(kernel)}")
    strides, dilations = list(call.get("strides", [1] * dims)), list(call.get("dilations", [1] * dims))
    numbers = (*given, *strides, *dilations)
    if len(strides) != dims or len(dilations) != dims or any(not 0 < number < 2**20 for number in numbers):
        raise CannotConvert("its kernel, strides or dilations are impossible")
    return Window(given, strides, dilations)


def pads(call: Call, dims: int) -> list[int]:
    given = list(call.get("pads", [0] * 2 * dims)) or [0] * 2 * dims
    if len(given) != 2 * dims or any(not 0 <= pad < 2**20 for pad in given):
        raise CannotConvert(f"its pads {given} are impossible")
    return given


def explicit(call: Call, window: Window) -> list[int] | str:
    """The padding [before, ..., behind, ...] where it is known, else "SAME_UPPER" or "SAME_LOWER"."""
    dims, mode = len(window.kernel), call.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * 2 * dims
    if mode not in SAME:
        return pads(call, dims)
    sizes = call.static(0)[2:]
    totals = []
    for size, stride, reach in zip(sizes, window.strides, window.reach, strict=True):
        if size is None and stride != 1:
            return str(mode)
        totals.append(reach - 1 if size is None else max((-(-size // stride) - 1) * stride + reach - size, 0))
    lower = [total - total // 2 if mode == "SAME_LOWER" else total // 2 for total in totals]
    return lower + [total - low for total, low in zip(totals, lower, strict=True)]


def before(call: Call, value: Any, window: Window, filler: float) -> tuple[Any, list[int]]:
    """The padded input, and what padding is left for the layer itself."""
    given, dims = explicit(call, window), len(window.kernel)
    if isinstance(given, str):
        padded = call.emit(pad_same, value, window.reach, window.strides, given == "SAME_UPPER", filler)
        return padded, [0] * dims
    if given[:dims] == given[dims:]:
        return value, given[:dims]
    return call.emit(F.pad, value, from_last(given), "constant", filler), [0] * dims


def from_last(pads: Sequence[Any]) -> list[Any]:
    """ONNX's order to torch's: [top, left, bottom, right] -> [left, right, top, bottom]; outer zeros are left out."""
    dims = len(pads) // 2
    turned = [pads[i + side * dims] for i in reversed(range(dims)) for side in (0, 1)]
    while len(turned) > 2 and all(isinstance(pad, int) and pad == 0 for pad in turned[-2:]):
        turned = turned[:-2]
    return turned


def pad_same(value: Tensor, reach: list[int], strides: list[int], upper: bool, filler: float) -> Tensor:
    """The value, padded so that the output has ceil(size / stride) pixels; an odd pixel goes behind (`upper`) or
    before."""
    pads: list[int] = []
    for dim in reversed(range(len(reach))):
        size = value.shape[2 + dim]
        out = (size + strides[dim] - 1) // strides[dim]
        total = torch.sym_max((out - 1) * strides[dim] + reach[dim] - size, 0)  # type: ignore[no-untyped-call]  # torch's has no hints
        half = total // 2
        pads += [half, total - half] if upper else [total - half, half]
    return F.pad(value, pads, value=filler)


def cut(call: Call, window: Window) -> list[int] | list[Any]:
    """How much of a transposed convolution's output is cropped: [before, ..., behind, ...]; negative: zeros added."""
    dims, mode = len(window.kernel), call.get("auto_pad", "NOTSET")
    wanted = call.get("output_shape", None)
    if mode == "VALID":
        return [0] * 2 * dims
    if mode not in SAME and wanted is None:
        return pads(call, dims)
    sizes, extra = call.static(0)[2:], list(call.get("output_padding", [0] * dims))
    totals = []
    for i, (stride, reach) in enumerate(zip(window.strides, window.reach, strict=True)):
        if wanted is not None:
            size = sizes[i]
            if size is None:
                raise CannotConvert("its output_shape fits one input size only: export it with pads")
            totals.append((size - 1) * stride + extra[i] + reach - wanted[-dims:][i])
        else:
            totals.append(extra[i] + reach - stride)
    first = [total - total // 2 if mode == "SAME_LOWER" else total // 2 for total in totals]
    if mode == "NOTSET":
        first = [total - total // 2 if total > 0 else 0 for total in totals]  # what is missing is added behind
    return first + [total - half for total, half in zip(totals, first, strict=True)]


def trimmed(call: Call, value: Any, cut: list[int]) -> Any:
    dims = len(cut) // 2
    if any(number < 0 for number in cut):
        return call.emit(F.pad, value, from_last([-number for number in cut]))
    keep = tuple(slice(low or None, -high if high else None) for low, high in zip(cut[:dims], cut[dims:], strict=True))
    return call.emit(operator.getitem, value, (slice(None), slice(None), *keep))


def pad(call: Call) -> Any:
    """Pad, with pads [begin, ..., end, ...] for all dimensions, or for those of `axes`."""
    value, mode = call.tensor(0), call.get("mode", "constant")
    rank = call.rank(0)
    if call.version >= 11:
        given, filler = call.integers(1), call.number(2, 0)
    else:
        given, filler = list(call.get("pads", None) or call.get("paddings", [])), call.get("value", 0.0)
    axes = [axis % max(rank, 1) for axis in call.integers(3)] if call.has(3) else list(range(rank))
    if len(given) != 2 * len(axes):
        raise CannotConvert(f"it has {len(given)} pads for {len(axes)} dimensions")
    whole = [0] * 2 * rank
    for i, axis in enumerate(axes):
        whole[axis], whole[axis + rank] = given[i], given[i + len(axes)]
    if all(isinstance(number, int) and number == 0 for number in whole):
        return value
    if mode == "constant":
        filler = filler if call.meta(0).is_floating_point() else int(filler)
        return call.emit(pad_constant, value, from_last(whole), filler)
    return _mirrored(call, value, whole, mode)


def pad_constant(value: Tensor, pads: list[int], filler: Any) -> Tensor:
    """Padding with a constant, also of booleans, which torch does not pad."""
    if value.dtype is torch.bool:
        return F.pad(value.to(torch.uint8), pads, value=int(filler)).bool()
    return F.pad(value, pads, value=filler)


def _mirrored(call: Call, value: Any, whole: list[Any], mode: str) -> Any:
    """reflect, edge, wrap: torch's own for the last dimensions of images, else each dimension by index."""
    rank = len(whole) // 2
    turned = from_last(whole)
    known = all(isinstance(pad, int) for pad in whole)
    torch_mode = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}.get(mode)
    if torch_mode is None:
        raise CannotConvert(f"it pads by {mode!r}, which torch has not")
    turned += [0] * (2 * (rank - 2) - len(turned))
    if rank in (3, 4, 5) and len(turned) == 2 * (rank - 2) and known and min(turned) >= 0 and mode != "wrap":
        return call.emit(F.pad, value, turned, torch_mode)
    for dim in range(rank):
        low, high = whole[dim], whole[dim + rank]
        if (low, high) != (0, 0):
            value = call.emit(pad_by_index, value, dim, low, high, mode)
    return value


def pad_by_index(value: Tensor, dim: int, low: int, high: int, mode: str) -> Tensor:
    """One dimension, padded from inside: reflect c b | a b c d, edge a a | a b c d, wrap c d | a b c d."""
    size = value.shape[dim]
    index = torch.arange(-low, size + high, device=value.device)
    if mode == "edge":
        index = index.clamp(0, size - 1)
    elif mode == "wrap":
        index = index % size
    else:
        period = max(2 * (size - 1), 1)
        index = index % period
        index = torch.where(index < size, index, period - index)
    return value.index_select(dim, index)


TABLE: Table = {"Pad": pad}
