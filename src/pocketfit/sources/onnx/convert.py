"""From an ONNX graph to a torch.fx.GraphModule with named layers that can be trained, pruned and exported again."""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import fx

from pocketfit.core.errors import UserError
from pocketfit.sources.onnx.builder import Builder, CannotConvert, Constant, Sizes
from pocketfit.sources.onnx.call import Call, Value
from pocketfit.sources.onnx.file.graph import Graph, Node
from pocketfit.sources.onnx.file.read import first_line
from pocketfit.sources.onnx.operators import TABLE
from pocketfit.sources.onnx.refusals import why_refused

# Sizes that the dynamic axes are tried at: (first axis, token axis, others). They only have to suit the network.
EXAMPLES = (
    (2, 16, 64),
    (12, 24, 96),
    (2, 32, 224),
    (3, 128, 320),
    (2, 2, 64),
    (2, 9, 33),
    (2, 576, 128),
    (2, 480, 640),
)

MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError, MemoryError)
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def convert(graph: Graph) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The network in eval mode, and sentences about it.

    Raises UserError that names the operator, its node, and what to do.
    """
    first: UserError | None = None
    for examples in EXAMPLES if _dynamic(graph) else EXAMPLES[:1]:
        try:
            return _Conversion(graph, examples).run()
        except UserError as error:
            if isinstance(error.__cause__, CannotConvert) and "torch says" in str(error):
                first = first or error  # the network may run at other sizes
                continue
            raise
    assert first is not None
    raise UserError(f"{first}; if its dynamic axes must have certain sizes, fix them (sizes=...)")


def _dynamic(graph: Graph) -> bool:
    return any(not isinstance(size, int) for value in graph.inputs for size in value.shape or ())


class _Conversion:
    def __init__(self, graph: Graph, examples: tuple[int, int, int]) -> None:
        self.source, self.build, self.examples = graph, Builder(), examples
        self.layers: dict[Any, str] = {}
        self.notes: dict[str, Any] = {}
        self.readers = Counter(name for node in graph.all_nodes() for name in node.inputs)
        self.readers.update(value.name for value in graph.outputs)

    def run(self) -> tuple[fx.GraphModule, tuple[str, ...]]:
        self.unreadable = dict(self.source.unreadable)
        env: dict[str, Value] = {}
        for value in self.source.inputs:
            env[value.name] = self._input(value)
        env |= {name: Constant(tensor, name, stored=True) for name, tensor in self.source.constants.items()}
        self._nodes(self.source, env)
        outputs = [self._output(env, value.name) for value in self.source.outputs]
        return self.build.finish(outputs), tuple(self.build.findings)

    def _input(self, value: Any) -> fx.Node:
        dtype = getattr(torch, value.dtype, None)
        if value.shape is None or not isinstance(dtype, torch.dtype):
            kind = "has no known number of dimensions" if isinstance(dtype, torch.dtype) else "is no tensor of numbers"
            raise UserError(f"its input '{value.name}' {kind}")
        if dtype in UNSIGNED:
            raise UserError(
                f"its input '{value.name}' has numbers of kind {value.dtype}, with which torch can't compute"
            )
        batch, tokens, others = self.examples
        shape = []
        for dim, size in enumerate(value.shape):
            example = batch if dim == 0 else tokens if dim == 1 else others * (1 if dim == 2 else 2)
            axis = size if isinstance(size, str) else f"{value.name}_{dim}"
            shape.append(size if isinstance(size, int) else self.build.symbol(axis, example))
        try:
            return self.build.placeholder(value.name, shape, dtype)
        except CannotConvert as reason:
            raise UserError(str(reason)) from reason

    def _output(self, env: Mapping[str, Value], name: str) -> fx.Node:
        value = env[name]
        if isinstance(value, list):
            raise UserError(f"its output '{name}' is a sequence of tensors, which no runtime here can give")
        call = Call(
            Node(
                operator="Identity",
                domain="",
                version=1,
                name=name,
                scope="",
                inputs=(name,),
                outputs=(name,),
                attributes={},
            ),
            self.build,
            [value],
            lambda _: False,
            {},
            _no_branch,
        )
        tensor = call.tensor(0)
        return self.build.attribute(tensor) if isinstance(tensor, Constant) else tensor

    def _nodes(self, graph: Graph, env: MutableMapping[str, Value]) -> None:
        for node in graph.nodes:
            results = self._node(node, env)
            for name, value in zip(node.outputs, results, strict=False):
                if name:
                    self._count_alias(node, env, name, value)
                    env[name] = _named(value, name)

    def _count_alias(self, node: Node, env: Mapping[str, Value], name: str, value: Value) -> None:
        """Count the readers of an operator that only passes its input on as readers of that input."""
        for source in node.inputs:
            if isinstance(value, fx.Node) and source and env[source] is value:
                self.readers[name] += self.readers[source] - 1

    def _node(self, node: Node, env: MutableMapping[str, Value]) -> tuple[Value, ...]:
        handler = TABLE.get(node.operator) if not node.domain else None
        if handler is None:
            raise UserError(why_refused(node))
        values = [self._read(node, name, env) if name else None for name in node.inputs]
        call = Call(
            node,
            self.build,
            values,
            lambda i: self.readers[node.inputs[i]] == 1,
            self.layers,
            lambda branch: self._branch(branch, env),
            self.notes,
        )
        try:
            result = handler(call)
        except CannotConvert as reason:
            raise UserError(f"the operator {node} can't be carried over: {reason}") from reason
        except MALFORMED as error:  # too few inputs, an attribute of another kind: the file is malformed
            what = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"the operator {node} has inputs or attributes that it can't have ({what})") from error
        results = result if isinstance(result, tuple) else (result,)
        return tuple(_as_value(value) for value in results)

    def _read(self, node: Node, name: str, env: Mapping[str, Value]) -> Value:
        if name in self.unreadable:
            raise UserError(f"the constant '{name}' that {node} reads can't be carried over: {self.unreadable[name]}")
        return env[name]

    def _branch(self, branch: Graph, env: MutableMapping[str, Value]) -> list[Value]:
        """The outputs of a branch that is taken for all inputs."""
        self.unreadable |= branch.unreadable
        inner: ChainMap[str, Value] = ChainMap({}, env)
        inner.update({name: Constant(tensor, name, stored=True) for name, tensor in branch.constants.items()})
        self._nodes(branch, inner)
        return [inner[value.name] for value in branch.outputs]


def _no_branch(_: Graph) -> list[Value]:
    return []


def _named(value: Value, name: str) -> Value:
    """The value; a computed constant gets this name."""
    computed = isinstance(value, Constant) and value.name == "constant"
    return Constant(value.tensor, name, value.stored) if computed and isinstance(value, Constant) else value


def _as_value(value: Any) -> Any:
    """The value; Python numbers that a handler computed become constants."""
    if isinstance(value, bool | int | float):
        kind = torch.bool if isinstance(value, bool) else torch.int64 if isinstance(value, int) else torch.float32
        return Constant(torch.tensor(value, dtype=kind), "constant")
    if isinstance(value, Sizes) and not any(isinstance(entry, fx.Node) for entry in value.entries):
        entries = value.entries[0] if value.scalar else list(value.entries)
        whole = torch.int64 if not value.entries or isinstance(value.entries[0], int) else None
        dtype = torch.bool if value.entries and isinstance(value.entries[0], bool) else whole
        return Constant(torch.tensor(entries, dtype=dtype), "constant")
    return value
