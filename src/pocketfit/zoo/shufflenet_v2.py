"""ShuffleNetV2: half of the channels pass a unit untouched, then all are shuffled.

ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, https://arxiv.org/abs/1807.11164,
table 5 and figure 3. Key names are torchvision's.
"""

import torch
from torch import nn

from pocketfit.zoo.blocks import initialize, make_divisible

_STEM = 24
_REPEATS = (4, 8, 4)
# Table 5, by width multiplier: output channels of stages 2, 3, 4 and of the last convolution.
_PUBLISHED = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}


def channels_of_stages(width: float) -> tuple[int, int, int, int]:
    """Output channels of stages 2, 3, 4 and of the last convolution.

    Published multipliers keep their published widths; any other rounds each *half* to a multiple of 8,
    since it is the halves that are convolved.

    >>> channels_of_stages(0.75)
    (80, 176, 352, 1024)
    """
    if width in _PUBLISHED:
        return _PUBLISHED[width]
    stage2, stage3, stage4 = (2 * make_divisible(c * width / 2) for c in _PUBLISHED[1.0][:3])
    return stage2, stage3, stage4, make_divisible(1024 * max(1.0, width))


def channel_shuffle(x: torch.Tensor) -> torch.Tensor:
    """Interleaves the two halves of the channels: [N, C, H, W], [a0 a1 b0 b1] -> [a0 b0 a1 b1]."""
    batch, channels, height, width = x.shape
    halves = x.reshape(batch, 2, channels // 2, height, width)
    return halves.transpose(1, 2).reshape(batch, channels, height, width)


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


def _pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class Unit(nn.Module):
    """Figure 3c: one half passes, the other is convolved. [N, channels, H, W] -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch2 = nn.Sequential(*_pointwise(half, half), *_depthwise(half, 1), *_pointwise(half, half))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        passed, convolved = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((passed, self.branch2(convolved)), dim=1))


class DownsamplingUnit(nn.Module):
    """Figure 3d: both branches see all inputs. [N, inputs, H, W] -> [N, outputs, ceil(H / 2), ceil(W / 2)]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.branch1 = nn.Sequential(*_depthwise(inputs, 2), *_pointwise(inputs, half))
        self.branch2 = nn.Sequential(*_pointwise(inputs, half), *_depthwise(half, 2), *_pointwise(half, half))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return channel_shuffle(torch.cat((self.branch1(x), self.branch2(x)), dim=1))


def _stage(inputs: int, outputs: int, repeats: int) -> nn.Sequential:
    return nn.Sequential(DownsamplingUnit(inputs, outputs), *(Unit(outputs) for _ in range(repeats - 1)))


class ShuffleNetV2(nn.Module):
    """[N, 3, H, W] -> logits [N, classes], for H and W of 32 or more."""

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        stage2, stage3, stage4, last = channels_of_stages(width)
        stem = nn.Conv2d(3, _STEM, 3, stride=2, padding=1, bias=False)
        self.conv1 = nn.Sequential(stem, nn.BatchNorm2d(_STEM), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stage2 = _stage(_STEM, stage2, _REPEATS[0])
        self.stage3 = _stage(stage2, stage3, _REPEATS[1])
        self.stage4 = _stage(stage3, stage4, _REPEATS[2])
        self.conv5 = nn.Sequential(*_pointwise(stage4, last))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(last, classes)
        initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.conv1(x))  # [N, 24, H / 4, W / 4]
        x = self.conv5(self.stage4(self.stage3(self.stage2(x))))
        logits: torch.Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def shufflenet_v2(*, width: float = 1.0, classes: int = 1000) -> ShuffleNetV2:
    """ShuffleNetV2, [N, 3, H, W] -> [N, classes]; `width` scales the stages (`channels_of_stages`)."""
    return ShuffleNetV2(width, classes)
