"""Attention: which channels of which layers are one head, and what attention does to labels.

A head is a block of channels of q, k and v that only goes as a whole, with the channels that it gives to the layer
behind the attention. `heads_of` finds the blocks before labels are given out: it lets each layer's channels run through
operators that move them until they meet in a matrix product, one row of channels for each head. All rules then see one
channel a head. What it misses, or takes for a head that is none, does no harm: the rules for products below keep
whatever they can't follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from pocketfit.passes.graph.aten import argument, carried_out, module_of, operation, parameter_names, shape_of
from pocketfit.passes.graph.channel_rules import RULES, Rule, Walk, _elementwise, _execute, _hide, _pick, _place, _split
from pocketfit.passes.graph.labels import NO_CHANNEL, Labels, along

PRODUCTS = frozenset(("matmul", "bmm", "scaled_dot_product_attention"))
MOVERS = frozenset(name for name, rule in RULES.items() if rule in (_execute, _pick, _split)) | {"getitem"}
THROUGH = frozenset(name for name, rule in RULES.items() if rule is _elementwise) | {
    *("softmax", "_softmax", "layer_norm", "masked_fill"),
}
MAKERS: Mapping[str, int] = {"linear": -1, "conv1d": 1, "conv2d": 1}  # operator -> dimension of its channels

Heads = Mapping[str, Tensor]


def heads_of(program: ExportedProgram, names: Mapping[str, str]) -> Heads:
    """Name of a weight -> for each channel that it makes, a number that all channels of one head share; for weights
    whose channels are heads.

    names  placeholder -> name of the parameter
    """
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    if not any(operation(node) in PRODUCTS for node in nodes):
        return {}
    search = _Search(names)
    for node in nodes:
        search.env[node] = search.visit(node)
    found = {name: search.labels.roots(ids) for name, ids in search.made.items()}
    return {name: roots for name, roots in found.items() if len(torch.unique(roots)) < len(roots)}


class _Search:
    """The channels of all layers on their way to matrix products; None where nothing is known of a tensor."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names, self.labels = names, Labels()
        self.made: dict[str, Tensor] = {}
        self.env: dict[fx.Node, Any] = {}

    def visit(self, node: fx.Node) -> Any:
        kind = operation(node)
        if kind in MAKERS:
            return self.make(node, MAKERS[kind])
        given = [self.env.get(source) for source in node.all_input_nodes]
        if kind in PRODUCTS:
            return self.meet(node, [one for one in given if isinstance(one, Tensor)])
        if kind in MOVERS and len(given) == 1 and given[0] is not None:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self.env[source])
            moved: Any = carried_out(node, args, kwargs)
            return list(moved) if isinstance(moved, tuple) else moved
        if kind in THROUGH:
            shape = shape_of(node)
            return next((one for one in given if isinstance(one, Tensor) and tuple(one.shape) == shape), None)
        return None

    def make(self, node: fx.Node, dim: int) -> Tensor | None:
        weight, shape = argument(node, "weight"), shape_of(node)
        if not isinstance(weight, fx.Node) or weight.name not in self.names or len(shape) < 2:
            return None
        name = self.names[weight.name]
        if name not in self.made:
            self.made[name] = self.labels.fresh(shape_of(weight)[0])
        return along(self.made[name], dim % len(shape), shape)

    def meet(self, node: fx.Node, operands: Iterable[Tensor]) -> Tensor | None:
        """Rows of channels become heads, the same rows of all operands the same heads."""
        heads: Tensor | None = None
        place = 0
        for one in operands:
            varying = self.labels.varying_dims(one)
            outer = [dim for dim in varying if dim < one.ndim - 2]
            if len(outer) != 1 or len(varying) > 2:
                continue
            rows = self.labels.roots(one.movedim(outer[0], 0).flatten(1))
            self.labels.unite(rows, rows[:, :1], "")
            if heads is not None and len(heads) == len(rows):
                self.labels.unite(heads, rows[:, 0], "")
            heads, place = rows[:, 0], outer[0]
        shape = shape_of(node)
        return along(heads, place, shape) if heads is not None and shape[place] == len(heads) else None


class HeadWalk(Walk):
    """A walk that follows attention.

    heads   ids of the heads that went through products, as far as they were followed
    fixed   names of modules whose linear layers take as many inputs as they were built for
    """

    def __init__(self, network: nn.Module, program: ExportedProgram) -> None:
        names = parameter_names(program)
        super().__init__(network, names)
        self.blocks = heads_of(program, names)
        self.heads: list[Tensor] = []
        self.fixed = {name for name, module in network.named_modules() if isinstance(module, nn.MultiheadAttention)}

    def rule(self, name: str) -> Rule:
        return ATTENTION.get(name) or super().rule(name)

    def outputs(self, weight: fx.Node, dim: int, count: int) -> Tensor:
        known = (name := self.names[weight.name], dim) in self.slices
        ids = super().outputs(weight, dim, count)
        if not known and dim == 0 and name in self.blocks:
            _, index = torch.unique(self.blocks[name], return_inverse=True)
            first = torch.full((int(index.max()) + 1,), count)
            first.scatter_reduce_(0, index, torch.arange(count), "amin")
            self.labels.unite(ids, ids[first[index]], "")
        return ids

    def head_ids(self) -> frozenset[int]:
        found = {label for rows in self.heads for label in self.labels.roots(rows).flatten().tolist()}
        return frozenset(found - {NO_CHANNEL})


def _linear(walk: HeadWalk, node: fx.Node) -> Any:
    """nn.MultiheadAttention: torch's own code for it has the width of its inputs as a number."""
    made, weight = RULES["linear"](walk, node), argument(node, "weight")
    if module_of(node) in walk.fixed and walk.is_parameter(weight):
        inputs = walk.slices.get((walk.names[weight.name], 1))
        if inputs is not None and not set(walk.labels.roots(inputs).tolist()) <= walk.head_ids():
            walk.labels.fix(inputs, f"{_place(node)} takes as many as it was built for")
    return made


def _outer(walk: HeadWalk, labels: Tensor) -> bool:
    """Whether channels change along dimensions only that a matrix product works through one by one."""
    return all(dim < labels.ndim - 2 for dim in walk.labels.varying_dims(labels))


def _product(walk: HeadWalk, node: fx.Node) -> Any:
    """matmul, bmm, scaled_dot_product_attention: a head is multiplied with the same head."""
    taken = node.args[:3] if operation(node) == "scaled_dot_product_attention" else node.args[:2]
    operands = [walk.of(source) for source in taken if isinstance(source, fx.Node)]
    others = [walk.of(source) for source in node.all_input_nodes if source not in taken]
    first, shape = operands[0], shape_of(node)
    fits = len(operands) == len(taken) and len({one.ndim for one in operands}) == 1 and first.ndim >= 3
    if not fits or not all(_outer(walk, one) for one in operands) or any(map(walk.labels.varying_dims, others)):
        return _hide(walk, node)
    rows = [one[..., 0, 0] for one in operands]
    if len({tuple(one.shape) for one in rows}) > 1:
        return _hide(walk, node)
    for row in rows[1:]:
        walk.labels.unite(rows[0], row, f"{_place(node)} joins them with something that has a fixed size")
    walk.heads.append(rows[0])
    return rows[0][..., None, None].expand(shape)


def _softmax(walk: HeadWalk, node: fx.Node) -> Any:
    """Over places: channels stay what they are. Over channels it depends on how many there are."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    labels = walk.of(source)
    if argument(node, "dim") % labels.ndim in walk.labels.varying_dims(labels):
        return _hide(walk, node)
    return labels


ATTENTION: Mapping[str, Callable[[Any, fx.Node], Any]] = {
    "linear": _linear,
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(("softmax", "_softmax"), _softmax),
}
