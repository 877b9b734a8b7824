"""Activations as modules, so that they have a place in the network by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pocketfit.sources.onnx import parameters
from pocketfit.sources.onnx.builder import CannotConvert, Constant, meta
from pocketfit.sources.onnx.call import Call, Handler, Table, dim_of

SIXTH = 1 / 6


def module(make: Any) -> Handler:
    return lambda call: call.activation(make(call), call.tensor(0))


def hard_sigmoid(call: Call) -> Any:
    """torch's own is x / 6 + 1/2; others are written out."""
    slope, offset = call.get("alpha", 0.2), call.get("beta", 0.5)
    if abs(slope - SIXTH) < 1e-6 and offset == 0.5:
        return call.activation(nn.Hardsigmoid(), call.tensor(0))
    scaled = call.emit(torch.mul, call.tensor(0), slope)
    return call.emit(torch.clamp, call.emit(torch.add, scaled, offset), 0.0, 1.0)


def gelu(call: Call) -> Any:
    return call.activation(nn.GELU(approximate=call.get("approximate", "none")), call.tensor(0))


def swish(call: Call) -> Any:
    steepness = call.get("alpha", 1.0)
    value = call.tensor(0)
    if steepness == 1:
        return call.activation(nn.SiLU(), value)
    gate = call.activation(nn.Sigmoid(), call.emit(torch.mul, value, steepness))
    return call.emit(torch.mul, value, gate)


def softmax(make: Any) -> Handler:
    """Softmax and similar. Before operator set 13, all dimensions from the axis on are flattened to one."""

    def handler(call: Call) -> Any:
        rank = call.rank(0)
        if call.version >= 13:
            return call.activation(make(dim_of(call.get("axis", -1), rank)), call.tensor(0))
        axis = dim_of(call.get("axis", 1), rank) if rank > 1 else 0
        behind = call.static(0)[axis:]
        if axis == rank - 1 or all(size == 1 for size in behind[1:]):
            return call.activation(make(axis), call.tensor(0))
        flat = call.emit(torch.flatten, call.tensor(0), axis)
        result = call.activation(make(axis), flat)
        return call.emit(torch.Tensor.reshape, result, _shape(call, call.tensor(0)))

    return handler


def _shape(call: Call, value: Any) -> list[Any]:
    if isinstance(value, Constant):
        return list(value.tensor.shape)
    return [call.build.size(value, dim) for dim in range(meta(value).ndim)]


def one_hot_of_largest(values: Tensor, dim: int) -> Tensor:
    """1 at the first of the largest numbers along `dim`, 0 elsewhere."""
    return torch.zeros_like(values).scatter(dim, values.argmax(dim, keepdim=True), 1)


def hardmax(call: Call) -> Any:
    if call.version >= 13:
        return call.emit(one_hot_of_largest, call.tensor(0), dim_of(call.get("axis", -1), call.rank(0)))
    axis = dim_of(call.get("axis", 1), call.rank(0))
    flat = call.emit(one_hot_of_largest, call.emit(torch.flatten, call.tensor(0), axis), axis)
    return call.emit(torch.Tensor.reshape, flat, _shape(call, call.tensor(0)))


def prelu(call: Call) -> Any:
    """One slope, or one for each channel, is a layer; anything else is written out."""
    value, slope = call.tensor(0), call.stored(1)
    if slope is not None and meta(value).ndim > 1 and meta(value).dtype == slope.tensor.dtype:
        shape, channels = list(slope.tensor.shape), meta(value).shape[1]
        old_form = shape == [channels] and (call.version < 7 or meta(value).ndim == 2)
        behind = meta(value).ndim - 2
        along_channels = shape[-behind - 1 :] == [channels, *[1] * behind] and set(shape[: -behind - 1]) <= {1}
        if old_form or along_channels or slope.tensor.numel() == 1:
            layer = nn.PReLU(slope.tensor.numel(), dtype=slope.tensor.dtype)
            layer.weight = parameters.parameter(slope.tensor.reshape(-1))
            return call.layer(layer, slope, value)
    return call.emit(leaky, value, call.tensor(1))


def leaky(values: Tensor, slope: Tensor) -> Tensor:
    """PReLU with a slope of any shape that can be stretched over the values."""
    return torch.where(values < 0, values * slope, values)


def selu(call: Call) -> Any:
    scale, alpha = call.get("gamma", 1.05070102214813232421875), call.get("alpha", 1.67326319217681884765625)
    if abs(scale - 1.0507009873554805) < 1e-6 and abs(alpha - 1.6732632423543772) < 1e-6:
        return call.activation(nn.SELU(), call.tensor(0))
    return call.emit(torch.mul, call.activation(nn.ELU(alpha), call.tensor(0)), scale)


def shrink(values: Tensor, bias: float, border: float) -> Tensor:
    """Numbers beyond the border move towards 0 by `bias`, the others become 0."""
    zero = torch.zeros_like(values)
    return torch.where(values < -border, values + bias, torch.where(values > border, values - bias, zero))


def thresholded(values: Tensor, threshold: float) -> Tensor:
    return torch.where(values > threshold, values, torch.zeros_like(values))


def celu(call: Call) -> Any:
    alpha = call.get("alpha", 1.0)
    if alpha == 0:
        raise CannotConvert("its alpha is 0")
    return call.activation(nn.CELU(alpha), call.tensor(0))


TABLE: Table = {
    "Relu": module(lambda call: nn.ReLU()),
    "Sigmoid": module(lambda call: nn.Sigmoid()),
    "Tanh": module(lambda call: nn.Tanh()),
    "HardSwish": module(lambda call: nn.Hardswish()),
    "Softplus": module(lambda call: nn.Softplus()),
    "Softsign": module(lambda call: nn.Softsign()),
    "Mish": module(lambda call: nn.Mish()),
    "LeakyRelu": module(lambda call: nn.LeakyReLU(call.get("alpha", 0.01))),
    "Elu": module(lambda call: nn.ELU(call.get("alpha", 1.0))),
    "Celu": celu,
    "Selu": selu,
    "HardSigmoid": hard_sigmoid,
    "Gelu": gelu,
    "Swish": swish,
    "Softmax": softmax(nn.Softmax),
    "LogSoftmax": softmax(nn.LogSoftmax),
    "Hardmax": hardmax,
    "PRelu": prelu,
    "ThresholdedRelu": lambda call: call.emit(thresholded, call.tensor(0), call.get("alpha", 1.0)),
    "Shrink": lambda call: call.emit(shrink, call.tensor(0), call.get("bias", 0.0), call.get("lambd", 0.5)),
}
