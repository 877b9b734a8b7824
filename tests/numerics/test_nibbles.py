"""Integers of 4 bits: against arithmetic in Python on one byte at a time, and against onnx's own reading."""

from __future__ import annotations

import numpy as np
import pytest

from pocketfit.numerics.nibbles import pack_int4, unpack_int4

ALL = np.arange(-8, 8)


def by_hand(integers: list[int]) -> list[int]:
    """Two's complement of 4 bits: 16 is added to what is below 0; the second of a pair counts 16 times."""
    halves = [number % 16 for number in integers] + [0] * (len(integers) % 2)
    return [low + 16 * high for low, high in zip(halves[::2], halves[1::2], strict=True)]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 256, 257])
def test_two_numbers_a_byte(count: int) -> None:
    integers = np.resize(np.array(np.meshgrid(ALL, ALL)).T, count)  # every pair of them
    packed = pack_int4(integers)
    assert packed.dtype == np.uint8
    assert packed.tolist() == by_hand(integers.tolist())
    assert unpack_int4(packed, count).tolist() == integers.tolist()


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_any_shape_and_type_in_order(dtype: type[np.generic]) -> None:
    integers = np.random.default_rng(0).integers(-8, 8, (3, 5, 7)).astype(dtype)
    assert pack_int4(integers.transpose(2, 0, 1)).tolist() == by_hand(integers.transpose(2, 0, 1).ravel().tolist())


def test_onnx_reads_the_same_numbers() -> None:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.INT4, dims=[len(ALL)], raw_data=pack_int4(ALL).tobytes())
    assert onnx.numpy_helper.to_array(tensor).astype(np.int8).tolist() == ALL.tolist()
