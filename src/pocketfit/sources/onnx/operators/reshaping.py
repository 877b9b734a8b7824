"""Reshape without fixed numbers of channels: sizes that follow from the input or from other sizes are computed.

A network whose layers are pruned has fewer channels than the file says. So a size that is the same before and after
becomes `x.size(i)`, joined dimensions are flattened, and where one dimension is split into several, one of them
follows from the others:
    [n, t, c] -> [n, t, heads, c / heads]     heads follow, as attention is pruned by whole heads
    [n, c, h, w] -> [n, groups, c / groups, h, w]   channels within a group follow, as in a shuffle
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pocketfit.sources.onnx import parameters
from pocketfit.sources.onnx.builder import CannotConvert, Constant, Sizes, example, known, meta
from pocketfit.sources.onnx.call import Call


@dataclass(frozen=True)
class Step:
    """Input dimensions [first, last) become output dimensions [begin, end)."""

    first: int
    last: int
    begin: int
    end: int

    @property
    def kind(self) -> str:
        before, after = self.last - self.first, self.end - self.begin
        if before == after == 1:
            return "same"
        if after == 0:
            return "dropped"
        if before == 0:
            return "new"
        return "joined" if after == 1 else "split" if before == 1 else "mixed"


def reshape(call: Call) -> Any:
    """`call`: a Reshape, its target as input 1 (newer files) or as the attribute `shape`."""
    value = call.values[0]
    target = call.integers(1) if call.has(1) else list(call.get("shape"))
    if isinstance(value, Sizes):
        plain = [entry for entry in target if isinstance(entry, int)]
        if len(plain) == len(target) <= 1 and plain in ([], [1], [-1], [len(value.entries)]):
            return Sizes(value.entries, scalar=not plain)
    tensor = call.tensor(0)
    if not call.get("allowzero", 0):
        target = [_same_size(call, tensor, i) if _is(entry, 0) else entry for i, entry in enumerate(target)]
    return to_shape(call, tensor, target)


def _is(entry: Any, number: int) -> bool:
    return isinstance(entry, int) and entry == number


def _same_size(call: Call, tensor: Any, i: int) -> Any:
    if i >= meta(tensor).ndim:
        raise CannotConvert(f"it keeps dimension {i} of a tensor that has {meta(tensor).ndim}")
    return call.build.size(tensor, i) if isinstance(tensor, fx.Node) else meta(tensor).shape[i]


def to_shape(call: Call, tensor: Any, target: list[Any]) -> Any:
    """The tensor in the target's shape (numbers, nodes, one -1), by steps that hold for pruned networks, too."""
    if isinstance(tensor, Constant):
        return call.emit(torch.Tensor.reshape, tensor, target)
    count = len(call.build.graph.nodes)
    whole = call.emit(torch.Tensor.reshape, tensor, target)
    steps = aligned(call, list(meta(tensor).shape), list(meta(whole).shape))
    result = _by_steps(call, tensor, whole, steps, target)
    if result is not whole and not whole.users and len(call.build.graph.nodes) >= count:
        call.build.graph.erase_node(whole)
    return result


def aligned(call: Call, before: list[Any], after: list[Any]) -> list[Step]:
    """Which dimensions become which: [n, c, h, w] -> [n, c, h w] is same, same, joined.

    One "mixed" step stands for all that is left where sizes can't be told apart.
    """
    steps: list[Step] = []
    i = j = 0
    while i < len(before) or j < len(after):
        first, begin = i, j
        if i == len(before) or j == len(after):
            rest = before[i:] if i < len(before) else after[j:]
            if any(not call.build.same(size, 1) for size in rest):
                return [Step(0, len(before), 0, len(after))]
            steps += [Step(k, k + 1, j, j) for k in range(i, len(before))]
            steps += [Step(i, i, k, k + 1) for k in range(j, len(after))]
            break
        if call.build.same(before[i], after[j]):
            i, j = i + 1, j + 1
        elif call.build.same(after[j], 1):
            j += 1
        elif call.build.same(before[i], 1):
            i += 1
        else:
            i, j = _group(call, before, after, i, j)
            if i < 0:
                return [*steps, Step(first, len(before), begin, len(after))]
        steps.append(Step(first, i, begin, j))
    return steps


def _group(call: Call, before: list[Any], after: list[Any], i: int, j: int) -> tuple[int, int]:
    """The shortest run of dimensions on both sides with the same product; (-1, -1) where there is none."""
    left, right = before[i], after[j]
    i, j = i + 1, j + 1
    while not call.build.same(left, right):
        small, large = example(left), example(right)
        if small is None or large is None or small == large:
            return -1, -1
        take_left = small < large
        if (take_left and i == len(before)) or (not take_left and j == len(after)):
            return -1, -1
        if take_left:
            left, i = left * before[i], i + 1
        else:
            right, j = right * after[j], j + 1
    return i, j


def _by_steps(call: Call, tensor: fx.Node, whole: fx.Node, steps: list[Step], target: list[Any]) -> Any:
    odd = [step for step in steps if step.kind != "same"]
    kinds = [step.kind for step in odd]
    if not odd:
        return tensor
    if kinds == ["joined"]:
        return call.emit(torch.flatten, tensor, odd[0].first, odd[0].last - 1)
    if kinds == ["split"]:
        step = odd[0]
        return call.emit(torch.unflatten, tensor, step.first, _split(call, tensor, whole, step, target, free=-1))
    if set(kinds) == {"new"}:
        for step in odd:
            tensor = call.emit(torch.unsqueeze, tensor, step.begin)
        return tensor
    if set(kinds) == {"dropped"}:
        return call.emit(torch.squeeze, tensor, tuple(step.first for step in odd))
    return _written_out(call, tensor, whole, steps, target)


def _written_out(call: Call, tensor: fx.Node, whole: fx.Node, steps: list[Step], target: list[Any]) -> Any:
    """torch.reshape, with sizes of the input where they stay and one -1."""
    sizes: list[Any] = []
    minus_used = False
    for step in steps:
        if step.kind == "same":
            sizes.append(call.build.size_node(tensor, step.first))
            continue
        if step.kind in ("new", "dropped"):
            sizes += [1] * (step.end - step.begin)
            continue
        free: Any = None if minus_used else -1
        minus_used = True
        if step.kind == "joined":
            sizes.append(free if free is not None else _product(call, tensor, step))
        elif step.kind == "split":
            sizes += _split(call, tensor, whole, step, target, free=free)
        else:
            sizes += _mixed(call, target[step.begin : step.end], whole, step, free=free)
    return call.emit(torch.Tensor.reshape, tensor, sizes)


def _product(call: Call, tensor: fx.Node, step: Step) -> Any:
    nodes = [call.build.size_node(tensor, dim) for dim in range(step.first, step.last)]
    return functools.reduce(lambda a, b: _times(call, a, b), nodes)


def _times(call: Call, first: fx.Node, second: fx.Node) -> fx.Node:
    node = call.build.graph.call_function(operator.mul, (first, second))
    node.meta["val"] = known(first) * known(second)
    return node


def _split(call: Call, tensor: fx.Node, whole: fx.Node, step: Step, target: list[Any], *, free: Any) -> list[Any]:
    """Sizes of the parts of one dimension; `free` (or what it comes to) where a part follows from the others."""
    wanted, made = target[step.begin : step.end], list(meta(whole).shape[step.begin : step.end])
    follows = _follows(call, wanted, made, last=step.last == meta(tensor).ndim)
    parts = [entry if not _is(entry, -1) else made[i] for i, entry in enumerate(wanted)]
    others = [part for i, part in enumerate(parts) if i != follows]
    if free is None:
        free = call.build.size_node(tensor, step.first)
        for part in others:
            node = call.build.graph.call_function(operator.floordiv, (free, part))
            node.meta["val"] = known(free) // known(part)
            free = node
    parts[follows] = free
    return parts


def _follows(call: Call, wanted: list[Any], made: list[Any], *, last: bool) -> int:
    """The part of a split dimension that isn't written down; see the top of the file."""
    dynamic = [i for i, size in enumerate(made) if not isinstance(size, int)]
    if dynamic:
        return dynamic[0]
    for i, entry in enumerate(wanted):
        if _is(entry, -1):
            return i
    many = [i for i, size in enumerate(made) if size > 1] or [len(made) - 1]
    return many[-2] if last and len(many) > 1 else many[-1]


def _mixed(call: Call, wanted: list[Any], whole: fx.Node, step: Step, *, free: Any) -> list[Any]:
    """Dimensions that are cut and joined at once: as the file says, one dynamic or last one following."""
    parts: list[Any] = list(wanted)
    made = list(meta(whole).shape[step.begin : step.end])
    follows = next((i for i, entry in enumerate(parts) if _is(entry, -1)), None)
    if follows is not None and free is not None:
        return parts
    if follows is not None:
        if not isinstance(made[follows], int):
            raise CannotConvert("its shape leaves two dimensions open")
        parts[follows] = made[follows]
    elif free is not None:
        parts[next((i for i, size in enumerate(made) if not isinstance(size, int)), len(made) - 1)] = free
    return parts


def flatten(call: Call) -> Any:
    """[a, b, c, d], axis 1 -> [a, b c d]; axis 0 -> [1, a b c d]."""
    rank, value = call.rank(0), call.tensor(0)
    axis = call.get("axis", 1)
    axis = axis + rank if axis < 0 else axis
    if not 0 <= axis <= rank:
        raise CannotConvert(f"its axis {axis} is outside of a tensor with {rank} dimensions")
    front = call.emit(torch.flatten, value, 0, axis - 1) if axis > 1 else value
    done = max(axis, 0) if axis <= 1 else 1
    if axis == 0:
        return call.emit(torch.unsqueeze, call.emit(torch.flatten, front), 0)
    if axis == rank:
        return call.emit(torch.unsqueeze, front, -1)
    return call.emit(torch.flatten, front, done) if rank - axis > 1 else front


def expand(call: Call) -> Any:
    """Sizes that stay are -1. A size of 1 in the target keeps what the tensor has."""
    tensor, target = call.tensor(0), call.integers(1)
    if isinstance(tensor, Constant):
        if all(isinstance(entry, int) for entry in target):
            return call.emit(stretched, tensor, target)
        tensor = parameters.token(call, tensor)
    shape = list(meta(tensor).shape)
    behind = len(target) - len(shape)
    if behind < 0:
        target = [1] * -behind + target
        behind = 0
    sizes: list[Any] = []
    for i, entry in enumerate(target):
        there = shape[i - behind] if i >= behind else 1
        if i >= behind and (_is(entry, 1) or call.build.same(entry, there)):
            sizes.append(-1)
        elif call.build.same(there, 1) or i < behind:
            sizes.append(entry)
        else:
            return call.emit(stretched, tensor, target)  # which of the two sizes is 1 is known only when it runs
    if all(_is(size, -1) for size in sizes):
        return tensor
    return call.emit(torch.Tensor.expand, tensor, sizes)


def stretched(value: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """The value, broadcast to a common shape with `shape`."""
    return value.expand(torch.broadcast_shapes(value.shape, tuple(shape)))  # type: ignore[no-untyped-call]  # torch's has no hints
