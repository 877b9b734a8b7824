"""Which channels of a network can be rescaled without changing what it computes.

A channel that is divided by s where it is made, and multiplied by s where it is read, changes nothing, as long as all
that stands between lets a positive factor pass: relu, sums, pooling, views, a factor per channel. Each element of each
tensor gets the label of its factor (labels.py). A layer with weights reads one set of factors and makes fresh ones,
sums unite the labels of their operands, data movements are carried out on the labels themselves. Whatever doesn't let a
factor pass (sigmoid, softmax, the network's outputs, an operator that isn't known) sets it to one, label 0.

relu6 lets a factor pass only where its upper bound is never reached; such labels are noted with the bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from pocketfit.passes.graph import aten
from pocketfit.passes.graph.aten import argument, carried_out, module_of, operation, shape_of
from pocketfit.passes.graph.labels import Labels, along, vector
from pocketfit.passes.graph.operators import Fact, having

ONE = 0  # the label of the factor that is always one


@dataclass(frozen=True)
class Weighted:
    """A layer whose weights can take factors: convolution, linear layer, or a batch norm that was not folded.

    node     its operator in the graph
    weight   dotted name of its weight: [out, in / groups, ...], for a batch norm [channels]
    bias     dotted name, "" without one
    inputs   int64 [in]: the label of each channel that it reads
    outputs  int64 [out]: the label of each channel that it makes
    """

    node: fx.Node
    weight: str
    bias: str
    inputs: Tensor
    outputs: Tensor
    groups: int

    @property
    def name(self) -> str:
        """Dotted name of the layer."""
        return self.weight.rpartition(".")[0]

    @property
    def source(self) -> fx.Node:
        """The node of its input tensor."""
        node = self.node.args[0]
        assert isinstance(node, fx.Node)
        return node

    @property
    def dim(self) -> int:
        """The dimension along which its output channels lie."""
        return len(shape_of(self.node)) - 1 if operation(self.node) == "linear" else 1

    @property
    def norm(self) -> bool:
        return operation(self.node) == "batch_norm"

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == len(self.inputs)


@dataclass(frozen=True)
class Carried:
    """A tensor that a quantized file stores as integers: its node, and the label of each position along `dim`."""

    node: fx.Node
    dim: int
    labels: Tensor

    @property
    def new_grid(self) -> bool:
        """Whether its numbers are rounded here; operators that only move numbers keep the grid of their input."""
        return operation(self.node) not in _MOVING


@dataclass(frozen=True)
class Bound:
    """A relu with an upper bound: a factor passes where the channel stays below the bound."""

    node: fx.Node
    labels: Tensor
    high: float


@dataclass(frozen=True)
class Streams:
    """The channels of a network that can be rescaled.

    program  the network as torch.export gives it, batch 2
    layers   the layers with weights, in the order in which they run
    tensors  the tensors that carry at least one free label
    bounds   the relus with an upper bound that free labels pass
    count    number of labels: all are below this
    frozen   reason -> names of the layers whose output channels can't be rescaled because of it
    """

    program: ExportedProgram
    layers: tuple[Weighted, ...]
    tensors: tuple[Carried, ...]
    bounds: tuple[Bound, ...]
    count: int
    frozen: dict[str, tuple[str, ...]]


def find(network: nn.Module, signature: Any) -> Streams:
    """The streams of a network. Raises UserError where torch.export can't follow it."""
    program = aten.export(network, signature)
    walk = _Walk(program)
    for node in program.graph.nodes:
        walk.visit(node)
    return walk.finish()


class _Walk:
    """The state of one walk over the graph."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.names = aten.parameter_names(program)
        self.labels = Labels()
        self.env: dict[fx.Node, Any] = {}
        self.layers: list[Weighted] = []
        self.bounds: list[Bound] = []
        stored = {**program.state_dict, **program.constants}
        self.uses = Counter(
            stored[self.names[node.name]].data_ptr()
            for node in program.graph.nodes
            if node.op == "placeholder" and node.name in self.names
            for _ in node.users
        )
        self.stored = stored

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.env[node] = self.ones(node)
        elif node.op == "output":
            for source in node.all_input_nodes:
                self.fix(source, "they are outputs of the network")
        elif node.op == "call_function":
            self.env[node] = _RULES.get(operation(node), _freeze)(self, node)

    def ones(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if isinstance(value, list | tuple):
            return [torch.zeros((), dtype=torch.int64).expand(v.shape) for v in value if isinstance(v, Tensor)]
        return torch.zeros((), dtype=torch.int64).expand(shape_of(node))

    def fix(self, node: fx.Node, reason: str) -> None:
        labels = self.env[node]
        for part in labels if isinstance(labels, list | tuple) else [labels]:
            self.labels.fix(part, reason)

    def along(self, node: fx.Node, dim: int) -> bool:
        """Whether the labels of this tensor change along `dim` only."""
        labels = self.env[node]
        return isinstance(labels, Tensor) and set(self.labels.varying_dims(labels)) <= {dim % labels.ndim}

    def parameter(self, node: Any) -> str:
        """The dotted name of a parameter or buffer that is used in one place only, else ""."""
        if not isinstance(node, fx.Node) or node.name not in self.names:
            return ""
        name = self.names[node.name]
        return name if self.uses[self.stored[name].data_ptr()] == 1 else ""

    def finish(self) -> Streams:
        reasons = self.labels.fixed()
        fixed = torch.tensor([ONE, *reasons])

        def settled(labels: Tensor) -> Tensor:
            roots = self.labels.roots(labels)
            return torch.where(torch.isin(roots, fixed), ONE, roots)

        frozen: dict[str, list[str]] = {}
        layers, tensors, bounds = [], [], []
        for layer in self.layers:
            for reason in {
                reasons[root]: None for root in self.labels.roots(layer.outputs).tolist() if root in reasons
            }:
                frozen.setdefault(reason, []).append(layer.name)
            ends = settled(layer.inputs), settled(layer.outputs)
            layers.append(Weighted(layer.node, layer.weight, layer.bias, *ends, layer.groups))
        for node, labels in self.env.items():
            if not isinstance(labels, Tensor) or node.op != "call_function" or fused(node):
                continue
            varying = self.labels.varying_dims(labels)
            ids = settled(vector(labels, varying[0])) if len(varying) == 1 else settled(labels.reshape(-1)[:1])
            if len(varying) < 2 and bool((ids != ONE).any()):
                tensors.append(Carried(node, varying[0] if varying else 0, ids))
        for bound in self.bounds:
            if bool(((ids := settled(bound.labels)) != ONE).any()):
                bounds.append(Bound(bound.node, ids, bound.high))
        count = int(max((layer.outputs.max() for layer in layers), default=torch.tensor(0))) + 1
        return Streams(
            self.program,
            tuple(layers),
            tuple(tensors),
            tuple(bounds),
            count,
            {reason: tuple(dict.fromkeys(names)) for reason, names in frozen.items()},
        )


def names(*lines: str) -> frozenset[str]:
    """The names in some lines of text, separated by spaces."""
    return frozenset(" ".join(lines).split())


_MOVING = having(Fact.MOVES)


def fused(node: fx.Node) -> bool:
    """Whether runtimes fuse this node with the one operator that reads it, so that its output is never stored."""
    if len(node.users) != 1 or operation(node) not in ("conv1d", "conv2d", "linear", "add", "batch_norm"):
        return False
    return operation(next(iter(node.users))) in ("relu", "relu6", "hardtanh")


def _place(node: fx.Node) -> str:
    module = module_of(node)
    return f"{operation(node)} in {module}" if module else f"{operation(node)} in the network's own forward"


def _freeze(walk: _Walk, node: fx.Node) -> Any:
    """An operator that lets no factor pass: its inputs and its output have the factor one."""
    for source in node.all_input_nodes:
        walk.fix(source, f"{operation(node)} lets no factor pass")
    return walk.ones(node)


def _layer(walk: _Walk, node: fx.Node) -> Any:
    """conv1d to 3d, linear: reads one set of labels, makes a fresh one."""
    source, weight, bias = argument(node, "input"), argument(node, "weight"), argument(node, "bias")
    dim = len(shape_of(source)) - 1 if operation(node) == "linear" else 1
    name, bias_name = walk.parameter(weight), walk.parameter(bias)
    unbatched = operation(node) != "linear" and len(shape_of(source)) != len(shape_of(weight))
    if not name or (bias is not None and not bias_name) or unbatched or not walk.along(source, dim):
        for operand in node.all_input_nodes:
            walk.fix(operand, f"the weights of {module_of(node) or 'the network'} are used in several places")
        return walk.ones(node)
    outputs = walk.labels.fresh(shape_of(weight)[0])
    inputs = vector(walk.env[source], dim)
    walk.layers.append(Weighted(node, name, bias_name, inputs, outputs, argument(node, "groups", 1)))
    return along(outputs, dim, shape_of(node))


def _batch_norm(walk: _Walk, node: fx.Node) -> Any:
    """A batch norm that could not be folded rescales each channel alone, as a depthwise convolution does."""
    source = argument(node, "input")
    parts = [walk.parameter(argument(node, key)) for key in ("weight", "bias", "running_mean", "running_var")]
    if not all(parts) or not walk.along(source, 1):
        return _freeze(walk, node)
    inputs = vector(walk.env[source], 1)
    outputs = walk.labels.fresh(len(inputs))
    walk.layers.append(Weighted(node, parts[0], parts[1], inputs, outputs, len(inputs)))
    return along(outputs, 1, shape_of(node))


def _pass(walk: _Walk, node: fx.Node) -> Any:
    """relu and similar: f(s x) = s f(x) for s > 0, element by element."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return walk.env[source].expand(shape_of(node))


def _bounded(walk: _Walk, node: fx.Node) -> Any:
    """relu6: a factor passes where the bound is not reached; the caller has to make sure of that (`bounds`)."""
    source, low, high = node.args[0], argument(node, "min_val", 0), argument(node, "max_val", 6)
    assert isinstance(source, fx.Node)
    if low != 0 or not walk.along(source, 1) or not walk.labels.varying_dims(walk.env[source]):
        return _freeze(walk, node)
    walk.bounds.append(Bound(node, vector(walk.env[source], 1), float(high)))
    return walk.env[source]


def _sum(walk: _Walk, node: fx.Node) -> Any:
    """add, sub, maximum, minimum: both operands share a factor."""
    shape = shape_of(node)
    operands = [walk.env[source] for source in node.args[:2] if isinstance(source, fx.Node)]
    if len(operands) < 2 and node.args[1] != 0:
        return _freeze(walk, node)
    operands = [labels.view((1,) * (len(shape) - labels.ndim) + tuple(labels.shape)) for labels in operands]
    for labels in operands[1:]:
        walk.labels.unite(operands[0], labels, f"{_place(node)} adds something that can't be rescaled to them")
    return operands[0].expand(shape)


def _product(walk: _Walk, node: fx.Node) -> Any:
    """x * gate: the factor of x passes, the gate (the operand with fewer elements, or the second) keeps its own."""
    operands = [source for source in node.args[:2] if isinstance(source, fx.Node)]
    if len(operands) == 2:
        free = [source for source in operands if bool((walk.labels.roots(walk.env[source]) != ONE).any())]
        if operation(node) == "div":
            free = [source for source in free if source is operands[0]]
        carrier = max(free or operands, key=lambda source: torch.Size(shape_of(source)).numel())
        for source in operands:
            if source is not carrier or operands[0] is operands[1]:
                walk.fix(source, f"{_place(node)} takes them as factors")
    else:
        carrier = operands[0]
        if carrier is not node.args[0] and operation(node) == "div":
            return _freeze(walk, node)
    labels = walk.env[carrier]
    return labels.view((1,) * (len(shape_of(node)) - labels.ndim) + tuple(labels.shape)).expand(shape_of(node))


def _spatial(walk: _Walk, node: fx.Node) -> Any:
    """Pooling and resizing."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or len(shape_of(source)) < 3 or not walk.along(source, 1):
        return _freeze(walk, node)
    result = along(vector(walk.env[source], 1), 1, shape_of(node))
    return [result] * len(node.meta["val"]) if isinstance(node.meta["val"], list | tuple) else result


def _reduction(walk: _Walk, node: fx.Node) -> Any:
    """mean, sum, amax, amin over dimensions along which the factor stays the same."""
    source, dims = node.args[0], argument(node, "dim")
    if not isinstance(source, fx.Node) or dims is None or isinstance(node.meta.get("val"), list | tuple):
        return _freeze(walk, node)
    labels = walk.env[source]
    reduced = {d % labels.ndim for d in ([dims] if isinstance(dims, int) else dims or range(labels.ndim))}
    if reduced & set(walk.labels.varying_dims(labels)):
        return _freeze(walk, node)
    for dim in sorted(reduced, reverse=True):
        labels = labels.narrow(dim, 0, 1) if argument(node, "keepdim", False) else labels.select(dim, 0)
    return labels


def _execute(walk: _Walk, node: fx.Node) -> Any:
    """An operator that only moves data is carried out on the labels."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: walk.env[source])
    return carried_out(node, args, kwargs)


def _pad(walk: _Walk, node: fx.Node) -> Any:
    """Padding with zeros, which are the same after any factor."""
    if argument(node, "mode", "constant") != "constant" or argument(node, "value", 0) not in (0, None):
        return _freeze(walk, node)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    labels, shape = walk.env[source], shape_of(node)
    varying = walk.labels.varying_dims(labels)
    if len(varying) == 1 and shape[varying[0]] == labels.shape[varying[0]]:
        return along(vector(labels, varying[0]), varying[0], shape)
    widths: Any = node.args[1]
    return torch.nn.functional.pad(labels, widths, value=ONE)


def _getitem(walk: _Walk, node: fx.Node) -> Any:
    source, index = cast("tuple[fx.Node, int]", node.args)  # as operator.getitem takes them
    return walk.env[source][index]


def _rules(names: str, rule: Callable[[_Walk, fx.Node], Any]) -> dict[str, Callable[[_Walk, fx.Node], Any]]:
    return dict.fromkeys(names.split(), rule)


_RULES: dict[str, Callable[[_Walk, fx.Node], Any]] = {
    **_rules("conv1d conv2d conv3d linear", _layer),
    **_rules("batch_norm", _batch_norm),
    **_rules("relu leaky_relu prelu abs neg dropout feature_dropout", _pass),
    **_rules("clone contiguous detach alias lift_fresh_copy", _pass),
    **_rules("relu6 hardtanh", _bounded),
    **_rules("add sub maximum minimum", _sum),
    **_rules("mul div", _product),
    **_rules("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d", _spatial),
    **_rules("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d", _spatial),
    **_rules("adaptive_max_pool2d upsample_nearest1d upsample_nearest2d upsample_linear1d", _spatial),
    **_rules("upsample_bilinear2d upsample_bicubic2d", _spatial),
    **_rules("mean sum amax amin", _reduction),
    **_rules("view reshape _unsafe_view view_as flatten unflatten expand expand_as", _execute),
    **_rules("permute transpose swapaxes t movedim unsqueeze squeeze", _execute),
    **_rules("slice select unbind narrow chunk split split_with_sizes", _execute),
    **_rules("cat concat stack pixel_shuffle", _execute),
    **_rules("pad constant_pad_nd", _pad),
    **_rules("getitem", _getitem),
}
