"""Resize and Upsample: torch's interpolation where it is the same, else one matrix for each resized dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx

from pocketfit.sources.onnx.builder import CannotConvert, Constant
from pocketfit.sources.onnx.call import Call, Table

KINDS = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}
MOST_WEIGHTS = 2**24


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How positions of the output become positions of the input, and how pixels are mixed there."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool
    extrapolation: float
    antialias: bool


def resize(call: Call) -> Any:
    rule = Rule(
        mode=call.get("mode", "nearest"),
        coordinates=call.get("coordinate_transformation_mode", "half_pixel" if call.version >= 11 else "asymmetric"),
        nearest=call.get("nearest_mode", "round_prefer_floor" if call.version >= 11 else "floor"),
        cubic=call.get("cubic_coeff_a", -0.75),
        exclude_outside=bool(call.get("exclude_outside", 0)),
        extrapolation=call.get("extrapolation_value", 0.0),
        antialias=bool(call.get("antialias", 0)),
    )
    if rule.mode not in KINDS:
        raise CannotConvert(f"it resizes by {rule.mode!r}, which torch has not")
    scales, sizes, regions = _targets(call)
    rank = call.rank(0)
    if rule.coordinates != "tf_crop_and_resize" and rank > 2:
        plain = _by_torch(call, rule, scales, sizes)
        if plain is not None:
            return plain
    return _by_matrices(call, rule, scales, sizes, regions)


def upsample(call: Call) -> Any:
    """Upsample, of operator sets before 10."""
    if call.version >= 9:
        scales = [float(scale) for scale in call.constant(1).tensor.tolist()]
    elif "scales" in call.node.attributes:
        scales = list(call.get("scales"))
    else:
        scales = [1.0, 1.0, call.get("height_scale"), call.get("width_scale")]
    rule = Rule(
        mode=call.get("mode", "nearest").replace("bilinear", "linear"),
        coordinates="asymmetric",
        nearest="floor",
        cubic=-0.75,
        exclude_outside=False,
        extrapolation=0,
        antialias=False,
    )
    return _by_torch(call, rule, scales, None) or _by_matrices(call, rule, scales, None, None)


def _targets(call: Call) -> tuple[list[float] | None, list[Any] | None, list[float] | None]:
    """(scales for all dimensions, or sizes for all; regions of the input to resize); None where not given."""
    rank, shape = call.rank(0), call.static(0)
    place = 2 if call.version >= 11 else 1
    axes = [axis % rank for axis in call.get("axes", range(rank))]
    given = call.stored(place)
    scales = None
    if given is not None and given.tensor.numel():
        scales = [1.0] * rank
        for axis, scale in zip(axes, given.tensor.tolist(), strict=True):
            scales[axis] = float(scale)
        if not all(0 < scale < 2**20 for scale in scales):
            raise CannotConvert(f"its scales {scales} are impossible")
    elif call.has(place) and given is None and not call.has(3):
        raise CannotConvert("its scales are computed from the network's inputs")
    sizes: list[Any] | None = None
    if scales is None:
        wanted = call.integers(3)
        source = cast(fx.Node, call.tensor(0))  # of a constant every size is known
        sizes = [call.build.size(source, d) if s is None else s for d, s in enumerate(shape)]
        for axis, size in zip(axes, wanted, strict=True):
            sizes[axis] = size
        sizes = _kept_ratio(call, sizes, axes)
    regions = None
    roi = call.stored(1) if call.version >= 11 else None
    if roi is not None and roi.tensor.numel() == 2 * len(axes):
        regions = [0.0] * rank + [1.0] * rank
        for i, axis in enumerate(axes):
            regions[axis], regions[axis + rank] = (float(roi.tensor[i + k * len(axes)]) for k in (0, 1))
    return scales, sizes, regions


def _kept_ratio(call: Call, sizes: list[Any], axes: list[int]) -> list[Any]:
    policy = call.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return sizes
    shape = call.static(0)
    ratios = [sizes[axis] / there for axis in axes if (there := shape[axis]) and isinstance(sizes[axis], int)]
    if len(ratios) != len(axes):
        raise CannotConvert("it keeps the ratio of sides that are not known")
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    for axis in axes:
        sizes[axis] = math.floor(scale * (shape[axis] or 0) + 0.5)
    return sizes


def _by_torch(call: Call, rule: Rule, scales: list[float] | None, sizes: list[Any] | None) -> Any:
    """F.interpolate where it does the same; None where it doesn't."""
    rank, shape = call.rank(0), call.static(0)
    if not 3 <= rank <= 5 or not call.meta(0).is_floating_point():
        return None
    for dim in range(2):
        if (scales and scales[dim] != 1) or (sizes and sizes[dim] != shape[dim] and isinstance(sizes[dim], int)):
            return None
    whole = scales is not None and all(scale.is_integer() for scale in scales)
    mode, corners = _torch_mode(rule, rank, whole, one_pixel=1 in (sizes or [])[2:])
    if mode is None or rule.antialias:  # torch leaves pixels outside out, ONNX repeats the border
        return None
    options: dict[str, Any] = {"mode": mode}
    if mode not in ("nearest", "nearest-exact"):
        options["align_corners"] = corners
    if scales is not None:
        if corners and not whole:
            raise CannotConvert("ONNX Runtime and the standard differ on scales that are no whole numbers here")
        return call.emit(F.interpolate, call.tensor(0), scale_factor=scales[2:], **options)
    return call.emit(F.interpolate, call.tensor(0), size=(sizes or [])[2:], **options)


def _torch_mode(rule: Rule, rank: int, whole: bool, *, one_pixel: bool) -> tuple[str | None, bool]:
    half = rule.coordinates in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
    if rule.mode == "nearest":
        if rule.coordinates == "asymmetric" and rule.nearest == "floor":
            return "nearest", False
        # Enlarged by a whole factor, no pixel lies halfway between two others: all roundings are the same.
        usual = rule.nearest in ("round_prefer_floor", "round_prefer_ceil")
        return ("nearest" if whole and half and usual else None), False
    if rule.coordinates == "pytorch_half_pixel" and one_pixel:
        return None, False  # torch takes the middle there, ONNX the first pixel
    smooth = rule.coordinates == "align_corners" or (half and rule.coordinates != "half_pixel_symmetric")
    if not smooth or rule.exclude_outside or (rule.mode == "cubic" and (rank != 4 or rule.cubic != -0.75)):
        return None, False
    name = {3: "linear", 4: KINDS[rule.mode], 5: "trilinear"}[rank]
    return name, rule.coordinates == "align_corners"


def _by_matrices(
    call: Call, rule: Rule, scales: list[float] | None, sizes: list[Any] | None, regions: list[float] | None
) -> Any:
    """Each dimension by a matrix [output, input], which needs sizes that are known."""
    shape, rank = call.static(0), call.rank(0)
    result: Any = call.tensor(0)
    for dim in range(rank):
        there = shape[dim]
        scale = scales[dim] if scales else None
        size = sizes[dim] if sizes else None
        region = (regions[dim], regions[dim + rank]) if regions else (0.0, 1.0)
        if scale == 1 or (size is not None and size == there) or (size is not None and not isinstance(size, int)):
            if size is None or isinstance(size, int):
                if rule.coordinates != "tf_crop_and_resize" or region == (0.0, 1.0):
                    continue
            elif there is None:
                continue
        if there is None:
            raise CannotConvert("torch has this kind of resizing for known sizes only: fix them (sizes=...)")
        outputs = int(size) if size is not None else math.floor(there * (scale or 1))
        if outputs * there > MOST_WEIGHTS or outputs < 1:
            raise CannotConvert(f"it resizes {there} pixels to {outputs}")
        numbers, outside = matrix(rule, there, outputs, scale or outputs / there, region)
        weights = Constant(torch.from_numpy(numbers).to(call.meta(0).dtype), f"resize_{dim}")
        result = call.emit(mixed, result, weights, dim)
        if outside.any():
            result = call.emit(
                filled, result, Constant(torch.from_numpy(outside), f"outside_{dim}"), dim, rule.extrapolation
            )
    return result


def mixed(value: Tensor, weights: Tensor, dim: int) -> Tensor:
    """weights [outputs, inputs] applied along `dim`."""
    if not value.is_floating_point():
        return mixed(value.double(), weights.double(), dim).to(value.dtype)
    return (value.movedim(dim, -1) @ weights.t()).movedim(-1, dim)


def filled(value: Tensor, outside: Tensor, dim: int, filler: float) -> Tensor:
    shape = [-1 if d == dim else 1 for d in range(value.ndim)]
    return torch.where(outside.view(shape), torch.full_like(value, filler), value)


def matrix(
    rule: Rule, inputs: int, outputs: int, scale: float, region: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """[outputs, inputs]: the weight of each input pixel in each output pixel; and which outputs lie outside the input.

    Formulas: ONNX's description of Resize, operator set 19.
    """
    weights = np.zeros((outputs, inputs))
    outside = np.zeros(outputs, bool)
    for row in range(outputs):
        place = _place(rule.coordinates, row, inputs, outputs, scale, region)
        if rule.coordinates == "tf_crop_and_resize" and not 0 <= place <= inputs - 1:
            outside[row] = True
            continue
        if rule.mode == "nearest":
            weights[row, min(max(_rounded(rule.nearest, place), 0), inputs - 1)] = 1
            continue
        for pixel, share in _shares(rule, place, min(scale, 1.0) if rule.antialias else 1.0):
            if not 0 <= pixel < inputs and rule.exclude_outside:
                continue
            weights[row, min(max(pixel, 0), inputs - 1)] += share
        weights[row] /= weights[row].sum()
    return weights, outside


def _place(coordinates: str, row: int, inputs: int, outputs: int, scale: float, region: tuple[float, float]) -> float:
    start, end = region
    if coordinates == "align_corners":
        return 0.0 if outputs == 1 else row * (inputs - 1) / (outputs - 1)
    if coordinates == "asymmetric":
        return row / scale
    if coordinates == "tf_crop_and_resize":
        if outputs == 1:
            return 0.5 * (start + end) * (inputs - 1)
        return start * (inputs - 1) + row * (end - start) * (inputs - 1) / (outputs - 1)
    if coordinates == "pytorch_half_pixel" and outputs == 1:
        return 0.0
    place = (row + 0.5) / scale - 0.5
    if coordinates == "half_pixel_symmetric":
        adjusted = outputs / (scale * inputs)
        place += inputs / 2 * (1 - adjusted)
    elif coordinates not in ("half_pixel", "pytorch_half_pixel"):
        raise CannotConvert(f"its coordinates are {coordinates!r}, which torch has not")
    return place


def _rounded(mode: str, place: float) -> int:
    if mode == "floor":
        return math.floor(place)
    if mode == "ceil":
        return math.ceil(place)
    return math.ceil(place - 0.5) if mode == "round_prefer_floor" else math.floor(place + 0.5)


def _shares(rule: Rule, place: float, shrink: float) -> list[tuple[int, float]]:
    """Pixels around a place, with their weights; `shrink` widens the filter where an image gets smaller."""
    reach = (1.0 if rule.mode == "linear" else 2.0) / shrink
    pixels = range(math.floor(place - reach) + 1, math.floor(place + reach) + 1)
    kernel = _linear if rule.mode == "linear" else _cubic
    return [(pixel, kernel((place - pixel) * shrink, rule.cubic)) for pixel in pixels]


def _linear(distance: float, _: float) -> float:
    return max(1 - abs(distance), 0.0)


def _cubic(distance: float, a: float) -> float:
    """The cubic kernel of Keys 1981, with parameter a."""
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


TABLE: Table = {"Resize": resize, "Upsample": upsample}
