"""Layers of torch.nn from the calls of a traced graph: which class, with which arguments, holding which tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from pocketfit.passes.graph.aten import argument, operation, shape_of

RECURRENT: Mapping[str, str] = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    kind      class of torch.nn
    args      of its constructor, with `options` by name where they are not the class's own defaults
    tensors   the layer's name for each parameter or buffer -> the node that holds it
    inputs    what the layer is called with
    """

    kind: str
    args: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, fx.Node] = field(default_factory=dict)
    inputs: tuple[Any, ...] = ()

    @property
    def code(self) -> str:
        """
        >>> Call("Conv2d", (3, 8, (3, 3)), {"padding": (1, 1), "bias": False}).code
        'nn.Conv2d(3, 8, 3, padding=1, bias=False)'
        """
        words = [repr(value) if self.kind == "LayerNorm" else short(value) for value in self.args]
        words += [f"{name}={short(value)}" for name, value in self.options.items()]
        return f"nn.{self.kind}({', '.join(words)})"

    def made(self) -> nn.Module:
        layer = getattr(nn, self.kind)(*self.args, **self.options)
        assert isinstance(layer, nn.Module)
        return layer


def short(value: Any) -> str:
    """Equal numbers for each dimension as one number.

    >>> short((2, 2)), short((1, 2)), short("same")
    ('2', '(1, 2)', "'same'")
    """
    if isinstance(value, list | tuple) and len(value) > 1 and len(set(value)) == 1:
        value = value[0]
    return repr(tuple(value) if isinstance(value, list) else value)


def call_of(node: fx.Node, training: fx.Node | None) -> Call | None:
    """The layer that this node calls; None where it is no layer of torch.nn.

    training  the same node of the graph that the network has in training: rates of dropout are to be found there
    """
    rule = _RULES.get(operation(node))
    return rule(node, training) if rule is not None else None


def _options(wanted: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """name -> (value, the class's own default); values that are the default are left out."""
    kept = {}
    for name, (given, default) in wanted.items():
        value = tuple(given) if isinstance(given, list) else given
        if value != default and not (isinstance(value, tuple) and set(value) == {default}):
            kept[name] = value
    return kept


def _held(**tensors: Any) -> dict[str, fx.Node]:
    return {name: node for name, node in tensors.items() if node is not None}


def _convolution(node: fx.Node, _: fx.Node | None) -> Call | None:
    source, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
    rank = len(shape_of(weight)) - 2
    if len(shape_of(source)) != rank + 2:  # without a batch
        return None
    groups = argument(node, "groups", 1)
    transposed = operation(node).startswith("conv_transpose")
    made, read = (1, 0) if transposed else (0, 1)
    sizes = shape_of(weight)
    outputs = sizes[made] * (groups if transposed else 1)
    inputs = sizes[read] * (1 if transposed else groups)
    wanted: dict[str, tuple[Any, Any]] = {
        "stride": (argument(node, "stride", 1), 1),
        "padding": (argument(node, "padding", 0), 0),
        "dilation": (argument(node, "dilation", 1), 1),
        "groups": (groups, 1),
        "bias": (bias is not None, True),
    }
    if transposed:
        wanted["output_padding"] = (argument(node, "output_padding", 0), 0)
    kind = f"Conv{'Transpose' if transposed else ''}{rank}d"
    return Call(kind, (inputs, outputs, sizes[2:]), _options(wanted), _held(weight=weight, bias=bias), (source,))


def _linear(node: fx.Node, _: fx.Node | None) -> Call:
    source, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
    outputs, inputs = shape_of(weight)
    return Call(
        "Linear", (inputs, outputs), _options({"bias": (bias is not None, True)}), _held(weight=weight, bias=bias),
        (source,),
    )  # fmt: skip


def _statistics_norm(node: fx.Node, training: fx.Node | None) -> Call | None:
    """batch_norm and instance_norm; one that keeps its statistics in training as well is no layer, but a function."""
    names = ("weight", "bias", "running_mean", "running_var")
    source, held = argument(node, "input"), {name: argument(node, name) for name in names}
    kind = "BatchNorm" if operation(node) == "batch_norm" else "InstanceNorm"
    own = "training" if kind == "BatchNorm" else "use_input_stats"
    tracked = held["running_mean"] is not None
    learns = argument(node if training is None else training, own)
    known = next((value for value in held.values() if value is not None), None)
    frozen = tracked and training is not None and not learns
    if known is None or frozen or (held["weight"] is None) != (held["bias"] is None):
        return None
    defaults = (True, True) if kind == "BatchNorm" else (False, False)
    if kind == "BatchNorm" and not tracked:
        return None
    wanted = {
        "eps": (argument(node, "eps"), 1e-5),
        "momentum": (argument(node, "momentum"), 0.1),
        "affine": (held["weight"] is not None, defaults[0]),
        "track_running_stats": (tracked, defaults[1]),
    }
    rank = max(1, len(shape_of(source)) - 2)
    return Call(f"{kind}{rank}d", (shape_of(known)[0],), _options(wanted), _held(**held), (source,))


def _layer_norm(node: fx.Node, _: fx.Node | None) -> Call | None:
    weight, bias = argument(node, "weight"), argument(node, "bias")
    if weight is None:
        return None
    sizes = tuple(argument(node, "normalized_shape"))
    wanted = {"eps": (argument(node, "eps", 1e-5), 1e-5), "bias": (bias is not None, True)}
    return Call(
        "LayerNorm",
        (sizes[0] if len(sizes) == 1 else sizes,),
        _options(wanted),
        _held(weight=weight, bias=bias),
        (argument(node, "input"),),
    )


def _group_norm(node: fx.Node, _: fx.Node | None) -> Call | None:
    weight, bias = argument(node, "weight"), argument(node, "bias")
    if weight is None or bias is None:
        return None
    options = _options({"eps": (argument(node, "eps", 1e-5), 1e-5)})
    args = (argument(node, "num_groups"), shape_of(weight)[0])
    return Call("GroupNorm", args, options, _held(weight=weight, bias=bias), (argument(node, "input"),))


def _embedding(node: fx.Node, _: fx.Node | None) -> Call | None:
    weight = argument(node, "weight")
    if argument(node, "scale_grad_by_freq", False) or argument(node, "sparse", False):
        return None
    empty = argument(node, "padding_idx", -1)
    options = {} if empty is None or empty < 0 else {"padding_idx": empty}
    return Call("Embedding", shape_of(weight), options, {"weight": weight}, (argument(node, "indices"),))


def _prelu(node: fx.Node, _: fx.Node | None) -> Call:
    source, weight = node.args[:2]
    assert isinstance(weight, fx.Node)
    count = shape_of(weight)[0] if shape_of(weight) else 1
    return Call("PReLU", (count,) if count > 1 else (), {}, {"weight": weight}, (source,))


def _recurrent(node: fx.Node, training: fx.Node | None) -> Call | None:
    """lstm, gru, rnn over whole sequences; a layer without projections."""
    kind = operation(node)
    held, layers = list(argument(node, "params", ())), argument(node, "num_layers")
    biases, both = argument(node, "has_biases"), argument(node, "bidirectional")
    if argument(node, "input") is None or not argument(node, "params") or not isinstance(layers, int):
        return None  # packed sequences
    parts = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if biases else ()))
    names = [
        f"{part}_l{layer}{end}" for layer in range(layers) for end in (("", "_reverse") if both else ("",))
        for part in parts
    ]  # fmt: skip
    if len(names) != len(held):
        return None
    wanted = {
        "num_layers": (layers, 1),
        "bias": (biases, True),
        "batch_first": (argument(node, "batch_first"), False),
        "dropout": (argument(node if training is None else training, "dropout"), 0.0),
        "bidirectional": (both, False),
    }
    options = _options(wanted)
    if kind == "rnn_relu":
        options["nonlinearity"] = "relu"
    tensors = dict(zip(names, held, strict=True))
    args = (shape_of(tensors["weight_ih_l0"])[1], shape_of(tensors["weight_hh_l0"])[1])
    given = argument(node, "hx")
    hidden = tuple(given) if isinstance(given, list | tuple) else given
    return Call(RECURRENT[kind], args, options, tensors, (argument(node, "input"), hidden))


_RULES: Mapping[str, Callable[[fx.Node, fx.Node | None], Call | None]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution),
    "linear": _linear,
    **dict.fromkeys(("batch_norm", "instance_norm"), _statistics_norm),
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "embedding": _embedding,
    "prelu": _prelu,
    **dict.fromkeys(RECURRENT, _recurrent),
}


def stand_in(tensor: Tensor) -> Tensor:
    """The same numbers in memory of their own, as a parameter where they were one."""
    copied = tensor.detach().clone().contiguous()
    if isinstance(tensor, nn.Parameter) and copied.is_floating_point():
        return nn.Parameter(copied, requires_grad=True)
    return copied
