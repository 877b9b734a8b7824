"""Shift channels so that their ranges lie around zero, by biases alone; what the network computes stays the same.

A number may be subtracted from a channel where it is made and added back by the biases of the layers that read it, as
long as everything between them is linear: sums, means, views, and convolutions without padding (zeros at the border
would have to be shifted, too). A channel that is always above zero passes relu unchanged, so its lowest value may be
subtracted before the relu: high-bias absorption (Nagel et al. 2019, section 4.1.3).

The range of the tensor is then that of its widest channel, no longer the span of all their offsets. Before a relu only
half of a channel's lowest value is subtracted: samples that were not seen may be lower. Shifts are carried through the
graph by running each operator on them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pocketfit.passes.graph.aten import argument, carried_out, operation, shape_of
from pocketfit.passes.graph.interpret import Channels
from pocketfit.passes.graph.labels import along, vector
from pocketfit.passes.graph.operators import Fact, having
from pocketfit.passes.graph.scale_graph import Streams, Weighted

_ADDITIVE = having(Fact.ADDITIVE)


@dataclass(frozen=True)
class Centred:
    """A network with shifted channels.

    network   the shifted copy
    seen      its statistics
    shifts    layer -> what was subtracted from its outputs, float32 [out]
    absorbed  those of these layers that have a relu behind them
    """

    network: nn.Module
    seen: dict[fx.Node, Channels]
    shifts: dict[str, Tensor]
    absorbed: tuple[str, ...]


def centre(
    network: nn.Module, found: Streams, seen: Mapping[fx.Node, Channels], *, before_relu: bool = True
) -> Centred:
    """Subtract the middle of its range from each channel with linear operators only behind it, and with `before_relu`
    half of its lowest value from each channel that is always above zero before a relu."""
    copied = copy.deepcopy(network)
    stored = {**dict(copied.named_parameters()), **dict(copied.named_buffers())}
    layers = {layer.node: layer for layer in found.layers}
    takes = _takers(found, layers)
    shifts: dict[fx.Node, Any] = {}
    own: dict[str, Tensor] = {}
    absorbed = []
    with torch.no_grad():
        for node in found.program.graph.nodes:
            layer = layers.get(node)
            if layer is not None:
                if layer.source in shifts:
                    _give_back(layer, stored, shifts[layer.source])
                by = _own_shift(layer, takes, seen, before_relu)
                if by is not None:
                    stored[layer.bias].sub_(by)
                    shifts[node], own[layer.name] = along(by, layer.dim, shape_of(node)), by
                    if not takes[node] and bool((by > 0).any()):
                        absorbed.append(layer.name)
            elif takes.get(node) and any(source in shifts for source in node.all_input_nodes):
                shifts[node] = _carried(node, shifts)
    dims = {tensor.node: tensor.dim for tensor in found.tensors} | {node: layer.dim for node, layer in layers.items()}
    after = {
        node: channels.shifted(vector(shifts[node], dims[node])) if node in shifts else channels
        for node, channels in seen.items()
    }
    return Centred(copied, after, own, tuple(absorbed))


def _takers(found: Streams, layers: Mapping[fx.Node, Weighted]) -> dict[fx.Node, bool]:
    """For each node, whether all that read its output can make up for a shift of its channels."""
    takes: dict[fx.Node, bool] = {}

    def takes_from(reader: fx.Node, node: fx.Node) -> bool:
        if reader in layers:
            layer = layers[reader]
            return layer.source is node and bool(layer.bias) and _unpadded(reader)
        name = operation(reader) if reader.op == "call_function" else ""
        if name == "add" and (argument(reader, "alpha", 1) != 1 or len(reader.all_input_nodes) != 2):
            return False
        return (name == "add" or name in _ADDITIVE) and takes[reader]

    for node in reversed(list(found.program.graph.nodes)):
        takes[node] = node.op == "call_function" and bool(node.users) and all(takes_from(u, node) for u in node.users)
    return takes


def _unpadded(node: fx.Node) -> bool:
    padding = argument(node, "padding", 0) if operation(node).startswith("conv") else 0
    return not isinstance(padding, str) and not any([padding] if isinstance(padding, int) else padding)


def _own_shift(
    layer: Weighted, takes: Mapping[fx.Node, bool], seen: Mapping[fx.Node, Channels], before_relu: bool
) -> Tensor | None:
    """float32 [out]: what is subtracted from this layer's outputs; None where they can't be shifted."""
    node = layer.node
    if not layer.bias or node not in seen:
        return None
    if takes[node]:
        return (seen[node].low + seen[node].high) / 2
    reader = next(iter(node.users), None)  # nobody reads the heads that only training has
    if reader is not None and before_relu and len(node.users) == 1 and operation(reader) == "relu" and takes[reader]:
        return seen[node].low.clamp(min=0) / 2
    return None


def _give_back(layer: Weighted, stored: Mapping[str, Tensor], shift: Tensor) -> None:
    """Change the layer's bias so that its outputs are what they were before its input was shifted."""
    if layer.norm:
        stored[f"{layer.name}.running_mean"].sub_(vector(shift, 1))
        return
    weight = stored[layer.weight]
    if operation(layer.node) == "linear":
        answer = nn.functional.linear(shift, weight)
    else:
        answer = {3: nn.functional.conv1d, 4: nn.functional.conv2d, 5: nn.functional.conv3d}[weight.ndim](
            shift, weight, stride=argument(layer.node, "stride", 1), groups=layer.groups
        )
    stored[layer.bias].add_(vector(answer, layer.dim))


def _carried(node: fx.Node, shifts: Mapping[fx.Node, Any]) -> Any:
    """The operator, run on the shifts of its inputs (zero where there is none); a list where it has several outputs."""

    def shift_of(source: fx.Node) -> Any:
        return shifts[source] if source in shifts else torch.zeros(()).expand(shape_of(source))

    args, kwargs = fx.map_arg((node.args, node.kwargs), shift_of)
    return carried_out(node, args, kwargs)
