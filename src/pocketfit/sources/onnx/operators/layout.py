"""Operators that move data, and those that make tensors or sizes from nothing but shapes."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from pocketfit.sources.onnx import parameters
from pocketfit.sources.onnx.builder import CannotConvert, Constant, Sizes, meta
from pocketfit.sources.onnx.call import Call, Table, dim_of
from pocketfit.sources.onnx.operators import reshaping
from pocketfit.sources.onnx.tensors import DTYPES

END = 999_999_999  # exporters write this, 2**31 - 1, or 2**63 - 1, for "to the end"


def shape(call: Call) -> Any:
    tensor = call.tensor(0)
    rank = meta(tensor).ndim
    places = range(rank)[slice(call.get("start", 0), call.get("end", None))]
    sizes = [known_size(call, tensor, dim) for dim in places]
    return Sizes(tuple(sizes))


def known_size(call: Call, tensor: Any, dim: int) -> Any:
    return call.build.size(tensor, dim) if isinstance(tensor, fx.Node) else tensor.tensor.shape[dim]


def transpose(call: Call) -> Any:
    rank = call.rank(0)
    order = list(call.get("perm", range(rank - 1, -1, -1)))
    if sorted(order) != list(range(rank)):
        raise CannotConvert(f"its order {order} is none of {rank} dimensions")
    return call.tensor(0) if order == list(range(rank)) else call.emit(torch.permute, call.tensor(0), order)


def squeeze(call: Call) -> Any:
    value = call.values[0]
    if isinstance(value, Sizes) and len(value.entries) == 1:
        return Sizes(value.entries, scalar=True)
    dims = call.axes(1)
    if dims is None:
        sizes = call.static(0)
        if None in sizes:
            raise CannotConvert("which dimensions it drops depends on the input's sizes")
        dims = [dim for dim, size in enumerate(sizes) if size == 1]
    if any(call.static(0)[dim] not in (1, None) for dim in dims):
        raise CannotConvert("it drops a dimension that is larger than 1")
    return call.emit(torch.squeeze, call.tensor(0), tuple(dims)) if dims else call.tensor(0)


def unsqueeze(call: Call) -> Any:
    value = call.values[0]
    given = call.integers(1) if call.has(1) else call.get("axes")
    if isinstance(value, Sizes) and value.scalar and len(given) == 1:
        return Sizes(value.entries)
    tensor: Any = call.tensor(0)
    rank = call.rank(0) + len(given)
    for dim in sorted(dim_of(int(axis), rank) for axis in given):
        tensor = call.emit(torch.unsqueeze, tensor, dim)
    return tensor


def concat(call: Call) -> Any:
    if any(isinstance(value, Sizes) for value in call.values):
        parts = [_listed(value) for value in call.values]
        if all(part is not None for part in parts):
            return Sizes(tuple(entry for part in parts for entry in part or ()))
    axis = call.axis(1 if call.version < 4 else 0)
    tensors: list[Any] = [call.tensor(i) for i in range(len(call.values))]
    if any(isinstance(tensor, fx.Node) for tensor in tensors):
        tensors = [parameters.token(call, t) if isinstance(t, Constant) else t for t in tensors]
    return tensors[0] if len(tensors) == 1 else call.emit(torch.cat, tensors, axis)


def _listed(value: Any) -> list[Any] | None:
    if isinstance(value, Sizes) and not value.scalar:
        return list(value.entries)
    if isinstance(value, Constant) and value.tensor.ndim == 1 and not value.tensor.is_floating_point():
        return list(value.tensor.tolist())
    return None


def split(call: Call) -> Any:
    """Split: equal parts become chunk, which still fits after pruning; others have fixed sizes."""
    axis, size = call.axis(0), call.static(0)[call.axis(0)]
    parts = call.integers(1) if call.has(1) else call.get("split", None)
    count = len(call.node.outputs)
    if parts is None:
        share = call.get("num_outputs", count)
        if size is None:
            return call.pick(call.emit(torch.chunk, call.tensor(0), share, axis), count)
        step = -(-size // share)
        parts = [max(min(step, size - i * step), 0) for i in range(share)]
    if len(parts) != count or (size is not None and all(isinstance(p, int) for p in parts) and sum(parts) != size):
        raise CannotConvert(f"its parts {parts} don't make up {size}")
    if all(isinstance(part, int) and part == parts[0] > 0 for part in parts):
        return call.pick(call.emit(torch.chunk, call.tensor(0), count, axis), count)
    return call.pick(call.emit(torch.split, call.tensor(0), parts, axis), count)


def slice_(call: Call) -> Any:
    value = call.values[0]
    if call.version >= 10:
        starts, ends = call.integers(1), call.integers(2)
        axes = [int(a) for a in call.integers(3)] if call.has(3) else list(range(len(starts)))
        steps = call.integers(4) if call.has(4) else [1] * len(starts)
    else:
        starts, ends = list(call.get("starts")), list(call.get("ends"))
        axes, steps = list(call.get("axes", range(len(starts)))), [1] * len(starts)
    if isinstance(value, Sizes) and not value.scalar:
        plain = [e for e in (*starts, *ends, *steps) if not isinstance(e, int)]
        if not plain and len(starts) == 1:
            return Sizes(value.entries[slice(starts[0], ends[0], steps[0])])
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise CannotConvert("its starts, ends, axes and steps are not equally many")
    result: Any = call.tensor(0)
    index = [slice(None)] * call.rank(0)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        dim = dim_of(axis, call.rank(0))
        if not isinstance(step, int) or step == 0:
            raise CannotConvert("its step is no number other than 0")
        if step < 0:
            result = call.emit(backwards, result, dim, start, end, step)
        else:
            index[dim] = _range(call, result, dim, start, end, step)
    while index and index[-1] == slice(None):
        index.pop()
    return call.emit(operator.getitem, result, tuple(index)) if index else result


def _range(call: Call, value: Any, dim: int, start: Any, end: Any, step: int) -> slice:
    """The slice, without the numbers that mean "from the start" and "to the end"."""
    size = meta(value).shape[dim]
    to_the_end = isinstance(end, int) and (end >= END or (isinstance(size, int) and end >= size))
    to_the_end = to_the_end or (not isinstance(end, int) and call.build.same(end, size))
    from_start = isinstance(start, int) and (start == 0 or start < -END)
    from_start = from_start or (isinstance(start, int) and isinstance(size, int) and start <= -size)
    if isinstance(start, int) and start < 0 and not from_start and not isinstance(size, int) and step == 1:
        return slice(start, None if to_the_end else end)
    return slice(None if from_start else start, None if to_the_end else end, None if step == 1 else step)


def backwards(value: Tensor, dim: int, start: int, end: int, step: int) -> Tensor:
    """A slice with a negative step, which torch does not have."""
    size = value.shape[dim]
    start = min(start + size if start < 0 else start, size - 1)
    end = max(end + size if end < 0 else end, -1)
    places = torch.arange(start, end, step, device=value.device) if start > end else torch.empty(0, dtype=torch.int64)
    return value.index_select(dim, places)


def tile(call: Call) -> Any:
    repeats = call.integers(1)
    if len(repeats) != call.rank(0):
        raise CannotConvert("it repeats another number of dimensions than there are")
    return call.tensor(0) if repeats == [1] * len(repeats) else call.emit(torch.Tensor.repeat, call.tensor(0), repeats)


def constant(call: Call) -> Any:
    attributes = call.node.attributes
    kinds: dict[str, Any] = {"value_float": torch.float32, "value_floats": torch.float32}
    kinds |= {"value_int": torch.int64, "value_ints": torch.int64}
    for name, dtype in kinds.items():
        if name in attributes:
            return Constant(torch.tensor(attributes[name], dtype=dtype), call.node.outputs[0], stored=True)
    name = "value" if "value" in attributes else "sparse_value"
    value = call.get(name)
    if not isinstance(value, Tensor):
        raise CannotConvert("it holds texts")
    return Constant(value, call.node.outputs[0], stored=True)


def constant_of_shape(call: Call) -> Any:
    value = call.get("value", None)
    value = torch.zeros(1) if value is None else value
    sizes = call.integers(0)
    return call.emit(torch.full, sizes, value.item(), dtype=value.dtype)


def range_(call: Call) -> Any:
    ends = [call.integers(i)[0] for i in range(3)]
    values = [value for value in call.values if isinstance(value, Constant)]
    dtype = values[0].tensor.dtype if values else torch.int64
    if all(isinstance(end, int | float) for end in ends) and not _small_range(*ends):
        raise CannotConvert(f"it counts from {ends[0]} to {ends[1]} by {ends[2]}")
    return call.emit(torch.arange, *ends, dtype=dtype)


def _small_range(start: float, end: float, step: float) -> bool:
    return step != 0 and math.isfinite(start + end + step) and abs((end - start) / step) < 2**31


def triangle(call: Call) -> Any:
    function = torch.triu if call.get("upper", 1) else torch.tril
    return call.emit(function, call.tensor(0), int(call.number(1, 0)))


def eye_like(call: Call) -> Any:
    rows, columns = (known_size(call, call.tensor(0), dim) for dim in range(2))
    kind = call.get("dtype", None)
    dtype = call.meta(0).dtype if kind is None else DTYPES.get(kind)
    if dtype is None:
        raise CannotConvert("it makes numbers that torch has not")
    return call.emit(eye, rows, columns, call.get("k", 0), dtype)


def eye(rows: int, columns: int, offset: int, dtype: torch.dtype) -> Tensor:
    """Ones on a diagonal, `offset` to the right of the main one."""
    places = torch.arange(columns)[None] - torch.arange(rows)[:, None]
    return (places == offset).to(dtype)


def one_hot(call: Call) -> Any:
    depth = int(call.number(1))
    if not 0 < depth < 2**24:
        raise CannotConvert(f"its depth {depth} is impossible")
    axis = dim_of(call.get("axis", -1), call.rank(0) + 1)
    return call.emit(hot, call.tensor(0), depth, call.tensor(2), axis)


def hot(places: Tensor, depth: int, values: Tensor, axis: int) -> Tensor:
    """values[1] at the places, which may count from the end, values[0] elsewhere; a new dimension at `axis`."""
    places = places.long()
    places = torch.where(places < 0, places + depth, places).unsqueeze(axis)
    steps = torch.arange(depth).view([-1 if dim == axis else 1 for dim in range(places.ndim)])
    return torch.where(places == steps, values[1], values[0])


def if_(call: Call) -> Any:
    """If: only the branch that is taken for all inputs is converted."""
    condition = call.values[0]
    if isinstance(condition, Constant):
        taken = bool(condition.tensor.reshape(-1)[0]) if condition.tensor.numel() else False
    elif isinstance(condition, Sizes) and len(condition.entries) == 1:
        taken = call.build.truth(condition.entries[0])
    else:
        raise CannotConvert(
            "which branch it takes depends on the inputs' numbers: fix the input that decides it (fixed=...), or "
            "export the network without it"
        )
    return tuple(call.branch(call.get("then_branch" if taken else "else_branch")))


# --- sequences of tensors: lists here, as their lengths are known


def sequence(call: Call, i: int) -> list[Any]:
    value = call.values[i] if call.has(i) else None
    if not isinstance(value, list):
        raise CannotConvert("it reads a sequence that comes from outside")
    return value


def sequence_construct(call: Call) -> list[Any]:
    return list(call.values)


def sequence_at(call: Call) -> Any:
    entries, place = sequence(call, 0), int(call.number(1))
    if not -len(entries) <= place < len(entries):
        raise CannotConvert(f"it takes entry {place} of a sequence of {len(entries)}")
    return entries[place]


def sequence_insert(call: Call) -> list[Any]:
    entries = list(sequence(call, 0))
    place = int(call.number(2, len(entries)))
    entries.insert(place, call.values[1])
    return entries


def sequence_erase(call: Call) -> list[Any]:
    entries, place = list(sequence(call, 0)), int(call.number(1, -1))
    if not -len(entries) <= place < len(entries):
        raise CannotConvert(f"it removes entry {place} of a sequence of {len(entries)}")
    del entries[place]
    return entries


def concat_from_sequence(call: Call) -> Any:
    tensors = [call.as_tensor(value) for value in sequence(call, 0)]
    function = torch.stack if call.get("new_axis", 0) else torch.cat
    return call.emit(function, tensors, call.get("axis"))


def split_to_sequence(call: Call) -> list[Any]:
    axis = call.axis(0)
    size = call.static(0)[axis]
    if size is None:
        raise CannotConvert("how many parts it makes depends on the inputs' sizes")
    keep, given = call.get("keepdims", 1), call.integers(1) if call.has(1) else [1]
    if call.has(1) and call.rank(1):
        parts = given
    else:
        parts = [min(given[0], size - start) for start in range(0, size, given[0])]
    tensors = list(call.pick(call.emit(torch.split, call.tensor(0), parts, axis), len(parts)))
    return tensors if keep or call.has(1) else [call.emit(torch.squeeze, tensor, axis) for tensor in tensors]


TABLE: Table = {
    "Shape": shape,
    "Reshape": reshaping.reshape,
    "Flatten": reshaping.flatten,
    "Expand": reshaping.expand,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Tile": tile,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Range": range_,
    "Trilu": triangle,
    "EyeLike": eye_like,
    "OneHot": one_hot,
    "If": if_,
    "SequenceConstruct": sequence_construct,
    "SequenceEmpty": sequence_construct,
    "SequenceAt": sequence_at,
    "SequenceInsert": sequence_insert,
    "SequenceErase": sequence_erase,
    "SequenceLength": lambda call: len(sequence(call, 0)),
    "ConcatFromSequence": concat_from_sequence,
    "SplitToSequence": split_to_sequence,
}
