"""One walk over the graph of ATen operators, with a rule for each kind of operator: what it does to labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from pocketfit.passes.graph.aten import argument, carried_out, module_of, operation, shape_of
from pocketfit.passes.graph.labels import NO_CHANNEL, Labels, along, vector
from pocketfit.passes.graph.operators import Fact, having

OUTPUT = "they are the outputs of the network"
UNREAD = "no output of the network depends on them, as in heads that only training has"
FREE_LABELS = 65_536  # a parameter of no layer with more numbers than this is no per-channel factor


class Walk:
    """The state of one walk over the graph: labels of each node, and the channels of each parameter.

    norms    the channels of norms that hold no tensor, by the layer's name
    untaken  (operator, layer) where weights of several dimensions go into an operator that isn't known
    """

    def __init__(self, network: nn.Module, names: dict[str, str]) -> None:
        self.labels = Labels()
        self.names = names
        self.env: dict[fx.Node, Any] = {}
        self.slices: dict[tuple[str, int], Tensor] = {}
        self.producers: list[tuple[str, int]] = []
        self.loose: dict[str, Tensor] = {}
        self.reshapes: list[tuple[str, Tensor]] = []
        self.norms: dict[str, Tensor] = {}
        self.untaken: list[tuple[str, str]] = []
        stored = network.state_dict(keep_vars=True)
        self.unstored = {name for name, _ in network.named_buffers() if name not in stored}

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if node.name not in self.names:
                self.env[node] = self.nothing(node)
        elif node.op == "get_attr":  # the branches of torch.cond and the like
            self.env[node] = torch.zeros((), dtype=torch.int64)
        elif node.op == "output":
            for result in node.all_input_nodes:
                self.labels.fix(self.of(result), OUTPUT)
        elif node.op == "call_function":
            self.env[node] = self.rule(operation(node))(self, node)
            if not node.users and isinstance(self.env[node], Tensor):
                self.labels.fix(self.env[node], UNREAD)

    def rule(self, name: str) -> Rule:
        return RULES.get(name, _hide)

    def of(self, node: fx.Node) -> Any:
        """Labels of a node's output; a parameter that belongs to no layer gets a label for each of its numbers."""
        if node in self.env:
            return self.env[node]
        name, shape = self.names[node.name], shape_of(node)
        count = int(np.prod(shape))
        if name not in self.loose:
            known = count <= FREE_LABELS and name not in self.unstored
            self.loose[name] = self.labels.fresh(count).view(shape) if known else torch.zeros(shape, dtype=torch.int64)
        return self.loose[name]

    def is_parameter(self, node: Any) -> TypeGuard[fx.Node]:
        return isinstance(node, fx.Node) and node.op == "placeholder" and node.name in self.names

    def nothing(self, node: fx.Node) -> Any:
        """No channels at all, in the shape of the node's output."""
        value = node.meta.get("val")
        if isinstance(value, list | tuple):
            return [torch.zeros((), dtype=torch.int64).expand(v.shape) for v in value if isinstance(v, Tensor)]
        return torch.zeros((), dtype=torch.int64).expand(shape_of(node))

    def note(self, parameter: fx.Node | None, dim: int, ids: Tensor, node: fx.Node) -> None:
        """This dimension of the parameter carries these channels. A layer that is used twice ties both uses."""
        if parameter is None:
            return
        name = self.names[parameter.name]
        if name in self.unstored:
            self.labels.fix(ids, f"the buffer {name} is not stored with the weights")
        elif (name, dim) in self.slices:
            self.labels.unite(self.slices[name, dim], ids, f"{_place(node)} is also used where channels must stay")
        else:
            self.slices[name, dim] = ids.clone()

    def outputs(self, weight: fx.Node, dim: int, count: int) -> Tensor:
        """Labels for the outputs that a weight makes: fresh at its first use, the same at each further one."""
        place = (self.names[weight.name], dim)
        if place not in self.slices:
            self.slices[place] = self.labels.fresh(count)
            self.producers.append(place)
        return self.slices[place]

    def finish(self) -> dict[tuple[str, int], Tensor]:
        """(parameter, dimension) -> channel of each entry; parameters of no layer count where they follow channels."""
        for name, labels in self.loose.items():
            varying = self.labels.varying_dims(labels)
            if len(varying) == 1:
                ids = vector(labels, varying[0])
                if (name, varying[0]) in self.slices:
                    self.labels.unite(self.slices[name, varying[0]], ids, f"{name} is used in two ways")
                self.slices[name, varying[0]] = ids
            elif varying:
                self.labels.fix(labels, f"{name} has a number of its own for each place of each channel")
        return {place: self.labels.roots(ids) for place, ids in self.slices.items()}


Rule = Callable[[Walk, fx.Node], Any]


def _place(node: fx.Node) -> str:
    module = module_of(node)
    return f"{operation(node)} in {module}" if module else f"{operation(node)} in the network's own forward"


def _hide(walk: Walk, node: fx.Node) -> Any:
    """An unknown operator, or an unknown use of one: the channels that go in can't be removed."""
    multiplies = operation(node).startswith(("conv", "linear"))
    if multiplies or operation(node) in having(Fact.RECURRENT):
        computed = multiplies and not walk.is_parameter(argument(node, "weight"))
        kind = f"{operation(node)}, whose weights are computed at each call," if computed else operation(node)
        walk.untaken.append((kind, module_of(node) or "the network's own forward"))
    return _keep_whole(walk, node, f"{_place(node)} may depend on how many there are")


def _keep_whole(walk: Walk, node: fx.Node, reason: str) -> Any:
    for source in node.all_input_nodes:
        if not walk.is_parameter(source) or walk.names[source.name] in walk.loose:
            labels = walk.of(source)
            for part in labels if isinstance(labels, list | tuple) else [labels]:
                walk.labels.fix(part, reason)
        for (name, _), ids in walk.slices.items():
            if walk.is_parameter(source) and name == walk.names[source.name]:
                walk.labels.fix(ids, reason)
    return walk.nothing(node)


def _convolution(walk: Walk, node: fx.Node) -> Any:
    """conv1d, conv2d, conv3d: weight [out, in / groups, ...]."""
    source, weight, bias = argument(node, "input"), argument(node, "weight"), argument(node, "bias")
    if not walk.is_parameter(weight) or not _along(walk, source, 1) or len(shape_of(source)) != len(shape_of(weight)):
        return _hide(walk, node)
    groups = argument(node, "groups", 1)
    inputs, outputs = vector(walk.of(source), 1), walk.outputs(weight, 0, shape_of(weight)[0])
    reason = f"{_place(node)} needs the same number in each group"
    if groups > 1 and groups == len(inputs):  # depthwise: a channel goes with the filters that read it
        walk.labels.unite(
            inputs.view(groups, 1), outputs.view(groups, -1), f"{_place(node)} filters each channel alone"
        )
    elif groups > 1:
        by_group = inputs.view(groups, -1)
        walk.labels.unite(by_group, by_group[:1], reason)
        walk.labels.unite(outputs.view(groups, -1), outputs.view(groups, -1)[:1], reason)
        walk.note(weight, 1, by_group[0], node)
    else:
        walk.note(weight, 1, inputs, node)
    walk.note(bias, 0, outputs, node)
    return along(outputs, 1, shape_of(node))


def _transposed_convolution(walk: Walk, node: fx.Node) -> Any:
    """conv_transpose1d to 3d: weight [in, out / groups, ...]; only without groups."""
    source, weight, bias = argument(node, "input"), argument(node, "weight"), argument(node, "bias")
    if not walk.is_parameter(weight) or not _along(walk, source, 1) or argument(node, "groups", 1) != 1:
        return _hide(walk, node)
    walk.note(weight, 0, vector(walk.of(source), 1), node)
    outputs = walk.outputs(weight, 1, shape_of(weight)[1])
    walk.note(bias, 0, outputs, node)
    return along(outputs, 1, shape_of(node))


def _linear(walk: Walk, node: fx.Node) -> Any:
    """weight [out, in], over the last dimension."""
    source, weight, bias = argument(node, "input"), argument(node, "weight"), argument(node, "bias")
    last = len(shape_of(source)) - 1
    if not walk.is_parameter(weight) or not _along(walk, source, last):
        return _hide(walk, node)
    inputs = vector(walk.of(source), last)
    walk.note(weight, 1, inputs, node)
    outputs = walk.outputs(weight, 0, shape_of(weight)[0])
    walk.note(bias, 0, outputs, node)
    return along(outputs, last, shape_of(node))


def _embedding(walk: Walk, node: fx.Node) -> Any:
    """weight [rows, channels]: each index picks a row, and as many rows come out as indices go in."""
    weight, indices = argument(node, "weight"), argument(node, "indices")
    if not walk.is_parameter(weight):
        return _hide(walk, node)
    walk.labels.fix(walk.of(indices), f"{_place(node)} takes them for numbers of rows")
    return along(walk.outputs(weight, 1, shape_of(weight)[1]), len(shape_of(node)) - 1, shape_of(node))


def _normalization(walk: Walk, node: fx.Node) -> Any:
    """batch_norm and instance_norm along dimension 1, layer_norm along the last one, group_norm in equal groups."""
    source, kind = argument(node, "input"), operation(node)
    dim = len(shape_of(source)) - 1 if kind == "layer_norm" else 1
    vectors = [argument(node, name) for name in ("weight", "bias", "running_mean", "running_var")]
    several = kind == "layer_norm" and len(argument(node, "normalized_shape")) != 1
    if several or not _along(walk, source, dim) or any(v is not None and not walk.is_parameter(v) for v in vectors):
        return _hide(walk, node)
    ids = vector(walk.of(source), dim)
    if kind == "group_norm":
        by_group = ids.view(argument(node, "num_groups"), -1)
        walk.labels.unite(by_group, by_group[:1], f"{_place(node)} needs the same number in each group")
    for values in vectors:
        walk.note(values, 0, ids, node)
    if not any(vectors):
        walk.norms[module_of(node)] = ids
    return walk.of(source)


def _prelu(walk: Walk, node: fx.Node) -> Any:
    source, slope = node.args[0], node.args[1]
    if not isinstance(source, fx.Node) or not walk.is_parameter(slope) or not _along(walk, source, 1):
        return _hide(walk, node)
    if shape_of(slope) != (1,):
        walk.note(slope, 0, vector(walk.of(source), 1), node)
    return walk.of(source)


def _along(walk: Walk, source: fx.Node, dim: int) -> bool:
    """Whether the channels of this tensor change along `dim` only."""
    return not walk.is_parameter(source) and set(walk.labels.varying_dims(walk.of(source))) <= {dim}


def _spatial(walk: Walk, node: fx.Node) -> Any:
    """Pooling and resizing: channels lie along dimension 1 and stay, sizes behind it change."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or len(shape_of(source)) < 3 or not _along(walk, source, 1):
        return _hide(walk, node)
    result = along(vector(walk.of(source), 1), 1, shape_of(node))
    return [result] * len(node.meta["val"]) if isinstance(node.meta["val"], list | tuple) else result


def _elementwise(walk: Walk, node: fx.Node) -> Any:
    """Operands of one shape are united; one that is stretched over another's channels has to keep its one entry."""
    shape, reason = shape_of(node), f"{_place(node)} joins them with something that has a fixed size"
    operands = []
    for source in node.all_input_nodes:
        labels = walk.of(source)
        operands.append(labels.view((1,) * (len(shape) - labels.ndim) + tuple(labels.shape)))
    varying = [set(walk.labels.varying_dims(labels)) for labels in operands]
    if len(set().union(*varying)) > 1:
        return _hide(walk, node)
    channels = next(iter(set().union(*varying)), None)
    full = [labels for labels in operands if channels is None or labels.shape[channels] == shape[channels]]
    for labels in operands:
        if channels is not None and labels.shape[channels] != shape[channels]:
            walk.labels.fix(labels, f"{_place(node)} stretches them over all channels of another tensor")
    for labels in full[1:]:
        walk.labels.unite(full[0], labels, reason)
    chosen = next((labels for labels, dims in zip(operands, varying, strict=True) if dims), full[0] if full else None)
    return walk.nothing(node) if chosen is None else chosen.expand(shape)


def _reduction(walk: Walk, node: fx.Node) -> Any:
    """mean, sum, max over dimensions: channels are left unless it is they that are reduced."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or isinstance(node.meta.get("val"), list | tuple):
        return _hide(walk, node)
    labels, dims = walk.of(source), argument(node, "dim")
    if dims is None:
        return walk.nothing(node)
    reduced = {d % labels.ndim for d in ([dims] if isinstance(dims, int) else dims or range(labels.ndim))}
    if reduced & set(walk.labels.varying_dims(labels)):
        return walk.nothing(node)
    for dim in sorted(reduced, reverse=True):
        labels = labels.narrow(dim, 0, 1) if argument(node, "keepdim", False) else labels.select(dim, 0)
    return labels


def _execute(walk: Walk, node: fx.Node) -> Any:
    """An operator that only moves data is carried out on the labels."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), walk.of)
    source = node.all_input_nodes[0] if node.all_input_nodes else node
    if operation(node) in having(Fact.VIEWS) and len(shape_of(node)) >= len(shape_of(source)):
        walk.reshapes.append((_place(node), torch.unique(walk.of(source))))
    result = carried_out(node, args, kwargs)
    reason = f"{_place(node)} needs parts of equal size"
    if isinstance(result, list | tuple):
        return [walk.labels.settle(part, reason) for part in result]
    return walk.labels.settle(result, reason)


def _pick(walk: Walk, node: fx.Node) -> Any:
    """slice, select, unbind, narrow: harmless unless it counts channels."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    dim = argument(node, "dim", 0) % len(shape_of(source))
    whole = operation(node) in ("slice", "narrow") and shape_of(node) == shape_of(source)
    if dim in walk.labels.varying_dims(walk.of(source)) and not whole:
        walk.labels.fix(walk.of(source), f"{_place(node)} picks channels by their position")
    return _execute(walk, node)


def _split(walk: Walk, node: fx.Node) -> Any:
    """chunk and split: equal parts lose the same channels, unequal ones lose none."""
    parts = _execute(walk, node)
    dim = argument(node, "dim", 0)
    first = parts[0]
    if dim % first.ndim not in walk.labels.varying_dims(walk.of(argument(node, "input"))):
        return parts
    for part in parts:
        if any(p.shape != first.shape for p in parts):
            walk.labels.fix(part, f"{_place(node)} cuts them into unequal parts")
        else:
            walk.labels.unite(first, part, f"{_place(node)} needs parts of equal size")
    return parts


def _concatenate(walk: Walk, node: fx.Node) -> Any:
    """Along the channel dimension channels are put side by side; along others all parts must have the same channels."""
    parts = [walk.of(source) for source in argument(node, "tensors")]
    dim = argument(node, "dim", 0) % (parts[0].ndim + (operation(node) == "stack"))
    if operation(node) == "stack" or any(set(walk.labels.varying_dims(part)) - {dim} for part in parts):
        for part in parts[1:]:
            along_part = part if operation(node) == "stack" else part.narrow(dim, 0, 1)
            first = parts[0] if operation(node) == "stack" else parts[0].narrow(dim, 0, 1)
            walk.labels.unite(first, along_part, f"{_place(node)} joins them with something that has a fixed size")
    return _execute(walk, node)


def _pad(walk: Walk, node: fx.Node) -> Any:
    """Padding around the image leaves channels alone; channels of padding belong to no layer, and stay."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    labels, shape = walk.of(source), shape_of(node)
    varying = walk.labels.varying_dims(labels)
    if all(shape[dim] == labels.shape[dim] for dim in varying):
        return along(vector(labels, varying[0]), varying[0], shape) if varying else _stretch(labels, shape)
    widths: Any = node.args[1]
    if operation(node) != "constant_pad_nd" and argument(node, "mode", "constant") != "constant":
        return _hide(walk, node)
    return walk.labels.settle(torch.nn.functional.pad(labels, widths, value=NO_CHANNEL), _place(node))


def _stretch(labels: Tensor, shape: tuple[int, ...]) -> Tensor:
    return labels.reshape(-1)[:1].view((1,) * len(shape)).expand(shape)


def _pixel_shuffle(walk: Walk, node: fx.Node) -> Any:
    """[N, C r², H, W] -> [N, C, H r, W r]: r² neighbours become one channel."""
    source, factor = node.args[0], argument(node, "upscale_factor")
    if not isinstance(source, fx.Node) or not _along(walk, source, 1):
        return _hide(walk, node)
    blocks = vector(walk.of(source), 1).view(-1, factor * factor)
    walk.labels.unite(blocks, blocks[:, :1], f"{_place(node)} needs parts of equal size")
    return along(blocks[:, 0], 1, shape_of(node))


def _getitem(walk: Walk, node: fx.Node) -> Any:
    source, index = cast("tuple[fx.Node, int]", node.args)  # as operator.getitem takes them
    return walk.of(source)[index]


def _constant(walk: Walk, node: fx.Node) -> Any:
    return walk.nothing(node)


def _rules(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_rules("conv1d conv2d conv3d", _convolution),
    **_rules("conv_transpose1d conv_transpose2d conv_transpose3d", _transposed_convolution),
    **_rules("linear", _linear),
    **_rules("embedding", _embedding),
    **_rules("batch_norm instance_norm group_norm layer_norm", _normalization),
    **_rules("prelu", _prelu),
    **_rules("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d", _spatial),
    **_rules("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d", _spatial),
    **_rules("adaptive_max_pool2d upsample_nearest1d upsample_nearest2d upsample_linear1d", _spatial),
    **_rules("upsample_bilinear2d upsample_bicubic2d", _spatial),
    **_rules("relu relu6 hardtanh hardswish hardsigmoid sigmoid log_sigmoid silu gelu elu selu celu", _elementwise),
    **_rules("mish softplus leaky_relu tanh erf exp log sqrt rsqrt abs neg square reciprocal pow", _elementwise),
    **_rules("clamp clamp_min clamp_max dropout feature_dropout alpha_dropout", _elementwise),
    **_rules("clone contiguous detach alias to _to_copy lift_fresh_copy", _elementwise),
    **_rules("add sub rsub mul div maximum minimum where zeros_like ones_like full_like", _elementwise),
    **_rules("mean sum amax amin var std", _reduction),
    **_rules("view reshape _unsafe_view view_as flatten unflatten expand expand_as", _execute),
    **_rules("permute transpose swapaxes t movedim unsqueeze squeeze", _execute),
    **_rules("slice select unbind narrow", _pick),
    **_rules("chunk split split_with_sizes", _split),
    **_rules("cat concat stack", _concatenate),
    **_rules("pad constant_pad_nd", _pad),
    **_rules("pixel_shuffle", _pixel_shuffle),
    **_rules("getitem", _getitem),
    **_rules("zeros ones full arange scalar_tensor", _constant),
}
