"""Pooling, and rearranging pixels into channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketfit.sources.onnx.builder import CannotConvert, meta
from pocketfit.sources.onnx.call import Call, Table
from pocketfit.sources.onnx.operators import padding

MAX_POOLS: tuple[Any, ...] = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
AVERAGE_POOLS: tuple[Any, ...] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
GLOBAL = {3: nn.AdaptiveAvgPool1d, 4: nn.AdaptiveAvgPool2d, 5: nn.AdaptiveAvgPool3d}


def _window(call: Call) -> tuple[padding.Window, int]:
    window = padding.window(call, list(call.get("kernel_shape")))
    dims = len(window.kernel)
    if not 1 <= dims <= 3 or call.rank(0) != dims + 2:
        raise CannotConvert(f"it pools {dims} dimensions of a tensor with {call.rank(0)}")
    return window, dims


def max_pool(call: Call) -> Any:
    window, dims = _window(call)
    call.must("storage_order", 0, default=0)
    places = len(call.node.outputs) > 1 and bool(call.node.outputs[1])
    value, ceil = call.tensor(0), bool(call.get("ceil_mode", 0))
    given = padding.explicit(call, window)
    if not meta(value).is_floating_point():
        raise CannotConvert("it pools integers")
    if isinstance(given, str) or given[:dims] != given[dims:] or _wide(given, window):
        if places:
            raise CannotConvert("it says where it found the largest pixels of an unevenly padded image")
        if isinstance(given, str):
            value, _ = padding.before(call, value, window, float("-inf"))
        else:
            value = call.emit(F.pad, value, padding.from_last(given), "constant", float("-inf"))
        given = [0] * 2 * dims
    layer = MAX_POOLS[dims - 1](
        tuple(window.kernel), tuple(window.strides), tuple(given[:dims]), tuple(window.dilations), places, ceil
    )
    result = call.activation(layer, value)
    if not places:
        return result
    largest, where = call.pick(result, 2)
    return largest, call.emit(whole_index, where, value)


def _wide(pads: list[int], window: padding.Window) -> bool:
    """Whether padding is wider than half a window, which torch's pooling does not take."""
    return any(2 * pad > kernel for pad, kernel in zip(pads, window.kernel, strict=False))


def whole_index(where: Tensor, value: Tensor) -> Tensor:
    """The indices counted through the whole tensor, as ONNX does; torch counts within each channel."""
    pixels = value[0, 0].numel()
    channels = torch.arange(value.shape[0] * value.shape[1], device=value.device) * pixels
    return where + channels.view(value.shape[0], value.shape[1], *[1] * (value.ndim - 2))


def average_pool(call: Call) -> Any:
    window, dims = _window(call)
    given = padding.explicit(call, window)
    ceil, include = bool(call.get("ceil_mode", 0)), bool(call.get("count_include_pad", 0))
    plain = not isinstance(given, str) and given[:dims] == given[dims:] and not _wide(given, window)
    if plain and set(window.dilations) == {1}:
        sizes = (tuple(window.kernel), tuple(window.strides), tuple(given[:dims]))
        layer: Any = AVERAGE_POOLS[dims - 1](*sizes, ceil, include or not any(given))
        return call.activation(layer, call.tensor(0))
    if isinstance(given, str):
        value, _ = padding.before(call, call.tensor(0), window, 0.0)
        ones, _ = padding.before(call, call.emit(torch.ones_like, call.tensor(0)), window, 1.0 if include else 0.0)
        return call.emit(
            average_of, value, ones, window.kernel, window.strides, window.dilations, [0] * 2 * dims, ceil, include
        )
    ones = call.emit(torch.ones_like, call.tensor(0))
    return call.emit(
        average_of, call.tensor(0), ones, window.kernel, window.strides, window.dilations, given, ceil, include
    )


def average_of(
    value: Tensor,
    ones: Tensor,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    pads: list[int],
    ceil: bool,
    include: bool,
) -> Tensor:
    """Average pooling: the sum of each window divided by the number of its pixels that count."""
    total = window_sum(value, kernel, strides, dilations, pads, ceil, 0.0)
    counted = window_sum(ones, kernel, strides, dilations, pads, ceil, 1.0 if include else 0.0)
    return total / counted


def window_sum(
    value: Tensor,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    pads: list[int],
    ceil: bool,
    filler: float,
) -> Tensor:
    """The sum of all pixels under each window: [N, C, ...]. Pixels that `ceil` adds at the end count 0."""
    dims = len(kernel)
    padded = F.pad(value, padding.from_last(pads), value=filler)
    if ceil:
        more = []
        for i in reversed(range(dims)):
            size, reach = padded.shape[2 + i], (kernel[i] - 1) * dilations[i] + 1
            last = (size - reach + strides[i] - 1) // strides[i] * strides[i]
            inside = last < value.shape[2 + i] + pads[i]  # the last window must begin on the image
            more += [0, max(last + reach - size, 0) if inside else 0]
        padded = F.pad(padded, more)
    flat = padded.reshape(-1, 1, *padded.shape[2:])
    function = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    ones = torch.ones((1, 1, *kernel), dtype=value.dtype, device=value.device)
    sums = function(flat, ones, None, strides, 0, dilations)
    return sums.reshape(*value.shape[:2], *sums.shape[2:])


def lp_pool(call: Call) -> Any:
    """The p-norm of each window."""
    window, dims = _window(call)
    given, ceil, p = padding.explicit(call, window), bool(call.get("ceil_mode", 0)), call.get("p", 2)
    value = call.tensor(0)
    if isinstance(given, str):
        value, _ = padding.before(call, value, window, 0.0)
        given = [0] * 2 * dims
    return call.emit(norm_of_windows, value, p, window.kernel, window.strides, window.dilations, given, ceil)


def norm_of_windows(
    value: Tensor, p: int, kernel: list[int], strides: list[int], dilations: list[int], pads: list[int], ceil: bool
) -> Tensor:
    return window_sum(value.abs() ** p, kernel, strides, dilations, pads, ceil, 0.0) ** (1 / p)


def global_average(call: Call) -> Any:
    layer = GLOBAL.get(call.rank(0))
    if layer is None:
        raise CannotConvert(f"it pools a tensor with {call.rank(0)} dimensions")
    return call.activation(layer(1), call.tensor(0))


def global_max(call: Call) -> Any:
    return call.emit(torch.amax, call.tensor(0), list(range(2, call.rank(0))), True)


def global_norm(call: Call) -> Any:
    dims = list(range(2, call.rank(0)))
    return call.emit(torch.linalg.vector_norm, call.tensor(0), call.get("p", 2), dims, True)


def max_unpool(call: Call) -> Any:
    """MaxUnpool: each value goes back to where it was the largest, with zeros elsewhere."""
    window, dims = _window(call)
    if call.has(2):
        shape = call.integers(2)
    else:
        given = padding.pads(call, dims)
        sizes = [
            (size - 1) * s - low - high + reach if size is not None else None
            for size, s, low, high, reach in zip(
                call.static(0)[2:], window.strides, given[:dims], given[dims:], window.reach, strict=True
            )
        ]
        shape = [*call.static(0)[:2], *sizes]
        own = shape
        if None in own:
            raise CannotConvert("it fits one input size only")
    inner = call.static(0)[:2] + [
        (size - 1) * s + reach if size is not None else None
        for size, s, reach in zip(call.static(0)[2:], window.strides, window.reach, strict=True)
    ]
    if None in inner:
        raise CannotConvert("it fits one input size only")
    return call.emit(unpooled, call.tensor(0), call.tensor(1), shape, inner)


def unpooled(values: Tensor, places: Tensor, shape: list[int], counted_in: list[int]) -> Tensor:
    """`places` count through a tensor of shape `counted_in`, whose corner is the same as that of the result."""
    flat = torch.zeros(counted_in, dtype=values.dtype, device=values.device).flatten()
    whole = flat.scatter(0, places.flatten(), values.flatten()).view(counted_in)
    pads = [wanted - there for there, wanted in zip(counted_in, shape, strict=True)]
    return F.pad(whole, [number for pad in reversed(pads) for number in (0, pad)])


def depth_to_space(call: Call) -> Any:
    block, mode = call.get("blocksize"), call.get("mode", "DCR")
    if mode == "CRD":
        return call.activation(nn.PixelShuffle(block), call.tensor(0))
    return call.emit(channels_to_pixels, call.tensor(0), block)


def space_to_depth(call: Call) -> Any:
    block = call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return call.activation(nn.PixelUnshuffle(block), call.tensor(0))
    return call.emit(pixels_to_channels, call.tensor(0), block)


def channels_to_pixels(value: Tensor, block: int) -> Tensor:
    """[N, b b C, H, W] -> [N, C, H b, W b]: the channels of one pixel of each block lie side by side."""
    n, _, height, width = value.shape
    parts = value.reshape(n, block, block, -1, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, -1, height * block, width * block)


def pixels_to_channels(value: Tensor, block: int) -> Tensor:
    """The inverse: [N, C, H b, W b] -> [N, b b C, H, W]."""
    n, channels, height, width = value.shape
    parts = value.reshape(n, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, -1, height // block, width // block)


def col2im(call: Call) -> Any:
    dims = len(call.integers(1))
    pads = list(call.get("pads", [0] * 2 * dims))
    if dims != 2 or pads[:dims] != pads[dims:]:
        raise CannotConvert("torch folds images of two dimensions that are padded evenly only")
    strides, dilations = call.get("strides", [1] * dims), call.get("dilations", [1] * dims)
    return call.emit(F.fold, call.tensor(0), call.integers(1), call.integers(2), dilations, pads[:dims], strides)


TABLE: Table = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalAveragePool": global_average,
    "GlobalMaxPool": global_max,
    "GlobalLpPool": global_norm,
    "MaxUnpool": max_unpool,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Col2Im": col2im,
}
