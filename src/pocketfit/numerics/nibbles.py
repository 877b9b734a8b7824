"""Integers of 4 bits, two in a byte, as TensorFlow Lite's INT4 and ONNX's INT4 store them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def unpack_int4(packed: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    """[ceil(count / 2)] bytes -> [count] integers from -8 to 7; the first of each pair is in the lower half.

    >>> unpack_int4(np.array([0x1F, 0x07], np.uint8), 3)
    array([-1,  1,  7], dtype=int8)
    """
    pairs = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[:count].astype(np.int8)
    return np.where(pairs > 7, pairs - 16, pairs).astype(np.int8)


def pack_int4(integers: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The inverse of `unpack_int4`, for integers of any shape, in order; the last half of an odd count is 0.

    >>> pack_int4(np.array([-1, 1, 7])).tolist()
    [31, 7]
    """
    halves = integers.reshape(-1).astype(np.int8).view(np.uint8) & 15
    halves = np.concatenate([halves, np.zeros(len(halves) % 2, np.uint8)])
    return (halves[0::2] | halves[1::2] << 4).astype(np.uint8)
