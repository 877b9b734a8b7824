"""MobileNetV2: inverted residuals with linear bottlenecks.

MobileNetV2: Inverted Residuals and Linear Bottlenecks, https://arxiv.org/abs/1801.04381, table 2.
Key names are torchvision's.
"""

import torch
from torch import nn

from pocketfit.zoo.blocks import conv_norm_activation, initialize, make_divisible

# Table 2: (expansion factor t, output channels c, repeats n, stride s of the first repeat).
_ROWS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; added to its input where the shapes agree: figure 4d of the paper.

    [N, inputs, H, W] -> [N, outputs, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        expanded = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_norm_activation(inputs, expanded, 1))
        layers.append(conv_norm_activation(expanded, expanded, stride=stride, groups=expanded))
        layers.extend(conv_norm_activation(expanded, outputs, 1, activation=None))
        self.conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """[N, 3, H, W] -> logits [N, classes], for H and W of 32 or more."""

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        channels = make_divisible(32 * width)
        features: list[nn.Module] = [conv_norm_activation(3, channels, stride=2)]
        for expansion, row_outputs, repeats, row_stride in _ROWS:
            outputs = make_divisible(row_outputs * width)
            for repeat in range(repeats):
                stride = row_stride if repeat == 0 else 1
                features.append(InvertedResidual(channels, outputs, expansion, stride))
                channels = outputs
        # Section 5: for multipliers below 1 the last convolution keeps its 1280 channels.
        last = make_divisible(1280 * max(1.0, width))
        features.append(conv_norm_activation(channels, last, 1))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.avgpool(self.features(x))  # [N, C, 1, 1]
        logits: torch.Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def mobilenet_v2(*, width: float = 1.0, classes: int = 1000) -> MobileNetV2:
    """MobileNetV2, [N, 3, H, W] -> [N, classes]; `width` scales all layers but, below 1, the last convolution."""
    return MobileNetV2(width, classes)
