"""The argument of a handler: one operator of the file, its inputs as far as they are known, and the graph to extend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from pocketfit.sources.onnx import names
from pocketfit.sources.onnx.builder import Builder, CannotConvert, Constant, Sizes, known, meta
from pocketfit.sources.onnx.file.graph import Graph, Node

MOST_ENTRIES = 1024  # a longer list of integers is a table, not a shape
Value = fx.Node | Constant | Sizes | list[Any]  # a list: a sequence of tensors
REQUIRED = object()


@dataclass
class Call:
    """One node of the file. `values` are its inputs, None where one is left out."""

    node: Node
    build: Builder
    values: Sequence[Value | None]
    once: Callable[[int], bool]  # whether input i is read here and nowhere else
    layers: dict[Any, str]  # layers made so far, by what they are made of
    branch: Callable[[Graph], list[Value]]
    notes: dict[str, Any] = field(default_factory=dict)

    # --- attributes

    def get(self, name: str, default: Any = REQUIRED) -> Any:
        value = self.node.attributes.get(name, default)
        if value is REQUIRED:
            raise CannotConvert(f"its attribute '{name}' is missing")
        if isinstance(value, str) and value.startswith("unreadable: "):
            raise CannotConvert(value.removeprefix("unreadable: "))
        return value

    def must(self, name: str, *allowed: Any, default: Any) -> None:
        """Refuse any other value of an attribute."""
        value = self.get(name, default)
        if value not in allowed:
            raise CannotConvert(f"'{name}' is {value!r}, which torch has not")

    @property
    def version(self) -> int:
        return self.node.version

    # --- inputs

    def has(self, i: int) -> bool:
        return i < len(self.values) and self.values[i] is not None

    def tensor(self, i: int) -> fx.Node | Constant:
        """Input i as a tensor."""
        value = self.values[i] if self.has(i) else None
        if value is None:
            raise CannotConvert(f"its input {i} is missing")
        return self.as_tensor(value)

    def as_tensor(self, value: Value) -> fx.Node | Constant:
        if isinstance(value, list):
            raise CannotConvert("it reads a sequence as one tensor")
        return self.spread(value) if isinstance(value, Sizes) else value

    def spread(self, sizes: Sizes) -> fx.Node:
        """Sizes as a tensor, where an operator needs one."""
        dtype = torch.int64
        if any(isinstance(known(entry), float | torch.SymFloat) for entry in sizes.entries):
            dtype = torch.float32
        if all(isinstance(known(entry), bool | torch.SymBool) for entry in sizes.entries):
            dtype = torch.bool
        parts = [self.emit(torch.full, (), entry, dtype=dtype) for entry in sizes.entries]
        result: fx.Node = parts[0] if sizes.scalar else self.emit(torch.stack, parts)
        return result

    def constant(self, i: int) -> Constant:
        """Input i, which must not depend on the network's inputs."""
        value = self.values[i] if self.has(i) else None
        if not isinstance(value, Constant):
            raise CannotConvert(f"its input {i} must be a constant, and is computed from the network's inputs")
        return value

    def stored(self, i: int) -> Constant | None:
        """Input i where it is a constant."""
        value = self.values[i] if self.has(i) else None
        return value if isinstance(value, Constant) else None

    def number(self, i: int, default: Any = None) -> Any:
        """One number, known now: of a scalar or of a tensor with one element."""
        if not self.has(i):
            return default
        tensor = self.constant(i).tensor
        if tensor.numel() != 1:
            raise CannotConvert(f"its input {i} has {tensor.numel()} numbers in place of one")
        return tensor.item()

    def integers(self, i: int) -> list[Any]:
        """A list of integers: numbers, or nodes where they depend on sizes."""
        value = self.values[i] if self.has(i) else None
        if isinstance(value, Sizes):
            return list(value.entries)
        if isinstance(value, Constant) and value.tensor.numel() <= MOST_ENTRIES:
            return list(value.tensor.flatten().tolist())
        raise CannotConvert(f"its input {i} must follow from sizes, and is computed from the network's numbers")

    def axes(self, i: int, name: str = "axes") -> list[int] | None:
        """Dimensions, given as input i (newer files) or as an attribute (older ones), counted from the front."""
        given = self.integers(i) if self.has(i) else self.get(name, None)
        rank = self.rank(0)
        return None if given is None else [dim_of(int(axis), rank) for axis in given]

    def axis(self, default: int = 0, rank: int | None = None) -> int:
        return dim_of(self.get("axis", default), self.rank(0) if rank is None else rank)

    # --- what is known of a value

    def meta(self, i: int) -> Tensor:
        return meta(self.tensor(i))

    def rank(self, i: int) -> int:
        value = self.values[i] if self.has(i) else None
        if isinstance(value, Sizes):
            return 0 if value.scalar else 1
        return self.meta(i).ndim

    def static(self, i: int) -> list[int | None]:
        """Sizes, None where they are dynamic."""
        return [size if isinstance(size, int) else None for size in self.meta(i).shape]

    # --- results

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.build.emit(target, *args, **kwargs)

    def pick(self, value: Any, count: int) -> tuple[Any, ...]:
        """The parts of a function's tuple."""
        import operator

        if isinstance(value, fx.Node):
            return tuple(self.emit(operator.getitem, value, i) for i in range(count))
        return tuple(value[:count])

    def layer(self, module: nn.Module, weight: Constant, *args: Any) -> Any:
        """Call a layer with weights. Where the same weights were used in the same layer at the same place (by the torch
        module's name), it is a further call of that layer.

        Exporters store equal numbers once, so equal weights at different places do not mean that layers share them.
        """
        place = self.node.scope or names.from_path(self.node.name)
        stored = [value for value in self.values if isinstance(value, Constant)]
        self.notes.setdefault("kept", []).append(stored)  # keeps the object alive, so that its id stays its own
        numbers = tuple(id(value) for value in stored)
        key = (numbers, repr(module), place)
        if key not in self.layers:
            if any(made[0] == numbers and made[2] == place for made in self.layers):
                self.build.findings[
                    f"The weights '{weight.name}' are used by layers of different kinds; each trains its own copy."
                ] = None
            wanted = (names.from_weight(weight.name), names.dotted(place), self._place(), "layer")
            given = [name for name in wanted if name]
            self.layers[key] = self.build.add_module(module, next(filter(self.build.names.is_free, given), given[0]))
        return self.build.call_module(self.layers[key], *args)

    def activation(self, module: nn.Module, value: Any) -> Any:
        """A layer without weights, which gets its name from the place of the operator."""
        if isinstance(value, Constant):
            return self.emit(module, value)
        scope = names.dotted(self.node.scope) or names.from_path(self.node.name)
        kind = type(module).__name__.lower()
        return self.build.layer(module, f"{scope}.{kind}" if scope else kind, value)

    def _place(self) -> str:
        path = names.from_path(self.node.name)
        made_up = self.node.name.startswith("node_")
        plain = self.node.name.removeprefix("node_") if made_up else ""
        return path or names.dotted(plain) or self.node.operator.lower()


Handler = Callable[[Call], Any]
Table = Mapping[str, Handler]


def dim_of(axis: int, rank: int) -> int:
    """Counted from the front: -1, 4 -> 3."""
    if not -rank <= axis < max(rank, 1):
        raise CannotConvert(f"its axis {axis} is outside of a tensor with {rank} dimensions")
    return axis + rank if axis < 0 else axis
