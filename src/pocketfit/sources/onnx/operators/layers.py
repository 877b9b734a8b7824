"""Layers with weights: convolutions, linear layers, normalizations."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketfit.sources.onnx import parameters
from pocketfit.sources.onnx.builder import CannotConvert, Constant, meta
from pocketfit.sources.onnx.call import Call, Table
from pocketfit.sources.onnx.operators import padding
from pocketfit.sources.onnx.parameters import parameter

CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def convolution(call: Call) -> Any:
    """Padding that is the same on both sides is the layer's own; other padding goes before it."""
    weight, bias = call.tensor(1), call.tensor(2) if call.has(2) else None
    dims = _dims(call, weight)
    window = padding.window(call, list(meta(weight).shape[2:]))
    value, pads = padding.before(call, call.tensor(0), window, 0.0)
    groups = call.get("group", 1)
    if not isinstance(weight, Constant) or not (bias is None or isinstance(bias, Constant)):
        function = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
        return call.emit(function, value, weight, bias, window.strides, pads, window.dilations, groups)
    layer = _empty(
        lambda: CONVOLUTIONS[dims - 1](
            weight.tensor.shape[1] * groups,
            weight.tensor.shape[0],
            window.kernel,
            window.strides,
            pads,
            window.dilations,
            groups,
            bias is not None,
        )
    )
    return call.layer(_filled(layer, weight.tensor, bias), weight, value)


def transposed_convolution(call: Call) -> Any:
    """Where the two sides have different paddings, the layer has none, and its output is cropped afterwards."""
    weight, bias = call.tensor(1), call.tensor(2) if call.has(2) else None
    dims = _dims(call, weight)
    window = padding.window(call, list(meta(weight).shape[2:]))
    cut = padding.cut(call, window)
    extra, groups = list(call.get("output_padding", [0] * dims)), call.get("group", 1)
    own = cut[:dims] if isinstance(cut, list) and cut[:dims] == cut[dims:] else [0] * dims
    value = call.tensor(0)
    if isinstance(weight, Constant) and (bias is None or isinstance(bias, Constant)):
        layer = _empty(
            lambda: TRANSPOSED[dims - 1](
                weight.tensor.shape[0],
                weight.tensor.shape[1] * groups,
                window.kernel,
                window.strides,
                own,
                extra,
                groups,
                bias is not None,
                window.dilations,
            )
        )
        result = call.layer(_filled(layer, weight.tensor, bias), weight, value)
    else:
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        result = call.emit(function, value, weight, bias, window.strides, own, extra, groups, window.dilations)
    if isinstance(cut, list) and (any(own) or not any(cut)):
        return result
    return padding.trimmed(call, result, cut)


def _dims(call: Call, weight: Any) -> int:
    dims = meta(weight).ndim - 2
    if not 1 <= dims <= 3 or call.rank(0) != dims + 2:
        raise CannotConvert(f"it has {dims} dimensions, and torch has convolutions of 1 to 3")
    return dims


def _empty(make: Any) -> Any:
    """A layer without memory for its weights; they are replaced by the file's."""
    with torch.device("meta"):
        return make()


def _filled(layer: Any, weight: Tensor, bias: Constant | None) -> Any:
    layer.weight = parameter(weight)
    if bias is not None:
        layer.bias = parameter(bias.tensor)
    return layer


def linear(call: Call, value: Any, weight: Constant, matrix: Tensor, bias: Tensor | None) -> Any:
    """`matrix`: [outputs, inputs]."""
    layer = _empty(lambda: nn.Linear(matrix.shape[1], matrix.shape[0], bias is not None))
    layer.weight = parameter(matrix)
    if bias is not None:
        layer.bias = parameter(bias)
    return call.layer(layer, weight, value)


def matmul(call: Call) -> Any:
    weight = call.stored(1)
    if weight is not None and weight.tensor.ndim == 2 and weight.tensor.is_floating_point() and call.stored(0) is None:
        return linear(call, call.tensor(0), weight, weight.tensor.T, None)
    operands: list[Any] = []
    for i in range(2):
        constant = call.stored(i)
        if constant is not None and constant.stored and parameters.looks_learned(constant.tensor):
            operands.append(call.build.attribute(constant, trained=call.stored(1 - i) is None))
        else:
            operands.append(call.tensor(i))
    return call.emit(torch.matmul, *operands)


def gemm(call: Call) -> Any:
    """alpha A B + beta C: a linear layer where B is stored, with C as its bias where C has one number an output."""
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    value = call.tensor(0)
    if call.get("transA", 0):
        value = call.emit(torch.t, value)
    weight, bias = call.stored(1), call.stored(2)
    if weight is None or not weight.tensor.is_floating_point() or call.stored(0) is not None:
        other = call.emit(torch.t, call.tensor(1)) if call.get("transB", 0) else call.tensor(1)
        return _plus(call, _scaled(call, call.emit(torch.matmul, value, other), alpha), beta)
    matrix = (weight.tensor if call.get("transB", 0) else weight.tensor.T) * alpha
    fits = bias is not None and bias.tensor.numel() == matrix.shape[0] and bias.tensor.shape[-1] == matrix.shape[0]
    if fits or not call.has(2):
        own = bias.tensor.reshape(-1) * beta if bias is not None else None
        return linear(call, value, weight, matrix, own)
    return _plus(call, linear(call, value, weight, matrix, None), beta)


def _scaled(call: Call, value: Any, factor: float) -> Any:
    return value if factor == 1 else call.emit(operator.mul, value, factor)


def _plus(call: Call, value: Any, beta: float) -> Any:
    if not call.has(2):
        return value
    return call.emit(operator.add, value, _scaled(call, call.tensor(2), beta))


def batch_norm(call: Call) -> Any:
    if call.get("training_mode", 0) or (call.version < 7 and not call.get("is_test", 0)):
        raise CannotConvert("it is exported for training: export it for inference")
    numbers = [call.stored(i) for i in range(1, 5)]
    value, rank = call.tensor(0), call.rank(0)
    kind = meta(value).dtype
    if call.get("spatial", 1) != 1:
        raise CannotConvert("it norms each pixel by numbers of its own")
    scale, bias, mean, variance = numbers
    if scale is None or bias is None or mean is None or variance is None or rank not in BATCH_NORMS:
        tensors = [call.tensor(i) for i in range(1, 5)]
        return call.emit(batch_norm_of, value, *tensors, call.get("epsilon", 1e-5))
    if scale.tensor.dtype != kind:
        raise CannotConvert("its numbers are of another kind than its input")
    layer = BATCH_NORMS[rank](len(scale.tensor), call.get("epsilon", 1e-5), 1 - call.get("momentum", 0.9), dtype=kind)
    layer.weight, layer.bias = parameter(scale.tensor), parameter(bias.tensor)
    layer.running_mean, layer.running_var = mean.tensor.to(kind).clone(), variance.tensor.to(kind).clone()
    return call.layer(layer, scale, value)


def batch_norm_of(value: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    return F.batch_norm(value, mean, variance, scale, bias, False, 0.0, eps)


def layer_norm(call: Call) -> Any:
    """Over all dimensions from the axis on; the mean and 1 / deviation where the file reads them."""
    result = _layer_norm(call)
    if not any(call.node.outputs[1:]):
        return result
    dims = list(range(call.axis(-1), call.rank(0)))
    return result, *call.pick(call.emit(mean_and_steepness, call.tensor(0), dims, call.get("epsilon", 1e-5)), 2)


def mean_and_steepness(values: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor]:
    mean = values.float().mean(dims, keepdim=True)
    return mean, ((values.float() - mean).square().mean(dims, keepdim=True) + eps).rsqrt()


def _layer_norm(call: Call) -> Any:
    axis, eps = call.axis(-1), call.get("epsilon", 1e-5)
    scale, bias = call.stored(1), call.stored(2)
    shape = list(scale.tensor.shape) if scale is not None else []
    normed = list(meta(call.tensor(0)).shape[axis:])
    if scale is None or shape != normed or (call.has(2) and (bias is None or list(bias.tensor.shape) != shape)):
        result = call.emit(F.layer_norm, call.tensor(0), normed, None, None, eps)
        result = call.emit(operator.mul, result, call.tensor(1)) if call.has(1) else result
        return call.emit(operator.add, result, call.tensor(2)) if call.has(2) else result
    layer = nn.LayerNorm(shape, eps, bias=bias is not None, dtype=scale.tensor.dtype)
    layer.weight = parameter(scale.tensor)
    if bias is not None:
        layer.bias = parameter(bias.tensor)
    return call.layer(layer, scale, call.tensor(0))


def rms_norm(call: Call) -> Any:
    axis, eps = call.axis(-1), call.get("epsilon", 1e-5)
    scale, shape = call.stored(1), list(meta(call.tensor(0)).shape[axis:])
    if scale is None or list(scale.tensor.shape) != shape or scale.tensor.dtype != call.meta(0).dtype:
        return call.emit(operator.mul, call.emit(F.rms_norm, call.tensor(0), shape, None, eps), call.tensor(1))
    layer = nn.RMSNorm(shape, eps, dtype=scale.tensor.dtype)
    layer.weight = parameter(scale.tensor)
    return call.layer(layer, scale, call.tensor(0))


def instance_norm(call: Call) -> Any:
    """InstanceNormalization. Exporters also write a group norm as an instance norm between reshapes; that stays so."""
    rank, eps = call.rank(0), call.get("epsilon", 1e-5)
    scale, bias = call.stored(1), call.stored(2)
    kinds = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
    if scale is None or bias is None or rank not in kinds:
        return call.emit(instance_norm_of, call.tensor(0), call.tensor(1), call.tensor(2), eps)
    layer = kinds[rank](len(scale.tensor), eps, affine=True, dtype=scale.tensor.dtype)
    layer.weight, layer.bias = parameter(scale.tensor), parameter(bias.tensor)
    return call.layer(layer, scale, call.tensor(0))


def instance_norm_of(values: Tensor, scale: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.instance_norm(values, None, None, scale, bias, True, 0.0, eps)


def group_norm(call: Call) -> Any:
    """Scale and bias stand for each channel; before operator set 21, for each group."""
    groups, eps = call.get("num_groups"), call.get("epsilon", 1e-5)
    channels = call.static(0)[1]
    scale, bias = call.stored(1), call.stored(2)
    if scale is None or bias is None or channels is None:
        raise CannotConvert("its scale and bias, and how many channels it norms, must be constants")
    per_channel = [t.tensor.repeat_interleave(channels // t.tensor.numel()) for t in (scale, bias)]
    if any(len(t) != channels for t in per_channel):
        raise CannotConvert(f"its scale fits neither its {groups} groups nor its {channels} channels")
    layer = nn.GroupNorm(groups, channels, eps, dtype=scale.tensor.dtype)
    layer.weight, layer.bias = parameter(per_channel[0]), parameter(per_channel[1])
    return call.layer(layer, scale, call.tensor(0))


def local_response_norm(call: Call) -> Any:
    layer = nn.LocalResponseNorm(
        call.get("size"), call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    )
    return call.activation(layer, call.tensor(0))


def centred(values: Tensor, dims: list[int]) -> Tensor:
    """Mean 0 and variance 1 along dimensions."""
    mean = values.mean(dims, keepdim=True)
    deviation = torch.sqrt((values * values).mean(dims, keepdim=True) - mean * mean)
    return (values - mean) / (deviation + 1e-9)


TABLE: Table = {
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "MatMul": matmul,
    "Gemm": gemm,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "LRN": local_response_norm,
    "MeanVarianceNormalization": lambda call: call.emit(centred, call.tensor(0), list(call.get("axes", [0, 2, 3]))),
}
