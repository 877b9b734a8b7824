"""Stored numbers of an ONNX file as tensors of torch, their sizes checked before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pocketfit.core.errors import UserError

if TYPE_CHECKING:
    from onnx import SparseTensorProto, TensorProto

MOST_NUMBERS = 2**40  # no machine that pocketfit knows holds as many
MOST_DENSE = 2**28  # what a sparse tensor may become; 1 GiB of float32

# TensorProto.DataType -> the torch dtype that holds it; 4 and 2 bits become 8.
DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    14: torch.complex64,
    15: torch.complex128,
    16: torch.bfloat16,
    17: torch.float8_e4m3fn,
    18: torch.float8_e4m3fnuz,
    19: torch.float8_e5m2,
    20: torch.float8_e5m2fnuz,
    21: torch.uint8,
    22: torch.int8,
}
TEXT, UINT4, INT4 = 8, 21, 22


class Unreadable(Exception):
    """A constant that no torch tensor can hold; the message says why. It matters only where the constant is used."""


def count(proto: TensorProto) -> int:
    """How many numbers the tensor says that it has."""
    if any(size < 0 for size in proto.dims) or math.prod(proto.dims) > MOST_NUMBERS:
        raise UserError(f"its weights '{proto.name}' have the impossible shape {list(proto.dims)}")
    return math.prod(proto.dims)


def byte_count(proto: TensorProto) -> int:
    """How many bytes its raw form takes."""
    if proto.data_type in (UINT4, INT4):
        return (count(proto) + 1) // 2
    dtype = DTYPES.get(proto.data_type)
    if dtype is None:
        raise Unreadable(_kind(proto))
    return count(proto) * dtype.itemsize


def to_torch(proto: TensorProto) -> Tensor:
    """The tensor's numbers. Raises Unreadable for texts, UserError where there are more or fewer than it says."""
    from onnx import numpy_helper

    if proto.data_type not in DTYPES:
        raise Unreadable(_kind(proto))
    there = len(proto.raw_data) if proto.HasField("raw_data") else None
    wanted = byte_count(proto) if there is not None else count(proto)
    if there is None:
        fields = (proto.float_data, proto.int32_data, proto.int64_data, proto.double_data, proto.uint64_data)
        there = max(len(numbers) for numbers in fields)
        if proto.data_type in (14, 15):
            there //= 2
        if proto.data_type in (UINT4, INT4):
            wanted = (wanted + 1) // 2
    if there != wanted:
        raise UserError(f"its weights '{proto.name}' are cut off: {there} of {wanted} are there")
    try:
        return _from_numpy(numpy_helper.to_array(proto), DTYPES[proto.data_type])
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise UserError(f"its weights '{proto.name}' can't be read") from error


def _from_numpy(array: Any, dtype: torch.dtype) -> Tensor:
    """The array as a tensor; numpy has no float8 and bfloat16 of its own, so their bytes are read as torch's."""
    import numpy as np

    array = np.array(array, order="C")  # the file's bytes are read-only
    if array.dtype.name in ("int4", "uint4"):
        return torch.from_numpy(array.astype(array.dtype.name.replace("4", "8")))
    if array.dtype.kind in "biufc":
        return torch.from_numpy(array)
    same_size = {1: torch.uint8, 2: torch.int16}[array.dtype.itemsize]
    raw = torch.from_numpy(array.view(np.uint8 if same_size is torch.uint8 else np.int16))
    return raw.view(dtype)


def dense(proto: SparseTensorProto, read: Callable[[TensorProto], Tensor]) -> Tensor:
    """A sparse tensor written out; zeros where it says nothing."""
    name, shape = proto.values.name, list(proto.dims)
    if any(size < 0 for size in shape) or math.prod(shape) > MOST_DENSE:
        raise UserError(f"its sparse weights '{name}' of shape {shape} are too large to be written out")
    values, indices = read(proto.values), read(proto.indices)
    if indices.ndim == 2 and indices.shape[1] == len(shape):
        steps = torch.tensor([math.prod(shape[i + 1 :]) for i in range(len(shape))])
        outside = (indices < 0) | (indices >= torch.tensor(shape))
        indices = torch.where(outside, math.prod(shape), indices * steps).sum(1)
    if values.ndim != 1 or indices.shape != values.shape or bool(((indices < 0) | (indices >= math.prod(shape))).any()):
        raise UserError(f"the places of its sparse weights '{name}' are wrong")
    whole = torch.zeros(math.prod(shape), dtype=values.dtype)
    whole[indices.long()] = values
    return whole.view(shape)


def _kind(proto: TensorProto) -> str:
    return "it holds texts" if proto.data_type == TEXT else f"its numbers are of an unknown kind ({proto.data_type})"
