"""The small pieces that several families share.

Every activation is a module of its own and none works in place: a hook then sees each tensor once,
and torch.export meets no mutated input.
"""

import torch
from torch import nn


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, never more than 10 % below it.

    The rule of TensorFlow's slim models (`_make_divisible`), which all published MobileNets follow:
    integer kernels run in groups of 8 channels.

    >>> make_divisible(24 * 0.5), make_divisible(16 * 0.35), make_divisible(32 * 1.0)
    (16, 8, 32)
    """
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest


def conv_norm_activation(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU6,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> nn.Sequential:
    """Convolution, batch norm, activation: [N, inputs, H, W] -> [N, outputs, ceil(H / stride), ceil(W / stride)].

    Members are named `0` (convolution, without bias), `1` (norm) and `2` (activation, unless None),
    as in torchvision's checkpoints.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=eps, momentum=momentum),
    ]
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a factor in 0..1 that is computed from all channels' means: [N, C, H, W] -> same.

    Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507, figure 1, with the hard sigmoid of
    MobileNetV3 (https://arxiv.org/abs/1905.02244, section 5.3).
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = nn.ReLU()
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.activation(self.fc1(self.avgpool(x)))  # [N, squeezed, 1, 1]
        scaled: torch.Tensor = x * self.scale_activation(self.fc2(scale))
        return scaled


def initialize(module: nn.Module) -> None:
    """Weights to start training from: He's normal initialization by fan-out, linear layers N(0, 0.01).

    Delving Deep into Rectifiers, https://arxiv.org/abs/1502.01852, equation 14. Batch norms keep PyTorch's
    start (weight 1, bias 0).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
