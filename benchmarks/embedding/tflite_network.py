"""MobileFaceNet.tflite as a network of torch, built operator by operator from the file's own weights.

The file has PReLU as TensorFlow writes it: relu(x) + c (x - |x|), with c half the slope. Padding is TensorFlow's SAME:
with a stride of 2 and an even size the extra row and column are at the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pocketfit.formats import tflite_read
from pocketfit.formats.tflite_read import TfliteFile

PRELU = ("RELU", "ABS", "SUB", "MUL", "ADD")


class MobileFaceNet(nn.Module):
    """A chain of layers; `skips` names, by the place of a layer, the place whose output is added to its own."""

    def __init__(self, layers: list[nn.Module], skips: dict[int, int]) -> None:
        super().__init__()
        self.layers, self.skips = nn.ModuleList(layers), skips

    def forward(self, image: Tensor) -> Tensor:
        seen: list[Tensor] = []
        for place, layer in enumerate(self.layers):
            image = layer(image)
            if place in self.skips:
                image = image + seen[self.skips[place]]
            seen.append(image)
        return image.flatten(1)


def network_of(path: Path) -> MobileFaceNet:
    """The network in the file. Raises ValueError for an operator that MobileFaceNet does not have."""
    file = tflite_read.read(path)
    layers: list[nn.Module] = []
    skips: dict[int, int] = {}
    made = {int(file.graph.inputs[0]): -1}  # tensor -> the place of the layer that gives it
    ops = list(file.graph.operators)
    while ops:
        kind, op = file.op_type(ops[0]), ops[0]
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            layers.append(_convolution(file, op, depthwise=kind != "CONV_2D"))
        elif tuple(file.op_type(one) for one in ops[:5]) == PRELU:
            slope = next(int(i) for i in ops[3].inputs if file.raw(int(i)) is not None)
            layer = nn.PReLU(file.shape(slope)[0])
            layer.weight = nn.Parameter(torch.from_numpy(2 * np.array(file.constant(slope))))
            layers.append(layer)
            ops, op = ops[4:], ops[4]
        elif kind == "ADD":
            one, other = sorted(made[int(i)] for i in op.inputs)
            if other != len(layers) - 1:
                raise ValueError(f"{path} adds two tensors that are both older than the last layer")
            skips[other] = one
        elif kind != "RESHAPE":
            raise ValueError(f"{path} has {kind}, which MobileFaceNet has not")
        made[int(op.outputs[0])] = len(layers) - 1
        ops = ops[1:]
    return MobileFaceNet(layers, skips).eval()


def _convolution(file: TfliteFile, op: Any, *, depthwise: bool) -> nn.Module:
    weight = np.array(file.constant(int(op.inputs[1])))  # [out, h, w, in], depthwise [1, h, w, out]
    bias = np.array(file.constant(int(op.inputs[2])))
    weight = weight.transpose(3, 0, 1, 2) if depthwise else weight.transpose(0, 3, 1, 2)
    kernel, stride = weight.shape[2], int(op.builtinOptions.strideH)
    layer = nn.Conv2d(
        len(weight) if depthwise else weight.shape[1],
        len(weight),
        kernel,
        stride,
        groups=len(weight) if depthwise else 1,
    )
    layer.weight, layer.bias = (nn.Parameter(torch.from_numpy(np.ascontiguousarray(x))) for x in (weight, bias))
    extra = 0 if int(op.builtinOptions.padding) == 1 else max(kernel - stride, 0)
    if not extra:
        return layer
    before = extra // 2
    return nn.Sequential(nn.ZeroPad2d((before, extra - before, before, extra - before)), layer)
