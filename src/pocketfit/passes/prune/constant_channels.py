"""Channels that are constant, whatever the input: their value, and the biases that take it up when they are removed.

A channel whose norm has a factor of zero still has the value of its shift, after the activation; so has a filter of
zeros with a bias. Removing it changes what all its readers get. Where a layer reads it without zero padding, the change
is the same at each position: it is added to the layer's bias (or subtracted from the running mean of the norm behind),
and nothing changes. Where that is impossible the channel is not ranked as a dead one.

Constants are found by one walk over the graph: each operator is run on the known values, with NaN for values that
depend on the input. The output of an operator that isn't listed here counts as depending on the input.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from pocketfit.core.model import Model
from pocketfit.passes.graph.aten import argument, call, carried_out, operation, shape_of
from pocketfit.passes.graph.channel_graph import Group, followed
from pocketfit.passes.graph.labels import NO_CHANNEL
from pocketfit.passes.graph.operators import Fact, having
from pocketfit.passes.graph.parameters import attribute
from pocketfit.passes.graph.scale_graph import names

FREE = 0.01  # share of a norm's largest factor: a channel with less has almost no part that depends on the input
SAME = 1e-5  # of the largest value: rounding of sums in another order stays below it
_POINTWISE = names(
    "relu relu6 hardtanh hardswish hardsigmoid sigmoid log_sigmoid silu gelu elu selu celu mish softplus leaky_relu",
    "tanh abs neg square clamp clamp_min clamp_max rsqrt sqrt exp reciprocal pow prelu",
)
_SPREADING = names(  # sums and maxima without negative factors: run on ones in place of NaN, they show where it spreads
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d",
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d mean sum amax upsample_nearest1d upsample_nearest2d",
    "upsample_bilinear2d",
)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One call of a layer that reads constant channels.

    node     its operator
    weight   the values of its weight
    known    its input, one sample; NaN where it depends on the network's input
    read     the channel of each number of the input, shaped as `known`
    made     the channel of each of its outputs, int64 [out]
    target   name of the tensor to which a constant is added, times `sign`; "" where there is none
    """

    node: fx.Node
    weight: Tensor
    known: Tensor
    read: Tensor
    made: Tensor
    target: str
    sign: float
    found: dict[int, Tensor | None] = field(default_factory=dict)

    def live(self) -> list[int]:
        """The channels that are constant in this input, and not zero."""
        constant = ~torch.isnan(self.known)
        varying = self.read[~constant]
        ids = torch.unique(self.read[constant & (self.known != 0)])
        return [label for label in ids.tolist() if label != NO_CHANNEL and not bool((varying == label).any())]

    def given(self, label: int) -> Tensor | None:
        """float32 [out]: what this channel adds to each output; None where that isn't the same at each position."""
        if label not in self.found:
            alone = torch.where(self.read == label, self.known, 0.0)
            made = _multiplied(self.node, alone, self.weight)
            dim = made.ndim - 1 if operation(self.node) == "linear" else 1
            rows = made.movedim(dim, 0).flatten(1)
            stay = self.made != label
            spread = (rows.amax(1) - rows.amin(1))[stay]
            same = bool((spread <= SAME * rows.abs().max().clamp(min=1e-30)).all())
            self.found[label] = rows.mean(1) * stay if same and self.target else None
        return self.found[label]


def readers(model: Model) -> tuple[Reader, ...]:
    """The layers that read constant channels; none where no weight of the network is (nearly) zero for a channel."""
    if not any(_suspicious(name, tensor) for name, tensor in model.network.state_dict().items()):
        return ()
    program, labels = followed(model.network, model.signature)
    walk = _Walk({**program.state_dict, **program.constants}, labels.names)
    with torch.no_grad():
        for node in program.graph.nodes:
            walk.visit(node)
    found = []
    calls = [
        node for node in program.graph.nodes if node.op == "call_function" and operation(node) in having(Fact.LAYER)
    ]
    uses = Counter(_target(node, labels.names) for node in calls)
    for node in calls:
        source, weight = node.args[0], argument(node, "weight")
        if not isinstance(source, fx.Node) or not labels.is_parameter(weight) or labels.is_parameter(source):
            continue
        known = walk.known.get(source)
        if not isinstance(known, Tensor) or bool(torch.isnan(known).all()):
            continue
        made = labels.labels.roots(labels.of(node))
        dim = made.ndim - 1 if operation(node) == "linear" else 1
        read = labels.labels.roots(labels.of(source)).expand(known.shape)
        target, sign = _target(node, labels.names)
        once = target if uses[target, sign] == 1 else ""  # a bias that several calls use must not change for one
        found.append(
            Reader(
                node=node,
                weight=walk.known[weight],
                known=known[:1],
                read=read[:1],
                made=_first(made, dim),
                target=once,
                sign=sign,
            )
        )
    return tuple(reader for reader in found if reader.live())


def held(found: Iterable[Reader]) -> set[int]:
    """The channels that are constant, not zero, and read by a layer that can't take the constant up."""
    return {label for reader in found for label in reader.live() if reader.given(label) is None}


def ranked(groups: Iterable[Group], scores: Mapping[str, Any], constant: set[int]) -> tuple[dict[str, Any], list[str]]:
    """(the scores, with the mean of the other channels for each of these; the names of the groups that have some)."""
    changed, concerned = dict(scores), []
    for group in groups:
        alike = np.isin(group.ids, list(constant))
        if alike.any():
            others = scores[group.name][~alike]
            least = others.mean() if len(others) else 0.0
            changed[group.name] = np.where(alike, np.maximum(scores[group.name], least), scores[group.name])
            concerned.append(group.name)
    return changed, concerned


def moved(network: nn.Module, found: Iterable[Reader], removed: NDArray[np.int64]) -> tuple[nn.Module, int]:
    """(a copy in which the constants of the removed channels are added to the biases of their readers; how many of them
    were not zero)."""
    copied = copy.deepcopy(network)
    channels = set()
    for reader in found:
        for label in reader.live():
            given = reader.given(label) if label in removed else None
            if given is not None:
                attribute(copied, reader.target).data.add_(reader.sign * given)
                channels.add(label)
    return copied, len(channels)


def _suspicious(name: str, tensor: Tensor) -> bool:
    """Whether some entry of a weight along its first dimension is (nearly) zero."""
    if not name.endswith("weight") or not tensor.is_floating_point() or not tensor.numel() or tensor.ndim == 0:
        return False
    sizes = tensor.abs().flatten(1).amax(1) if tensor.ndim > 1 else tensor.abs()
    return bool((sizes <= (FREE * sizes.max() if tensor.ndim == 1 else 0)).any())


def _target(node: fx.Node, stored: Mapping[str, str]) -> tuple[str, float]:
    """(name, sign) of the tensor that takes up a constant in a layer's outputs: its bias, or a running mean behind."""
    bias = argument(node, "bias")
    if isinstance(bias, fx.Node):
        return stored.get(bias.name, ""), 1.0
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    if reader is not None and reader.op == "call_function" and operation(reader) == "batch_norm":
        mean = argument(reader, "running_mean")
        if isinstance(mean, fx.Node) and reader.args[0] is node:
            return stored.get(mean.name, ""), -1.0
    return "", 1.0


def _first(labels: Tensor, dim: int) -> Tensor:
    return labels.movedim(dim, 0).flatten(1)[:, 0]


def _multiplied(node: fx.Node, source: Tensor, weight: Tensor) -> Tensor:
    """The layer's outputs for these values, without its bias."""
    args = [source, weight, *node.args[2:]]
    if len(args) > 2:
        args[2] = None
    kwargs = {name: value for name, value in node.kwargs.items() if name != "bias"}
    made = call(node, *args, **kwargs)
    assert isinstance(made, Tensor)
    return made


class _Walk:
    """The state of one walk: each node's output, NaN where it depends on the input."""

    def __init__(self, stored: Mapping[str, Any], parameters: Mapping[str, str]) -> None:
        self.stored, self.parameters = stored, parameters
        self.known: dict[fx.Node, Any] = {}

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            name = self.parameters.get(node.name)
            value = self.stored[name].detach() if name is not None else None
            self.known[node] = _unknown(node) if value is None or not value.is_floating_point() else value
        elif node.op == "call_function":
            self.known[node] = self.follow(node)

    def follow(self, node: fx.Node) -> Any:
        if any(not isinstance(self.known.get(source), Tensor | list) for source in node.all_input_nodes):
            return None
        rule = _RULES.get(operation(node))
        return _unknown(node) if rule is None else rule(self, node)

    def move(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self.known[source])
        result = carried_out(node, args, kwargs)
        return list(result) if isinstance(result, tuple) else result

    def tensor(self, argument: Any) -> Tensor:
        """What is known of an argument that is a tensor."""
        known: Tensor = self.known[argument]
        return known

    def pointwise(self, node: fx.Node) -> Tensor:
        source = self.tensor(node.args[0])
        return torch.where(torch.isnan(source), torch.nan, self.run(node, torch.nan_to_num(source)))

    def spread(self, node: fx.Node) -> Any:
        if isinstance(node.meta.get("val"), list | tuple):
            return _unknown(node)
        source = self.tensor(node.args[0])
        touched = self.run(node, torch.isnan(source).float()) > 0
        return torch.where(touched, torch.nan, self.run(node, torch.nan_to_num(source)))

    def run(self, node: fx.Node, source: Tensor) -> Tensor:
        args, kwargs = fx.map_arg((node.args[1:], node.kwargs), lambda source: self.known[source])
        result = carried_out(node, (source, *args), kwargs)
        assert isinstance(result, Tensor)
        return result

    def layer(self, node: fx.Node) -> Tensor:
        source, weight = self.tensor(node.args[0]), self.tensor(node.args[1])
        if bool(torch.isnan(weight).any()):
            return _unknown_tensor(node)
        made = _multiplied(node, torch.nan_to_num(source), weight)
        touched = _multiplied(node, torch.isnan(source).float(), weight.abs()) > 0
        bias = argument(node, "bias")
        if isinstance(bias, fx.Node):
            made = made + (self.known[bias] if operation(node) == "linear" else _along_channels(self.known[bias], made))
        return torch.where(touched, torch.nan, made)

    def norm(self, node: fx.Node) -> Tensor:
        source = self.tensor(node.args[0])
        mean, variance, gamma, beta = (
            None if argument(node, key) is None else self.tensor(argument(node, key))
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        if mean is None or variance is None:
            return _unknown_tensor(node)
        gamma = torch.ones_like(mean) if gamma is None else gamma
        free = gamma.abs() <= FREE * gamma.abs().max()
        source = torch.where(_along_channels(free, source) & torch.isnan(source), _along_channels(mean, source), source)
        scale = gamma / (variance + argument(node, "eps")).sqrt()
        shift = -mean * scale if beta is None else beta - mean * scale
        return source * _along_channels(scale, source) + _along_channels(shift, source)

    def factor(self, argument: Any) -> Tensor:
        """An argument that is a tensor or a number."""
        return self.tensor(argument) if isinstance(argument, fx.Node) else torch.tensor(float(argument))

    def pair(self, node: fx.Node) -> Tensor:
        one, other = map(self.factor, node.args[:2])
        result = _PAIRS[operation(node)](one, other)
        if operation(node) == "mul":  # zero times whatever the input makes of it
            result = torch.where((one == 0) | (other == 0), 0.0, result)
        return _unknown_tensor(node) if node.kwargs.get("alpha", 1) != 1 else result


_PAIRS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
}
_RULES: Mapping[str, Callable[[_Walk, fx.Node], Any]] = {
    **dict.fromkeys(sorted(having(Fact.CONSTANT)), _Walk.move),
    **dict.fromkeys(_POINTWISE, _Walk.pointwise),
    **dict.fromkeys(_SPREADING, _Walk.spread),
    **dict.fromkeys(sorted(having(Fact.LAYER)), _Walk.layer),
    **dict.fromkeys(_PAIRS, _Walk.pair),
    "batch_norm": _Walk.norm,
}


def _unknown(node: fx.Node) -> Any:
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return [torch.full(tuple(v.shape), torch.nan) for v in value if isinstance(v, Tensor)]
    return _unknown_tensor(node) if isinstance(value, Tensor) else None


def _unknown_tensor(node: fx.Node) -> Tensor:
    return torch.full(shape_of(node), torch.nan)


def _along_channels(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.ndim - 2)) if like.ndim > 1 else values
