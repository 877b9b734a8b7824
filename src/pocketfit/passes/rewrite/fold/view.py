"""A traced network seen as arithmetic: which node is a sum, a product, a clamp, and what its constants are."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.shape_prop import ShapeProp

FUNCTIONS: dict[Any, str] = {
    operator.add: "add", torch.add: "add", operator.sub: "sub", torch.sub: "sub",
    operator.mul: "mul", torch.mul: "mul", operator.truediv: "div", torch.div: "div", torch.true_divide: "div",
    torch.pow: "pow", operator.pow: "pow", torch.square: "square", torch.sqrt: "sqrt", torch.rsqrt: "rsqrt",
    torch.reciprocal: "reciprocal", torch.erf: "erf", torch.tanh: "tanh", F.tanh: "tanh",
    torch.sigmoid: "sigmoid", F.sigmoid: "sigmoid", F.hardsigmoid: "hardsigmoid", F.relu6: "relu6",
    F.hardtanh: "hardtanh", torch.clamp: "clamp", torch.clip: "clamp", torch.mean: "mean",
    torch.permute: "permute", torch.transpose: "transpose", torch.reshape: "reshape", torch.Tensor.reshape: "reshape",
    torch.flatten: "flatten", torch.unflatten: "unflatten", torch.unsqueeze: "unsqueeze", torch.squeeze: "squeeze",
    F.dropout: "dropout",
}  # fmt: skip
METHODS = {name: name for name in ("add", "sub", "mul", "div", "pow", "square", "sqrt", "rsqrt", "reciprocal")}
METHODS |= {name: name for name in ("erf", "tanh", "sigmoid", "clamp", "mean", "permute", "transpose", "reshape")}
METHODS |= {name: name for name in ("flatten", "unflatten", "unsqueeze", "squeeze", "contiguous")} | {"view": "reshape"}
MODULES: dict[type[nn.Module], str] = {
    nn.ReLU6: "relu6", nn.Hardtanh: "hardtanh", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh",
    nn.Hardsigmoid: "hardsigmoid", nn.Identity: "identity", nn.Dropout: "identity", nn.Dropout2d: "identity",
    nn.BatchNorm1d: "batch_norm", nn.BatchNorm2d: "batch_norm", nn.BatchNorm3d: "batch_norm",
    nn.InstanceNorm1d: "instance_norm", nn.Conv1d: "conv", nn.Conv2d: "conv", nn.Conv3d: "conv",
    nn.ConvTranspose1d: "conv_transpose", nn.ConvTranspose2d: "conv_transpose", nn.ConvTranspose3d: "conv_transpose",
    nn.Linear: "linear",
}  # fmt: skip


class View:
    """A network with the shapes that its nodes have on example inputs."""

    def __init__(self, network: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
        self.network, self.inputs = network, inputs
        self.refresh()

    @property
    def graph(self) -> fx.Graph:
        return self.network.graph

    def refresh(self) -> None:
        """Remove dead nodes and compute shapes again, after a change of the graph."""
        self.graph.eliminate_dead_code()
        self.network.delete_all_unused_submodules()
        self.network.recompile()
        self._shapes()
        self.calls = Counter(str(node.target) for node in self.graph.nodes if node.op == "call_module")

    def _shapes(self) -> None:
        """Note the shape of each node's output: without computing, where the network allows that."""
        with torch.no_grad():
            try:
                mode = FakeTensorMode(allow_non_fake_inputs=True)
                ShapeProp(self.network, fake_mode=mode).propagate(*map(mode.from_tensor, self.inputs))
            except Exception:  # a module taken whole may do anything with its numbers: they have to be real
                ShapeProp(self.network).propagate(*self.inputs)

    def kind(self, node: Any) -> str:
        """ "add", "mul", "conv", ...; "" for what plays no part here, and for anything with keyword arguments."""
        if not isinstance(node, fx.Node):
            return ""
        if node.op == "call_module":
            return MODULES.get(type(self.module(node)), "")
        names: dict[Any, str] = {"call_function": FUNCTIONS, "call_method": METHODS}.get(node.op, {})
        return names.get(node.target, "")

    def module(self, node: fx.Node) -> Any:
        return self.network.get_submodule(str(node.target))

    def shape(self, node: Any) -> tuple[int, ...]:
        """The shape of a node's output; () where it is no single tensor."""
        meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
        return tuple(meta.shape) if meta is not None and hasattr(meta, "shape") else ()

    def constant(self, value: Any) -> Tensor | None:
        """The numbers of a parameter or buffer, or of a Python number; None for what depends on the inputs."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return torch.tensor(value, dtype=torch.float64)
        if isinstance(value, fx.Node) and value.op == "get_attr":
            found: Any = self.network
            for part in str(value.target).split("."):
                found = getattr(found, part)
            return found.detach() if isinstance(found, Tensor) and found.is_floating_point() else None
        return None

    def number(self, value: Any) -> float | None:
        """The number of a constant with one element; None for anything else."""
        tensor = self.constant(value)
        return float(tensor) if tensor is not None and tensor.numel() == 1 else None

    def two(self, node: Any, kind: str) -> tuple[Any, Any] | None:
        """Both operands, where the node is of this kind and has nothing else."""
        if self.kind(node) != kind or len(node.args) != 2 or node.kwargs:
            return None
        return node.args[0], node.args[1]

    def plus(self, node: Any) -> tuple[Any, float] | None:
        """x + 3, 3 + x, x - (-3) -> (x, 3)."""
        pair = self.two(node, "add")
        if pair is not None:
            for value, other in (pair, pair[::-1]):
                number = self.number(other)
                if number is not None and self.constant(value) is None:
                    return value, number
        pair = self.two(node, "sub")
        number = self.number(pair[1]) if pair is not None else None
        return (pair[0], -number) if pair is not None and number is not None else None

    def product(self, node: Any, above: fx.Node | None = None) -> tuple[float, list[Any]]:
        """A tree of products and quotients by numbers, as one number and the factors: x * (y / 6) -> (1/6, [x, y])."""
        inner = above is None or (isinstance(node, fx.Node) and set(node.users) == {above})
        pair = self.two(node, "mul") if inner else None
        if pair is not None:
            first, second = self.product(pair[0], node), self.product(pair[1], node)
            return first[0] * second[0], first[1] + second[1]
        pair = self.two(node, "div") if inner else None
        divisor = self.number(pair[1]) if pair is not None else None
        if pair is not None and divisor:
            number, factors = self.product(pair[0], node)
            return number / divisor, factors
        constant = self.number(node)
        return (1.0, [node]) if constant is None else (constant, [])

    def scaled(self, node: Any) -> tuple[Any, float]:
        """0.5 x -> (x, 0.5); anything else is once itself."""
        number, factors = self.product(node)
        return (factors[0], number) if len(factors) == 1 else (node, 1.0)

    def clamped(self, node: Any) -> tuple[Any, float, float] | None:
        """relu6(x) -> (x, 0, 6)."""
        kind = self.kind(node)
        if kind == "relu6" and not node.kwargs.get("inplace"):
            return node.args[0], 0.0, 6.0
        if kind == "hardtanh" and node.op == "call_module":
            module = self.module(node)
            return node.args[0], float(module.min_val), float(module.max_val)
        if kind in ("hardtanh", "clamp") and node.args:
            low = self.number(_argument(node, 1, "min", "min_val"))
            high = self.number(_argument(node, 2, "max", "max_val"))
            return None if low is None or high is None else (node.args[0], low, high)
        return None

    def only_user(self, node: fx.Node) -> fx.Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def replace(self, node: fx.Node, value: fx.Node) -> None:
        """Let all readers of `node` read `value`; `refresh` removes the node."""
        node.replace_all_uses_with(value)

    def add_module(self, module: nn.Module, name: str, before: fx.Node, value: Any) -> fx.Node:
        """A new layer in front of a node, in the network's dtype."""
        path, number = name, 1
        while _exists(self.network, path):
            path, number = f"{name}_{number}", number + 1
        self.network.add_submodule(path, module.to(self._dtype()).eval())
        with self.graph.inserting_before(before):
            node = self.graph.call_module(path, (value,))
        node.meta.update(before.meta)
        return node

    def _dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32)


def _argument(node: fx.Node, place: int, *names: str) -> Any:
    if len(node.args) > place:
        return node.args[place]
    return next((node.kwargs[name] for name in names if name in node.kwargs), None)


def _exists(network: nn.Module, path: str) -> bool:
    found: Any = network
    for part in path.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def close(first: float, second: float) -> bool:
    """Whether two numbers are equal up to float32's rounding."""
    return abs(first - second) <= 1e-6 * max(abs(first), abs(second))


Rule = Callable[[View], int]
