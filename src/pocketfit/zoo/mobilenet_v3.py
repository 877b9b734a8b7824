"""MobileNetV3, large and small: inverted residuals with squeeze-and-excitation and hard swish.

Searching for MobileNetV3, https://arxiv.org/abs/1905.02244, tables 1 (large) and 2 (small).
Key names are torchvision's.
"""

from dataclasses import dataclass

import torch
from torch import nn

from pocketfit.zoo.blocks import SqueezeExcitation, conv_norm_activation, initialize, make_divisible

# torchvision's published weights were trained with these instead of PyTorch's 1e-5 and 0.1.
_EPS, _MOMENTUM = 0.001, 0.01


@dataclass(frozen=True)
class Row:
    """One `bneck` line of the paper's tables; channels are those of width 1."""

    kernel: int
    expanded: int
    outputs: int
    squeeze: bool
    activation: type[nn.Module]
    stride: int


_LARGE = (
    Row(3, 16, 16, False, nn.ReLU, 1),
    Row(3, 64, 24, False, nn.ReLU, 2),
    Row(3, 72, 24, False, nn.ReLU, 1),
    Row(5, 72, 40, True, nn.ReLU, 2),
    Row(5, 120, 40, True, nn.ReLU, 1),
    Row(5, 120, 40, True, nn.ReLU, 1),
    Row(3, 240, 80, False, nn.Hardswish, 2),
    Row(3, 200, 80, False, nn.Hardswish, 1),
    Row(3, 184, 80, False, nn.Hardswish, 1),
    Row(3, 184, 80, False, nn.Hardswish, 1),
    Row(3, 480, 112, True, nn.Hardswish, 1),
    Row(3, 672, 112, True, nn.Hardswish, 1),
    Row(5, 672, 160, True, nn.Hardswish, 2),
    Row(5, 960, 160, True, nn.Hardswish, 1),
    Row(5, 960, 160, True, nn.Hardswish, 1),
)

_SMALL = (
    Row(3, 16, 16, True, nn.ReLU, 2),
    Row(3, 72, 24, False, nn.ReLU, 2),
    Row(3, 88, 24, False, nn.ReLU, 1),
    Row(5, 96, 40, True, nn.Hardswish, 2),
    Row(5, 240, 40, True, nn.Hardswish, 1),
    Row(5, 240, 40, True, nn.Hardswish, 1),
    Row(5, 120, 48, True, nn.Hardswish, 1),
    Row(5, 144, 48, True, nn.Hardswish, 1),
    Row(5, 288, 96, True, nn.Hardswish, 2),
    Row(5, 576, 96, True, nn.Hardswish, 1),
    Row(5, 576, 96, True, nn.Hardswish, 1),
)


def _conv(
    inputs: int,
    outputs: int,
    kernel: int,
    activation: type[nn.Module] | None,
    *,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    return conv_norm_activation(
        inputs,
        outputs,
        kernel,
        stride=stride,
        groups=groups,
        activation=activation,
        eps=_EPS,
        momentum=_MOMENTUM,
    )


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze-and-excite, project: figure 4 of the paper.

    [N, inputs, H, W] -> [N, row.outputs * width, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, inputs: int, row: Row, width: float) -> None:
        super().__init__()
        expanded, outputs = make_divisible(row.expanded * width), make_divisible(row.outputs * width)
        self.residual = row.stride == 1 and inputs == outputs
        layers: list[nn.Module] = []
        if expanded != inputs:
            layers.append(_conv(inputs, expanded, 1, row.activation))
        layers.append(_conv(expanded, expanded, row.kernel, row.activation, stride=row.stride, groups=expanded))
        if row.squeeze:
            layers.append(SqueezeExcitation(expanded, make_divisible(expanded // 4)))
        layers.append(_conv(expanded, outputs, 1, None))
        self.block = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.block(x)
        return x + y if self.residual else y


class MobileNetV3(nn.Module):
    """[N, 3, H, W] -> logits [N, classes], for H and W of 32 or more."""

    def __init__(self, rows: tuple[Row, ...], hidden: int, width: float, classes: int) -> None:
        super().__init__()
        channels = make_divisible(16 * width)
        features: list[nn.Module] = [_conv(3, channels, 3, nn.Hardswish, stride=2)]
        for row in rows:
            features.append(InvertedResidual(channels, row, width))
            channels = make_divisible(row.outputs * width)
        features.append(_conv(channels, 6 * channels, 1, nn.Hardswish))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        hidden = make_divisible(hidden * width)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, hidden), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(hidden, classes)
        )
        initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.avgpool(self.features(x))  # [N, C, 1, 1]
        logits: torch.Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def mobilenet_v3_large(*, width: float = 1.0, classes: int = 1000) -> MobileNetV3:
    """MobileNetV3-Large, [N, 3, H, W] -> [N, classes]; `width` scales every layer."""
    return MobileNetV3(_LARGE, 1280, width, classes)


def mobilenet_v3_small(*, width: float = 1.0, classes: int = 1000) -> MobileNetV3:
    """MobileNetV3-Small, [N, 3, H, W] -> [N, classes]; `width` scales every layer."""
    return MobileNetV3(_SMALL, 1024, width, classes)
