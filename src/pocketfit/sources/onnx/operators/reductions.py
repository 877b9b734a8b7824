"""Operators that sum up, search or sort along dimensions."""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
from torch import Tensor

from pocketfit.sources.onnx.builder import CannotConvert, Sizes, meta
from pocketfit.sources.onnx.call import Call, Handler, Table

Dims = list[int]


def reduction(target: Any, on_sizes: Any = None) -> Handler:
    """A handler for a reduction over the given axes, or over all; over none where `noop_with_empty_axes` says so."""

    def handler(call: Call) -> Any:
        value = call.values[0]
        if isinstance(value, Sizes) and on_sizes is not None:
            total = functools.reduce(lambda a, b: call.emit(on_sizes, a, b), value.entries)
            return Sizes((total,), scalar=not call.get("keepdims", 1))
        dims = call.axes(1)
        if not dims:
            if call.get("noop_with_empty_axes", 0):
                return call.emit(elementwise[target], call.tensor(0)) if target in elementwise else call.tensor(0)
            dims = list(range(call.rank(0)))
        if not dims:  # one number has no dimension to sum up
            return call.emit(elementwise[target], call.tensor(0)) if target in elementwise else call.tensor(0)
        keep, value = bool(call.get("keepdims", 1)), call.tensor(0)
        if target in OWN and meta(value).is_floating_point() and all(call.static(0)[dim] != 0 for dim in dims):
            return call.emit(OWN[target], value, dims, keep)
        return call.emit(target, value, dims, keep)

    return handler


def mean(values: Tensor, dims: Dims, keep: bool) -> Tensor:
    """The mean; for integers rounded towards 0."""
    if values.is_floating_point():
        return torch.mean(values, dims, keep)
    return torch.mean(values.double(), dims, keep).to(values.dtype)


def total(values: Tensor, dims: Dims, keep: bool) -> Tensor:
    return torch.sum(values, dims, keep, dtype=values.dtype)


def product(values: Tensor, dims: Dims, keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        values = torch.prod(values, dim, keep, dtype=values.dtype)
    return values


def largest(values: Tensor, dims: Dims, keep: bool) -> Tensor:
    """The largest value; for an empty dimension the smallest number of the dtype."""
    if any(values.shape[dim] == 0 for dim in dims):
        return _of_nothing(values, dims, keep, smallest=True)
    return torch.amax(values, dims, keep)


def smallest(values: Tensor, dims: Dims, keep: bool) -> Tensor:
    if any(values.shape[dim] == 0 for dim in dims):
        return _of_nothing(values, dims, keep, smallest=False)
    return torch.amin(values, dims, keep)


def _of_nothing(values: Tensor, dims: Dims, keep: bool, *, smallest: bool) -> Tensor:
    if values.dtype is torch.bool:
        filler: Any = not smallest
    elif values.is_floating_point():
        filler = float("-inf") if smallest else float("inf")
    else:
        limits = torch.iinfo(values.dtype)
        filler = limits.min if smallest else limits.max
    return torch.full_like(torch.sum(values, dims, keep, dtype=values.dtype), filler)


def length(values: Tensor, dims: Dims, keep: bool) -> Tensor:
    """The Euclidean norm."""
    return torch.sqrt(total(values * values, dims, keep).to(_floating(values))).to(values.dtype)


def absolute(values: Tensor, dims: Dims, keep: bool) -> Tensor:
    return total(values.abs(), dims, keep)


def squares(values: Tensor, dims: Dims, keep: bool) -> Tensor:
    return total(values * values, dims, keep)


def log_of_total(values: Tensor, dims: Dims, keep: bool) -> Tensor:
    return torch.log(total(values, dims, keep))


def log_of_exponentials(values: Tensor, dims: Dims, keep: bool) -> Tensor:
    return torch.logsumexp(values, dims, keep)


def _floating(values: Tensor) -> torch.dtype:
    return values.dtype if values.is_floating_point() else torch.float64


# torch's own functions do the same for floats.
OWN: dict[Any, Any] = {mean: torch.mean, total: torch.sum, largest: torch.amax, smallest: torch.amin}
elementwise: dict[Any, Any] = {
    length: torch.abs,
    absolute: torch.abs,
    squares: torch.square,
    log_of_total: torch.log,
}


def position(*, of_largest: bool) -> Handler:
    def handler(call: Call) -> Any:
        call.must("select_last_index", 0, 1, default=0)
        keep, last = bool(call.get("keepdims", 1)), bool(call.get("select_last_index", 0))
        return call.emit(index_of, call.tensor(0), call.axis(0), keep, of_largest, last)

    return handler


def index_of(values: Tensor, dim: int, keep: bool, of_largest: bool, last: bool) -> Tensor:
    """The place of the largest (or smallest) number along a dimension: the first, or the last of equals."""
    function = torch.argmax if of_largest else torch.argmin
    if not last:
        return function(values, dim, keep)
    return values.shape[dim] - 1 - function(values.flip(dim), dim, keep)


def running(function: Any) -> Handler:
    """Sums or products of all numbers so far."""

    def handler(call: Call) -> Any:
        axis = int(call.number(1))
        rank = call.rank(0)
        exclusive, backward = bool(call.get("exclusive", 0)), bool(call.get("reverse", 0))
        return call.emit(function, call.tensor(0), axis % max(rank, 1), exclusive, backward)

    return handler


def running_sum(values: Tensor, dim: int, exclusive: bool, backward: bool) -> Tensor:
    return _running(torch.cumsum, 0, values, dim, exclusive, backward)


def running_product(values: Tensor, dim: int, exclusive: bool, backward: bool) -> Tensor:
    return _running(torch.cumprod, 1, values, dim, exclusive, backward)


def _running(function: Any, start: int, values: Tensor, dim: int, exclusive: bool, backward: bool) -> Tensor:
    values = values.flip(dim) if backward else values
    if exclusive:
        first = torch.full_like(values.narrow(dim, 0, 1), start)
        values = torch.cat([first, values.narrow(dim, 0, values.shape[dim] - 1)], dim)
    result: Tensor = function(values, dim, dtype=values.dtype)
    return result.flip(dim) if backward else result


def top_k(call: Call) -> Any:
    """TopK: the largest or smallest values, and their indices."""
    if call.has(1):
        (count,) = call.integers(1)
    else:
        count = call.get("k")
    axis, largest = call.axis(-1), bool(call.get("largest", 1))
    if call.meta(0).is_floating_point():
        return call.pick(call.emit(torch.topk, call.tensor(0), count, axis, largest, bool(call.get("sorted", 1))), 2)
    return call.pick(call.emit(first_of_sorted, call.tensor(0), count, axis, largest), 2)


def first_of_sorted(values: Tensor, count: int, dim: int, largest: bool) -> tuple[Tensor, Tensor]:
    """Values and indices; of equal integers the first ones, which torch.topk doesn't promise."""
    ordered, places = torch.sort(values, dim=dim, descending=largest, stable=True)
    return ordered.narrow(dim, 0, count), places.narrow(dim, 0, count)


def einsum(call: Call) -> Any:
    equation = call.get("equation").replace(" ", "")
    if set(equation) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,.->"):
        raise CannotConvert("its equation has letters that torch has not")
    return call.emit(torch.einsum, equation, *(call.tensor(i) for i in range(len(call.values))))


def reciprocal_length(call: Call) -> Any:
    """LpNormalization: divided by the length along an axis."""
    return call.emit(normalized, call.tensor(0), int(call.get("p", 2)), call.axis(-1))


def normalized(values: Tensor, power: int, dim: int) -> Tensor:
    """A vector of length 0 stays 0."""
    size = torch.linalg.vector_norm(values, power, dim, keepdim=True)
    return values / torch.where(size == 0, torch.ones_like(size), size)


def size(call: Call) -> Any:
    """How many numbers a tensor has."""
    value = call.values[0]
    if isinstance(value, Sizes):
        return len(value.entries)
    tensor = call.tensor(0)
    sizes = [s if isinstance(s, int) else call.build.size(tensor, i) for i, s in enumerate(meta(tensor).shape)]
    result = functools.reduce(lambda a, b: call.emit(operator.mul, a, b), sizes, 1)
    return result if isinstance(result, int) else Sizes((result,), scalar=True)


TABLE: Table = {
    "ReduceMean": reduction(mean),
    "ReduceSum": reduction(total, operator.add),
    "ReduceProd": reduction(product, operator.mul),
    "ReduceMax": reduction(largest, torch.sym_max),
    "ReduceMin": reduction(smallest, torch.sym_min),
    "ReduceL1": reduction(absolute),
    "ReduceL2": reduction(length),
    "ReduceSumSquare": reduction(squares),
    "ReduceLogSum": reduction(log_of_total),
    "ReduceLogSumExp": reduction(log_of_exponentials),
    "ArgMax": position(of_largest=True),
    "ArgMin": position(of_largest=False),
    "CumSum": running(running_sum),
    "CumProd": running(running_product),
    "TopK": top_k,
    "Einsum": einsum,
    "LpNormalization": reciprocal_length,
    "Size": size,
}
