"""ResNet-18 and ResNet-50, the references that mobile networks are compared with.

Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385, table 1. Key names are
torchvision's, and so is the stride of ResNet-50's blocks: on the 3x3 convolution, not on the first 1x1.
"""

from collections.abc import Callable

import torch
from torch import nn

from pocketfit.zoo.blocks import initialize, make_divisible

# Table 1: channels of the 3x3 convolutions of conv2_x .. conv5_x.
_CHANNELS = (64, 128, 256, 512)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Option B of section 3.3: a projection where the shapes differ, else the identity."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: [N, inputs, H, W] -> [N, channels, ceil(H / stride), ceil(W / stride)]."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(inputs, channels, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: torch.Tensor = self.relu2(y + self.downsample(x))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1: [N, inputs, H, W] -> [N, 4 * channels, ceil(H / stride), ceil(W / stride)]."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = channels * self.expansion
        self.conv1 = _conv(inputs, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv3 = _conv(channels, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: torch.Tensor = self.relu3(y + self.downsample(x))
        return out


Block = Callable[[int, int, int], nn.Module]  # (inputs, channels, stride) -> block


def _layer(block: Block, inputs: int, channels: int, outputs: int, *, repeats: int, stride: int) -> nn.Sequential:
    first = block(inputs, channels, stride)
    return nn.Sequential(first, *(block(outputs, channels, 1) for _ in range(repeats - 1)))


class ResNet(nn.Module):
    """[N, 3, H, W] -> logits [N, classes], for H and W of 32 or more."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        repeats: tuple[int, int, int, int],
        width: float,
        classes: int,
    ) -> None:
        super().__init__()
        stem, *_ = channels = [make_divisible(c * width) for c in _CHANNELS]
        outputs = [c * block.expansion for c in channels]
        self.conv1 = _conv(3, stem, 7, 2)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _layer(block, stem, channels[0], outputs[0], repeats=repeats[0], stride=1)
        self.layer2 = _layer(block, outputs[0], channels[1], outputs[1], repeats=repeats[1], stride=2)
        self.layer3 = _layer(block, outputs[1], channels[2], outputs[2], repeats=repeats[2], stride=2)
        self.layer4 = _layer(block, outputs[2], channels[3], outputs[3], repeats=repeats[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(outputs[3], classes)
        initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # [N, C, H / 4, W / 4]
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: torch.Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def resnet18(*, width: float = 1.0, classes: int = 1000) -> ResNet:
    """ResNet-18, [N, 3, H, W] -> [N, classes]; `width` scales every layer."""
    return ResNet(BasicBlock, (2, 2, 2, 2), width, classes)


def resnet50(*, width: float = 1.0, classes: int = 1000) -> ResNet:
    """ResNet-50, [N, 3, H, W] -> [N, classes]; `width` scales every layer."""
    return ResNet(Bottleneck, (3, 4, 6, 3), width, classes)
