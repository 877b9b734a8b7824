"""A network's layers and functions as Python source: a module of plain torch, one line a layer."""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from pocketfit import __version__
from pocketfit.passes.graph.layers.layered import Layered

HEAD = '''"""{title}

Written by pocketfit {version}. It needs torch and safetensors, and nothing of pocketfit.

    from network import load
    network = load()            # in eval mode; network.train() to train it on
    {call}
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

aten = torch.ops.aten


def load(weights=Path(__file__).with_name("weights.safetensors")):
    """The network with its weights, in eval mode."""
    network = Network()
    network.load_state_dict(load_file(weights))
    return network.eval()


class Network(nn.Module):
    """Layers have the names that they had, so that the weights fit the class that they came from, too."""
'''
PUT = '''
    def put(self, name, value):
        """Put a layer, a parameter or a buffer under a dotted name."""
        owner, (*path, last) = self, name.split(".")
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]
        if isinstance(value, nn.Module):
            owner.add_module(last, value)
        elif isinstance(value, nn.Parameter):
            owner.register_parameter(last, value)
        else:
            owner.register_buffer(last, value)
'''


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


OWN_NAMES = _words("self torch nn F aten layer Path load load_file Network getattr")
# Operators that torch offers under another name, with the same arguments in the same order.
_OF_F = _words("""
    relu relu6 gelu silu hardswish hardsigmoid hardtanh mish elu selu celu leaky_relu softplus prelu linear conv1d
    conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d max_pool1d max_pool2d max_pool3d avg_pool1d
    avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d pad pixel_shuffle pixel_unshuffle
    scaled_dot_product_attention
""")
_OF_TORCH = _words("""
    cat stack where sigmoid tanh sqrt rsqrt exp log erf abs neg square reciprocal maximum minimum zeros ones full arange
    relu_
""")
_METHODS = _words("""
    view reshape transpose permute flatten unsqueeze squeeze expand contiguous mean sum amax amin select chunk unbind
    softmax unflatten clamp clone pow repeat movedim std var
""")
_SIGNS: Mapping[Any, str] = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "matmul": "@",
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.floordiv: "//", operator.truediv: "/",
    operator.mod: "%",
}  # fmt: skip


def source_of(found: Layered, title: str, inputs: Mapping[str, tuple[int, ...]]) -> str:
    """The text of network.py.

    title   its first line, one line
    inputs  name -> shape of one sample
    """
    example = ", ".join(f"torch.zeros{(1, *shape)!r}" for shape in inputs.values())
    head = HEAD.format(title=_one_line(title), version=__version__, call=f"answers = network({example})")
    forward = _Writer(found).forward()
    return "\n".join([head, *_constructor(found), PUT, *forward, ""])


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("\\", "/").replace('"', "'")[:200]


def _constructor(found: Layered) -> list[str]:
    lines = ["    def __init__(self):", "        super().__init__()"]
    lines += [f"        self.put({name!r}, {call.code})" for name, call in found.layers.items()]
    tied = dict(found.tied)
    for name, tensor in found.tensors.items():
        made = f"torch.zeros({tuple(tensor.shape)!r}, dtype={tensor.dtype})"
        if name not in tied:
            lines.append(
                f"        self.put({name!r}, {f'nn.Parameter({made})' if isinstance(tensor, nn.Parameter) else made})"
            )
    lines += [f"        self.put({name!r}, self.get_parameter({other!r}))" for name, other in tied.items()]
    return lines


class _Writer:
    """One line for each node, and names for their results."""

    def __init__(self, found: Layered) -> None:
        self.found, self.names, self.taken = found, dict[fx.Node, str](), set(OWN_NAMES)
        self.ready: dict[fx.Node, str] = {}
        for node in found.network.graph.nodes:
            if node.op == "placeholder":
                self.name(node, str(node.target))

    def forward(self) -> list[str]:
        graph = self.found.network.graph
        inputs = [self.names[node] for node in graph.nodes if node.op == "placeholder"]
        lines = [f"    def forward(self, {', '.join(inputs)}):", "        layer = self.get_submodule"]
        for node in graph.nodes:
            if node.op == "output":
                lines.append(f"        return {self.shown(node.args[0])}")
            elif node.op == "get_attr":
                self.ready[node] = self.stored(str(node.target))
            elif node.op != "placeholder":
                code, wish = self.line(node)
                if node.target is getattr:
                    self.ready[node] = code
                else:
                    lines.append(f"        {self.name(node, wish)} = {code}")
        return lines

    def stored(self, name: str) -> str:
        if name == "training":
            return "self.training"
        parameters = dict(self.found.network.named_parameters(remove_duplicate=False))
        return f"self.{'get_parameter' if name in parameters else 'get_buffer'}({name!r})"

    def name(self, node: fx.Node, wish: str) -> str:
        wish = re.sub(r"\W", "_", wish, flags=re.ASCII).strip("_") or "x"
        wish = f"x{wish}" if wish[0].isdigit() else wish
        found, number = wish, 1
        while found in self.taken or keyword.iskeyword(found):
            found, number = f"{wish}_{number}", number + 1
        self.taken.add(found)
        self.names[node] = found
        return found

    def line(self, node: fx.Node) -> tuple[str, str]:
        """(the expression, a name for its result)."""
        given = [self.shown(value) for value in node.args]
        by_name = [f"{name}={self.shown(value)}" for name, value in node.kwargs.items()]
        if node.op == "call_module":
            return f"layer({node.target!r})({', '.join(given)})", str(node.target).replace(".", "_")
        if node.op == "call_method":
            return f"{given[0]}.{node.target}({', '.join(given[1:])})", str(node.target)
        if isinstance(node.target, torch._ops.OpOverload):
            name = node.target.overloadpacket.__name__
            return self.operator(node, name, given, by_name), name
        return self.python(node, given)

    def python(self, node: fx.Node, given: list[str]) -> tuple[str, str]:
        """A function of Python's or torch's own."""
        if node.target is operator.getitem:
            return f"{given[0]}[{given[1]}]", f"{given[0]}_{given[1]}"
        if node.target is getattr:
            return f"{given[0]}.{node.args[1]}", str(node.args[1])
        if node.target in _SIGNS:
            wish = "rate" if given[0] == "self.training" else "size"
            return f"{given[0]} {_SIGNS[node.target]} {given[1]}", wish
        name = node.target if isinstance(node.target, str) else node.target.__name__
        return f"torch.{name}({', '.join(given)})", name

    def operator(self, node: fx.Node, name: str, given: list[str], by_name: list[str]) -> str:
        target: Any = node.target
        if name in _SIGNS and len(given) == 2 and not by_name:
            return f"{given[0]} {_SIGNS[name]} {given[1]}"
        module = "F" if name in _OF_F else "torch" if name in _OF_TORCH else ""
        if module and not (name == "elu" and len(given) > 2):
            return f"{module}.{name}({', '.join(given + by_name)})"
        if name in _METHODS and isinstance(node.args[0], fx.Node):
            return f"{given[0]}.{name}({', '.join(given[1:] + by_name)})"
        return f"aten.{name}.{target._overloadname}({', '.join(given + by_name)})"

    def shown(self, value: Any) -> str:
        """An argument as source."""
        if isinstance(value, fx.Node):
            return self.ready.get(value) or self.names[value]
        if isinstance(value, list | tuple):
            words = ", ".join(map(self.shown, value))
            comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
            return f"[{words}]" if isinstance(value, list) else f"({words}{comma})"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key!r}: {self.shown(entry)}" for key, entry in value.items()) + "}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"float({str(value)!r})"
        if isinstance(value, torch.device):
            return f"torch.device({str(value)!r})"
        assert isinstance(value, bool | int | float | str | torch.dtype | torch.memory_format | torch.layout | None)
        return repr(value)
