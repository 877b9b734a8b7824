"""DS-CNN: depthwise separable convolutions for keyword spotting.

Hello Edge: Keyword Spotting on Microcontrollers (Zhang, Suda, Lai, Chandra 2017), https://arxiv.org/abs/1711.07128,
section 3, with the sizes of its best networks under each limit of memory. The input is 49 frames of 10 MFCC.
"""

from typing import NamedTuple

import torch
from torch import nn

from pocketfit.zoo.blocks import initialize


class Size(NamedTuple):
    """channels; the first convolution's stride (time, frequency); the separable convolutions and the first one's
    stride."""

    channels: int
    stride: tuple[int, int]
    separable: int
    second_stride: tuple[int, int] = (1, 1)


SIZES = {
    "S": Size(64, (2, 2), 4),
    "M": Size(172, (2, 1), 4, (2, 2)),
    "L": Size(276, (2, 1), 5, (2, 2)),
}
KERNEL = (10, 4)  # time, frequency


class Same(nn.Module):
    """A convolution padded as TensorFlow's "SAME": the output has ceil(side / stride), the odd zero stands at the
    end."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int], groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sides: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel[::-1], self.stride[::-1], strict=True):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides += [missing // 2, missing - missing // 2]
        padded = nn.functional.pad(x, sides) if any(sides) else x
        found: torch.Tensor = self.conv(padded)
        return found


def _block(
    inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1), groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(Same(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs), nn.ReLU())


class DSCNN(nn.Module):
    """[N, 1, frames, features] -> logits [N, classes]."""

    def __init__(self, size: Size, classes: int) -> None:
        super().__init__()
        channels = size.channels
        self.stem = _block(1, channels, KERNEL, size.stride)
        self.body = nn.Sequential(
            *(
                nn.Sequential(
                    _block(channels, channels, (3, 3), size.second_stride if i == 0 else (1, 1), channels),
                    _block(channels, channels, (1, 1)),
                )
                for i in range(size.separable)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.body(self.stem(x)))  # [N, C, 1, 1]
        logits: torch.Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def ds_cnn_s(classes: int = 12) -> DSCNN:
    """DS-CNN-S, [N, 1, 49, 10] -> [N, classes]."""
    return DSCNN(SIZES["S"], classes)


def ds_cnn_m(classes: int = 12) -> DSCNN:
    """DS-CNN-M, [N, 1, 49, 10] -> [N, classes]."""
    return DSCNN(SIZES["M"], classes)


def ds_cnn_l(classes: int = 12) -> DSCNN:
    """DS-CNN-L, [N, 1, 49, 10] -> [N, classes]."""
    return DSCNN(SIZES["L"], classes)
