"""Affine quantization: real = (q - zero_point) * scale.

Jacob et al. 2018, section 2.1. Rounding is half to even (IEEE 754), out of range saturates. Integers equal those of
torch.quantize_per_tensor and of ONNX QuantizeLinear, except where a value divided by the scale lies on a tie that one
of them reaches through the reciprocal of the scale.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Number = TypeVar("Number", np.float32, np.int64)


def quantize(
    values: ArrayLike, scale: ArrayLike, zero_point: ArrayLike = 0, dtype: str = "int8", *, axis: int | None = None
) -> NDArray[np.generic]:
    """Real values -> integers of `dtype`; `scale` and `zero_point` per tensor, or [channels] along `axis`.

    >>> quantize([0.0, 0.25, 0.75, 9.0], 0.5)
    array([ 0,  0,  2, 18], dtype=int8)
    >>> quantize([[1.0, 2.0], [1.0, 2.0]], [1.0, 0.5], axis=0)
    array([[1, 2],
           [2, 4]], dtype=int8)
    """
    real = np.asarray(values, np.float32)
    step = _along(np.asarray(scale, np.float32), real.ndim, axis)
    zero = _along(np.asarray(zero_point, np.int64), real.ndim, axis)
    if not np.all(step > 0) or not np.all(np.isfinite(step)):
        raise ValueError("a scale must be positive and finite")
    limits = np.iinfo(dtype)
    # float64 holds every sum of a rounded float32 and a zero point; float32 does not
    grid = np.rint(real / step).astype(np.float64) + zero
    if np.any(np.isnan(grid)):
        raise ValueError("NaN has no integer")
    integers: NDArray[np.generic] = np.clip(grid, limits.min, limits.max).astype(dtype)
    return integers


def dequantize(
    integers: ArrayLike, scale: ArrayLike, zero_point: ArrayLike = 0, *, axis: int | None = None
) -> NDArray[np.float32]:
    """Integers -> real values, float32.

    >>> dequantize(np.array([130, 128], np.uint8), 0.5, 128)
    array([1., 0.], dtype=float32)
    """
    grid = np.asarray(integers).astype(np.int64)
    step = _along(np.asarray(scale, np.float32), grid.ndim, axis)
    zero = _along(np.asarray(zero_point, np.int64), grid.ndim, axis)
    real: NDArray[np.float32] = (grid - zero).astype(np.float32) * step
    return real


def fake_quantize(
    values: ArrayLike, scale: ArrayLike, zero_point: ArrayLike = 0, dtype: str = "int8", *, axis: int | None = None
) -> NDArray[np.float32]:
    """The values after quantization and dequantization.

    >>> fake_quantize([0.2, 0.3], 0.5)
    array([0. , 0.5], dtype=float32)
    """
    return dequantize(quantize(values, scale, zero_point, dtype, axis=axis), scale, zero_point, axis=axis)


def scale_from_range(
    low: ArrayLike, high: ArrayLike, dtype: str = "int8"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Asymmetric scale and zero point of the range [low, high]; each a number or [channels].

    The range is widened to hold 0, which then has an exact integer (zero padding relies on it). A range of zero width
    gets scale 1.

    >>> scale_from_range(-1.0, 1.55, "uint8")
    (array(0.01, dtype=float32), array(100))
    """
    bottom = np.minimum(np.asarray(low, np.float64), 0.0)
    top = np.maximum(np.asarray(high, np.float64), 0.0)
    if not (np.all(np.isfinite(bottom)) and np.all(np.isfinite(top))):
        raise ValueError("a range must be finite")
    limits = np.iinfo(dtype)
    scale = np.asarray(_usable((top - bottom) / (limits.max - limits.min)))
    zero = np.clip(np.rint(limits.min - bottom / scale), limits.min, limits.max)
    return scale, np.asarray(zero, np.int64)


def symmetric_scale(largest: ArrayLike, bits: int = 8) -> NDArray[np.float32]:
    """Scale of a range [-largest, largest] with zero point 0 and narrow range: largest / 127 for 8 bits.

    -128 stays unused: XNNPACK's and ONNX Runtime's kernels ask for weights in [-127, 127].

    >>> symmetric_scale(1.27)
    array(0.01, dtype=float32)
    """
    width = np.abs(np.asarray(largest, np.float64))
    if not np.all(np.isfinite(width)):
        raise ValueError("a range must be finite")
    return np.asarray(_usable(width / (2 ** (bits - 1) - 1)))


def _usable(scale: NDArray[np.float64]) -> NDArray[np.float32]:
    """1 in place of a scale that is zero, or would be a denormal in float32 (kernels flush those to zero)."""
    return np.where(scale < np.finfo(np.float32).tiny, 1.0, scale).astype(np.float32)


def _along(array: NDArray[Number], ndim: int, axis: int | None) -> NDArray[Number]:
    """A number as it is; [channels] shaped so that they lie along `axis` of `ndim` dimensions."""
    if array.ndim == 0:
        return array
    if array.ndim > 1 or (axis is None and array.size > 1):
        raise ValueError("several scales need the axis along which they lie")
    if axis is None:
        return array.reshape(())
    shape = [1] * ndim
    shape[axis] = array.size
    return array.reshape(shape)
