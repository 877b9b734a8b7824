"""MobileNetV1: stacks of depthwise separable convolutions.

MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications,
https://arxiv.org/abs/1704.04861, table 1.
"""

import torch
from torch import nn

from pocketfit.zoo.blocks import conv_norm_activation, initialize, make_divisible

# Table 1, one row per separable convolution: (output channels, stride of the depthwise convolution).
# The table prints stride 2 for the last one too; a 7x7 output shows that 1 is meant.
_ROWS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)


class MobileNetV1(nn.Module):
    """[N, 3, H, W] -> logits [N, classes], for H and W of 32 or more.

    `features.0` is the first convolution, `features.i.0` the depthwise and `features.i.1` the pointwise
    part of separable convolution i, `classifier.1` the linear layer.
    """

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        channels = make_divisible(32 * width)
        features = [conv_norm_activation(3, channels, stride=2, activation=nn.ReLU)]
        for row_outputs, stride in _ROWS:
            outputs = make_divisible(row_outputs * width)
            features.append(
                nn.Sequential(
                    conv_norm_activation(channels, channels, stride=stride, groups=channels, activation=nn.ReLU),
                    conv_norm_activation(channels, outputs, 1, activation=nn.ReLU),
                )
            )
            channels = outputs
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(channels, classes))
        initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.avgpool(self.features(x))  # [N, C, 1, 1]
        logits: torch.Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def mobilenet_v1(*, width: float = 1.0, classes: int = 1000) -> MobileNetV1:
    """MobileNetV1, [N, 3, H, W] -> [N, classes]; `width` is the paper's alpha and scales every layer."""
    return MobileNetV1(width, classes)
