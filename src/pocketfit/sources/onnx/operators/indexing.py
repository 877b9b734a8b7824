"""Operators that pick numbers by index, or put them somewhere by index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pocketfit.sources.onnx import parameters
from pocketfit.sources.onnx.builder import CannotConvert, Constant, Sizes, meta
from pocketfit.sources.onnx.call import Call, Table, dim_of


def gather(call: Call) -> Any:
    """Gather: one index is a select, several are an index_select; rows of a stored matrix are an embedding."""
    value, index = call.values[0], call.stored(1)
    if isinstance(value, Sizes) and index is not None:
        picked = [value.entries[i] for i in index.tensor.reshape(-1).tolist()]
        if index.tensor.ndim <= 1:
            return Sizes(tuple(picked), scalar=index.tensor.ndim == 0)
    axis, table = call.axis(0), call.stored(0)
    if (
        table is not None
        and index is None
        and axis == 0
        and table.tensor.ndim == 2
        and table.tensor.is_floating_point()
    ):
        layer = nn.Embedding(1, 1)
        layer.num_embeddings, layer.embedding_dim = table.tensor.shape
        layer.weight = parameters.parameter(table.tensor)
        return call.layer(layer, table, from_front(call, call.tensor(1), table.tensor.shape[0]))
    tensor = call.tensor(0)
    size = meta(tensor).shape[axis]
    if (
        index is not None
        and isinstance(size, int)
        and not bool(((index.tensor >= -size) & (index.tensor < size)).all())
    ):
        raise CannotConvert(f"its index is outside of the {size} entries that there are")
    if index is not None and index.tensor.ndim == 0:
        return call.emit(torch.select, tensor, axis, int(index.tensor))
    if isinstance(call.values[1], Sizes) and call.values[1].scalar:
        return call.emit(torch.select, tensor, axis, call.values[1].entries[0])
    places = from_front(call, call.tensor(1), size)
    return call.emit(looked_up, tensor, places, axis)


def from_front(call: Call, index: Any, size: Any) -> Any:
    """The index, counted from the front; torch's own lookups take no negative ones."""
    if isinstance(index, Constant):
        tensor = index.tensor.long()
        turned = torch.where(tensor < 0, tensor + size, tensor) if isinstance(size, int) else tensor
        return index if torch.equal(turned, index.tensor) else Constant(turned, index.name)
    return index


def looked_up(values: Tensor, index: Tensor, dim: int) -> Tensor:
    """values[..., index, ...] along `dim`; an index may count from the end."""
    places: tuple[Any, ...] = (*[slice(None)] * dim, index.long())
    return values[places]


def gather_elements(values: Tensor, index: Tensor, dim: int) -> Tensor:
    return values.gather(dim, _turned(index, values.shape[dim]))


def _turned(index: Tensor, size: Any) -> Tensor:
    index = index.long()
    return torch.where(index < 0, index + size, index)


def gather_nd(values: Tensor, index: Tensor, batch_dims: int) -> Tensor:
    """Rows of `index` are places in the dimensions behind the first `batch_dims`, which both share."""
    front = values.shape[:batch_dims]
    grid = []
    for dim, size in enumerate(front):
        steps = torch.arange(size, device=values.device)
        grid.append(
            steps.view([-1 if d == dim else 1 for d in range(batch_dims)] + [1] * (index.ndim - 1 - batch_dims))
        )
    return values[(*grid, *index.long().unbind(-1))]


def scatter_elements(values: Tensor, index: Tensor, updates: Tensor, dim: int, how: str) -> Tensor:
    places = _turned(index, values.shape[dim])
    if how == "none":
        return values.scatter(dim, places, updates)
    kind = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[how]
    return values.scatter_reduce(dim, places, updates, kind)


def scatter_nd(values: Tensor, index: Tensor, updates: Tensor, how: str) -> Tensor:
    """Rows of `index` are places in the first dimensions; they are turned into places in the flattened tensor."""
    depth = index.shape[-1]
    inner = values.shape[depth:]
    steps: list[Any] = []
    step: Any = 1
    for size in reversed(values.shape[:depth]):
        steps.insert(0, step)
        step = step * size
    flat = torch.zeros(index.shape[:-1], dtype=torch.int64, device=values.device)
    for part, size, width in zip(index.unbind(-1), values.shape[:depth], steps, strict=True):
        flat = flat + _turned(part, size) * width
    rows = values.reshape(-1, *inner)
    places = flat.reshape(-1, *[1] * len(inner)).expand(-1, *inner)
    result = scatter_elements(rows, places, updates.reshape(-1, *inner), 0, how)
    return result.reshape(values.shape)


def _how(call: Call) -> str:
    how = str(call.get("reduction", "none"))
    if how not in ("none", "add", "mul", "max", "min"):
        raise CannotConvert(f"it joins numbers by {how!r}, which torch has not")
    return how


def compress(call: Call) -> Any:
    """Picks where a constant condition holds."""
    chosen = call.constant(1).tensor.reshape(-1).nonzero().reshape(-1)
    places = Constant(chosen, "chosen")
    if "axis" not in call.node.attributes:
        return call.emit(looked_up, call.emit(torch.flatten, call.tensor(0)), places, 0)
    return call.emit(looked_up, call.tensor(0), places, call.axis(0))


def non_zero(values: Tensor) -> Tensor:
    """The indices of all entries that are not zero, [dimensions, how many]; a scalar counts as a list of one."""
    return (values.reshape(1) if values.ndim == 0 else values).nonzero().t()


def reverse_sequence(call: Call) -> Any:
    time, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    return call.emit(reversed_start, call.tensor(0), call.tensor(1), time, batch)


def reversed_start(values: Tensor, lengths: Tensor, time: int, batch: int) -> Tensor:
    """The first lengths[i] steps of row i are turned round, the others stay."""
    swapped = values.movedim((batch, time), (0, 1))
    steps = torch.arange(swapped.shape[1], device=values.device)[None]
    ends = lengths.long()[:, None]
    places = torch.where(steps < ends, ends - 1 - steps, steps)
    index = places.view(*places.shape, *[1] * (swapped.ndim - 2)).expand(swapped.shape)
    return swapped.gather(1, index).movedim((0, 1), (batch, time))


def tensor_scatter(call: Call) -> Any:
    """TensorScatter: new steps are written into a cache, from each row's own place on."""
    call.must("mode", "linear", "circular", default="linear")
    axis = dim_of(call.get("axis", -2), call.rank(0))
    places = call.tensor(2) if call.has(2) else None
    circular = call.get("mode", "linear") == "circular"
    return call.emit(cache_written, call.tensor(0), call.tensor(1), places, axis, circular)


def cache_written(past: Tensor, update: Tensor, places: Tensor | None, dim: int, circular: bool) -> Tensor:
    steps = torch.arange(update.shape[dim], device=past.device)[None]
    starts = torch.zeros(past.shape[0], dtype=torch.int64, device=past.device) if places is None else places.long()
    index = starts[:, None] + steps
    index = index % past.shape[dim] if circular else index
    shape = [1] * past.ndim
    shape[0], shape[dim] = past.shape[0], update.shape[dim]
    return past.scatter(dim, index.view(shape).expand(update.shape), update)


def _axis_call(function: Any) -> Any:
    return lambda call: call.emit(function, call.tensor(0), call.tensor(1), call.axis(0))


def _scatter(call: Call) -> Any:
    return call.emit(scatter_elements, *(call.tensor(i) for i in range(3)), call.axis(0), _how(call))


TABLE: Table = {
    "Gather": gather,
    "GatherElements": _axis_call(gather_elements),
    "GatherND": lambda call: call.emit(gather_nd, call.tensor(0), call.tensor(1), call.get("batch_dims", 0)),
    "Scatter": _scatter,
    "ScatterElements": _scatter,
    "ScatterND": lambda call: call.emit(scatter_nd, *(call.tensor(i) for i in range(3)), _how(call)),
    "Compress": compress,
    "NonZero": lambda call: call.emit(non_zero, call.tensor(0)),
    "ReverseSequence": reverse_sequence,
    "TensorScatter": tensor_scatter,
}
