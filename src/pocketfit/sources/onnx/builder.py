"""Builds the torch.fx graph: each step is tried on tensors without numbers first, so that shapes are always known.

Dynamic axes are symbols. Sizes are Python numbers, or nodes `x.size(i)` where the axis is dynamic, and arithmetic on
them stays arithmetic on numbers: as tensors they would hide the sizes from torch.export.
What depends on constants alone is computed at once.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    statically_known_true,
)

from pocketfit.core.errors import UserError
from pocketfit.sources.onnx.names import Names, identifier

MOST_BYTES = 2**31  # limit for one tensor inside the network, at the sizes tried
MOST_FOLDED_BYTES = 2**31  # limit for all constants that are computed, together
RESERVED = frozenset(dir(fx.GraphModule)) | frozenset(vars(nn.Module()))


@dataclass(frozen=True, eq=False)
class Constant:
    """Numbers that don't depend on the inputs. `stored`: they are in the file as such, perhaps in another layout."""

    tensor: Tensor
    name: str
    stored: bool = False


@dataclass(frozen=True, eq=False)
class Sizes:
    """Numbers computed from the sizes of tensors: a list, or one number (`scalar`). At least one of them is a node."""

    entries: tuple[Any, ...]
    scalar: bool = False


class CannotConvert(Exception):
    """An operator that, as it is used here, has no form in torch; the message is the reason, the end of a sentence."""


Converted = fx.Node | Constant | Sizes


class Builder:
    """The graph so far, with the modules that it calls."""

    def __init__(self) -> None:
        self.graph, self.root = fx.Graph(), nn.Module()
        self.names = Names(RESERVED)
        self.findings: dict[str, None] = {}
        self._axes = ShapeEnv(duck_shape=False)
        self._mode = FakeTensorMode(shape_env=self._axes, allow_non_fake_inputs=True)
        self._symbols: dict[str, Any] = {}
        self._attributes: dict[int, tuple[Constant, fx.Node]] = {}
        self._folded_bytes = 0

    def symbol(self, axis: str, example: int) -> Any:
        """The size of a dynamic axis; the same axis is the same symbol everywhere."""
        from torch._dynamo.source import ConstantSource

        if axis not in self._symbols:
            source = ConstantSource(identifier(axis))
            symbol = self._axes.create_symbol(example, source, dynamic_dim=DimDynamic.DYNAMIC)
            self._symbols[axis] = self._axes.create_symintnode(symbol, hint=example, source=source)
        return self._symbols[axis]

    def placeholder(self, name: str, shape: Sequence[Any], dtype: torch.dtype) -> fx.Node:
        node = self.graph.placeholder(self.names.free(identifier(name)))
        if math.prod(example(size) or 0 for size in shape) * dtype.itemsize > MOST_BYTES:
            raise CannotConvert(f"its input '{name}' is larger than {MOST_BYTES >> 30} GiB")
        with self._mode:
            node.meta["val"] = torch.empty(tuple(shape), dtype=dtype)
        return node

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `target`: a node, or a Constant or Python number where no argument depends on the inputs."""
        args, kwargs = _entries(args), _entries(kwargs)
        if not _holds(fx.Node, (args, kwargs)):
            return self._fold(target, args, kwargs)
        args, kwargs = _replaced((args, kwargs), Constant, self.attribute)
        node = self.graph.call_function(target, args, kwargs)
        return self._known(node, lambda a, k: target(*a, **k), args, kwargs)

    def size(self, source: fx.Node, dim: int) -> Any:
        """`source.size(dim)`: a number where the axis is static."""
        known = source.meta["val"].shape[dim]
        return known if isinstance(known, int) else self.size_node(source, dim)

    def size_node(self, source: fx.Node, dim: int) -> fx.Node:
        """`source.size(dim)` as a node whether the axis is static or not, so that it follows when layers are pruned."""
        node = self.graph.call_method("size", (source, dim))
        node.meta["val"] = source.meta["val"].shape[dim]
        return node

    def layer(self, module: nn.Module, name: str, *args: Any) -> Any:
        """Call `module`, which gets this name or one like it."""
        return self.call_module(self.add_module(module, name), *args)

    def add_module(self, module: nn.Module, name: str) -> str:
        path = self.names.free(name)
        *parents, last = path.split(".")
        holder = self.root
        for parent in parents:
            if parent not in holder._modules:
                holder.add_module(parent, nn.Module())
            holder = holder.get_submodule(parent)
        holder.add_module(last, module.eval())
        return path

    def call_module(self, path: str, *args: Any) -> Any:
        module = self.root.get_submodule(path)
        args = _replaced(_entries(args), Constant, self.attribute)
        node = self.graph.call_module(path, args)
        return self._known(node, lambda a, _: module(*a), args, {})

    def attribute(self, constant: Constant, *, trained: bool = False) -> fx.Node:
        """A constant as a buffer, or as a parameter where it is to be trained."""
        if id(constant) not in self._attributes:
            # torch's ONNX exporter gives the names "val_0", "val_1", … itself, and fails where one is taken
            name = self.names.free(re.sub(r"^val_(\d+)$", r"constant_\1", identifier(constant.name)))
            if trained:
                self.root.register_parameter(name, nn.Parameter(constant.tensor.clone()))
            else:
                self.root.register_buffer(name, constant.tensor.clone())
            node = self.graph.get_attr(name)
            with self._mode:
                node.meta["val"] = self._mode.from_tensor(constant.tensor, static_shapes=True)
            self._attributes[id(constant)] = (constant, node)
        return self._attributes[id(constant)][1]

    def truth(self, value: Any) -> bool:
        """A condition on sizes as True or False. Where it is not the same for all sizes, the value at the sizes tried
        is taken, and a finding says so."""
        known = value.meta["val"] if isinstance(value, fx.Node) else value
        if isinstance(known, bool):
            return known
        if statically_known_true(known):
            return True
        if statically_known_true(torch.sym_not(known)):  # type: ignore[no-untyped-call]  # torch's has no hints
            return False
        answer = bool(known)
        self.findings[
            f"The file decides something by the size of an input; the network keeps what holds where {known}"
            f" is {answer}."
        ] = None
        return answer

    def same(self, first: Any, second: Any) -> bool:
        """Whether two sizes are the same for all inputs, as far as that is known."""
        return bool(statically_known_true(known(first) == known(second)))

    def finish(self, outputs: Sequence[fx.Node]) -> fx.GraphModule:
        """The network, without nodes that nothing reads."""
        self.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        module = fx.GraphModule(self.root, self.graph)
        module.graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
        for name in [*module._parameters, *module._buffers]:
            if name not in used:
                delattr(module, name)
        for node in module.graph.nodes:
            node.meta.pop("val", None)
        module.recompile()
        return module.eval()

    def _known(self, node: fx.Node, call: Callable[[Any, Any], Any], args: Any, kwargs: Any) -> Any:
        """The node with its value on tensors without numbers; a number that is the same for all inputs itself."""
        args, kwargs = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        value = self._imagine(call, args, kwargs)
        if isinstance(value, torch.SymInt) and value.node.maybe_as_int() is not None:
            value = int(value)
        if value is None or isinstance(value, bool | int | float):
            self.graph.erase_node(node)
            return value
        node.meta["val"] = value
        return node

    def _imagine(self, call: Callable[[Any, Any], Any], args: Any, kwargs: Any) -> Any:
        try:
            # Without torch's Python dispatcher some operators (upsample_bilinear2d) tie symbols to their numbers.
            with self._mode, enable_python_dispatcher(), torch.no_grad(), _silent():
                value = call(args, kwargs)
        except (CannotConvert, UserError):
            raise
        except Exception as error:  # whatever torch's operators raise
            raise CannotConvert(_short(error)) from error
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, Tensor) and _bytes(part) > MOST_BYTES:
                raise CannotConvert(f"its result of shape {[example(s) for s in part.shape]} is larger than any memory")
        return value

    def _fold(self, target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call the function on constants now, after a check of how much memory that takes."""
        used = [c for c in _all((args, kwargs)) if isinstance(c, Constant)]
        args, kwargs = _replaced((args, kwargs), Constant, lambda constant: constant.tensor)
        imagined = self._imagine(lambda a, k: target(*a, **k), args, kwargs)
        parts = imagined if isinstance(imagined, list | tuple) else [imagined]
        self._folded_bytes += sum(_bytes(part) for part in parts if isinstance(part, Tensor))
        if self._folded_bytes > MOST_FOLDED_BYTES:
            raise CannotConvert(f"the constants that it makes take more than {MOST_FOLDED_BYTES >> 30} GiB")
        with torch.no_grad(), _silent():
            result = target(*args, **kwargs)

        def named(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            stored = len(used) == 1 and used[0].stored and used[0].tensor.numel() == value.numel()
            return Constant(value.contiguous(), used[0].name if stored else "constant", stored)

        return type(result)(map(named, result)) if isinstance(result, list | tuple) else named(result)


def known(value: Any) -> Any:
    """The (perhaps symbolic) number behind a size."""
    return value.meta["val"] if isinstance(value, fx.Node) else value


def meta(value: fx.Node | Constant) -> Tensor:
    """A tensor with the value's shape and dtype; for a node it holds no numbers."""
    tensor: Tensor = value.tensor if isinstance(value, Constant) else value.meta["val"]
    return tensor


def _entries(value: Any) -> Any:
    """Sizes become a list of numbers and nodes, or the one number."""
    if isinstance(value, Sizes):
        return value.entries[0] if value.scalar else list(value.entries)
    if isinstance(value, list | tuple):
        return type(value)(map(_entries, value))
    if isinstance(value, dict):
        return {key: _entries(entry) for key, entry in value.items()}
    return value


def _replaced(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_replaced(entry, kind, change) for entry in value)
    if isinstance(value, dict):
        return {key: _replaced(entry, kind, change) for key, entry in value.items()}
    if isinstance(value, slice):
        return slice(*(_replaced(part, kind, change) for part in (value.start, value.stop, value.step)))
    return value


def _all(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [found for entry in value for found in _all(entry)]
    if isinstance(value, dict):
        return _all(list(value.values()))
    return _all([value.start, value.stop, value.step]) if isinstance(value, slice) else [value]


def _holds(kind: type, value: Any) -> bool:
    return any(isinstance(entry, kind) for entry in _all(value))


def example(size: Any) -> int | None:
    """The number that stands for a size where the network is tried; None where it depends on the inputs' numbers.

    int(size) would tie the size to that number for good.
    """
    found = size if isinstance(size, int) else size.node.hint
    return None if found is None else int(found)


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor at the sizes tried; 0 where a size depends on values (how many are not zero, ...)."""
    sizes = [example(size) for size in tensor.shape]
    return math.prod(size if size is not None else 0 for size in sizes) * tensor.dtype.itemsize


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"torch says: {lines[0][:200]}" if lines else type(error).__name__


class _silent:
    """Silences torch's log lines about symbols that it can't follow: the error says the same to a user."""

    def __enter__(self) -> None:
        self.level = logging.root.manager.disable
        logging.disable(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.disable(self.level)
