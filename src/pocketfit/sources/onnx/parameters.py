"""Which numbers of a file become parameters, which buffers, and which are written into the code.

- One number is a Python number.
- Several numbers that are added to a tensor, or multiply or divide it, are a parameter if they are stored in the file,
  behind a layer with weights, finite, and no grid of coordinates (all multiples of 1/2).
- Learned tokens are parameters, too: constants that are stretched over the batch or concatenated with a tensor.
- Everything else (masks, grids, position tables that are computed, the means of a preprocessing) is a buffer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from pocketfit.sources.onnx.builder import Constant, meta
from pocketfit.sources.onnx.call import Call

WITH_BIAS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def operand(call: Call, constant: Constant, other: Any, *, trained: bool) -> Any:
    """The constant as it is used beside `other`: a Python number, a parameter, or a buffer."""
    rank = meta(other).ndim
    same_kind = meta(other).dtype == constant.tensor.dtype
    if constant.tensor.numel() == 1 and constant.tensor.ndim <= rank and same_kind and not constant.tensor.is_complex():
        return constant.tensor.item()
    learned = trained and constant.stored and looks_learned(constant.tensor) and behind_a_layer(call, other)
    return call.build.attribute(constant, trained=learned)


def token(call: Call, constant: Constant) -> fx.Node:
    """A constant that is stretched over the batch or concatenated with a tensor, such as the class token."""
    return call.build.attribute(constant, trained=constant.stored and looks_learned(constant.tensor))


def looks_learned(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() < 2 or not bool(tensor.isfinite().all()):
        return False
    return not bool((2 * tensor == (2 * tensor).round()).all()) or not bool(tensor.any())


def behind_a_layer(call: Call, node: Any) -> bool:
    """Whether a layer with weights lies on some path from the inputs to this node."""
    known: dict[fx.Node, bool] = call.notes.setdefault("behind a layer", {})
    stack = [node]
    while stack:
        current = stack[-1]
        if current in known:
            stack.pop()
            continue
        if _has_weights(call, current):
            known[current] = True
            continue
        waiting = [source for source in current.all_input_nodes if source not in known]
        if waiting:
            stack += waiting
            continue
        known[current] = any(known[source] for source in current.all_input_nodes)
    return known[node]


def _has_weights(call: Call, node: fx.Node) -> bool:
    if node.op == "call_module":
        return next(call.build.root.get_submodule(str(node.target)).parameters(), None) is not None
    return node.op == "get_attr" and str(node.target) in call.build.root._parameters


def take_as_bias(call: Call, layer: fx.Node, constant: Constant) -> bool:
    """Give the constant to the convolution or linear layer before it, if that has none and is called once only."""
    if layer.op != "call_module" or layer.users:
        return False
    module = call.build.root.get_submodule(str(layer.target))
    if not isinstance(module, WITH_BIAS) or module.bias is not None:
        return False
    calls = [node for node in call.build.graph.nodes if node.op == "call_module" and node.target == layer.target]
    channels = meta(layer).shape[-1] if isinstance(module, nn.Linear) else meta(layer).shape[1]
    behind = 0 if isinstance(module, nn.Linear) else meta(layer).ndim - 2
    shape = list(constant.tensor.shape)
    wanted = [channels, *[1] * behind]
    fits = shape[-len(wanted) :] == wanted and set(shape[: -len(wanted)]) <= {1} and len(shape) <= meta(layer).ndim
    if not fits or len(calls) > 1 or constant.tensor.dtype != module.weight.dtype:
        return False
    module.bias = nn.Parameter(constant.tensor.reshape(-1).clone())
    for key in [key for key, path in call.layers.items() if path == layer.target]:
        del call.layers[key]  # a further use of the same weights has a bias of its own
    return True


def parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format))
