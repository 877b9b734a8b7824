"""The networks of `recovery.py`: one of each kind that people bring, small enough to be trained in a minute or two.

All take 3 x 32 x 32 and give ten logits. `scaled` networks are changed after they were trained, so that they answer
as before, and their weights or answers have another size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketfit import zoo

CLASSES = 10


def conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3, norm: nn.Module | None = None) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=norm is None)]
    return nn.Sequential(*layers, *([] if norm is None else [norm]), nn.ReLU())


def plain() -> nn.Module:
    """Strided convolutions without norms, flattened."""
    body = [conv(3, 16, 2), conv(16, 32, 2), conv(32, 32, 2)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def plain_norms() -> nn.Module:
    widths = [(3, 16), (16, 32), (32, 64)]
    body = [conv(i, o, 2, norm=nn.BatchNorm2d(o)) for i, o in widths]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.f1, self.f2, self.f3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.c2(x)), 2)
        x = x.view(x.size(0), -1)
        found: Tensor = self.f3(F.relu(self.f2(F.relu(self.f1(x)))))
        return found


class Tutorial(nn.Module):
    """Features, a view, and a classifier with dropout, as VGG and AlexNet are written."""

    def __init__(self, features: nn.Sequential, flat: int, hidden: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Sequential(
            *(nn.Dropout(), nn.Linear(flat, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU()),
            nn.Linear(hidden, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        found: Tensor = self.classifier(x.view(x.size(0), -1))
        return found


def vgg() -> nn.Module:
    features: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        features += [conv(inputs, outputs), conv(outputs, outputs), nn.MaxPool2d(2)]
    return Tutorial(nn.Sequential(*features), 1024, 128)


def alexnet() -> nn.Module:
    body = (conv(3, 24, 2, 5), nn.MaxPool2d(2), conv(24, 48, 1, 5), conv(48, 64), conv(64, 48), nn.MaxPool2d(2))
    return Tutorial(nn.Sequential(*body), 768, 128)


class Sum(nn.Module):
    """x + body(x)"""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.body(x)
        return found


def group_norms() -> nn.Module:
    def block(width: int) -> nn.Module:
        return Sum(conv(width, width, norm=nn.GroupNorm(4, width)), nn.Conv2d(width, width, 3, 1, 1))

    body = (conv(3, 24, 2, norm=nn.GroupNorm(4, 24)), block(24), conv(24, 48, 2, norm=nn.GroupNorm(4, 48)), block(48))
    return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, CLASSES))


class Permuted(nn.Module):
    """Something that works along the last dimension, applied to channels."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return found


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


def convnext() -> nn.Module:
    def block(width: int) -> nn.Module:
        inside = (nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        return Sum(nn.Conv2d(width, width, 7, 1, 3, groups=width), Permuted(*inside, LayerScale(width)))

    body = (nn.Conv2d(3, 24, 4, 4), Permuted(nn.LayerNorm(24)), block(24), block(24), Permuted(nn.LayerNorm(24)))
    down = (nn.Conv2d(24, 48, 2, 2), block(48), block(48), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*body, *down, nn.LayerNorm(48), nn.Linear(48, CLASSES))


class ViT(nn.Module):
    def __init__(self, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 65, width))
        layers = [nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)]
        self.blocks = nn.Sequential(*layers, *(self._another(width) for _ in range(depth - 1)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    @staticmethod
    def _another(width: int) -> nn.Module:
        return nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        found: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return found


class Transposed(nn.Module):
    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x.transpose(1, 2)).transpose(1, 2)
        return found


class Mixer(nn.Module):
    def __init__(self, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for _ in range(depth):
            blocks += [
                Sum(nn.LayerNorm(width), Transposed(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64))),
                Sum(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)),
            ]
        self.patches, self.blocks = nn.Conv2d(3, width, 4, 4), nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        found: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return found


class Dense(nn.Module):
    """x with body(x) behind it"""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def densenet() -> nn.Module:
    first = (nn.Conv2d(3, 16, 3, 2, 1, bias=False), *(Dense(16 + 12 * i, 12) for i in range(4)))
    down = (nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 32, 1, bias=False), nn.AvgPool2d(2))
    last = (*(Dense(32 + 12 * i, 12) for i in range(4)), nn.BatchNorm2d(80), nn.ReLU())
    return nn.Sequential(*first, *down, *last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(80, CLASSES))


class Raw(nn.Module):
    """A network that is fed with values from 0 to 255 and has no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(255 * (0.25 * x + 0.5))
        return found


def answers_times(factor: float) -> Callable[[nn.Module], None]:
    def change(network: nn.Module) -> None:
        last = zoo.head(network)[1]
        with torch.no_grad():
            last.weight.mul_(factor)
            last.bias.mul_(factor)

    return change


def weights_apart(network: nn.Module) -> None:
    """The first convolution 100 times as large, the second one, which has no norm in between, a hundredth."""
    first, second, *_ = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    with torch.no_grad():
        first.weight.mul_(100)
        if first.bias is not None:
            first.bias.mul_(100)
        second.weight.div_(100)


def norms_apart(network: nn.Module) -> None:
    """Every other batch norm 30 times as large, the convolution behind it smaller by as much; weights in front of the
    norms a thousandth."""
    convs = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        norms[0].weight.mul_(30)
        norms[0].bias.mul_(30)
        convs[1].weight.div_(30)
        convs[2].weight.mul_(1e-3)
        norms[2].running_mean.mul_(1e-3)
        norms[2].running_var.mul_(1e-6)
        norms[2].eps *= 1e-6


@dataclass(frozen=True)
class Kind:
    """How a network is built, and what is done to it after it was trained; `like`: the one that it begins from."""

    build: Callable[[], nn.Module]
    scaled: Callable[[nn.Module], None] | None = None
    like: str = ""


def zoo_network(name: str, width: float) -> Kind:
    return Kind(lambda: zoo.build(name, width=width, classes=CLASSES))


KINDS: dict[str, Kind] = {
    "plain CNN, no norms": Kind(plain),
    "LeNet with view": Kind(LeNet),
    "VGG style, no norms": Kind(vgg),
    "AlexNet style": Kind(alexnet),
    "plain CNN, batch norms": Kind(plain_norms),
    "ResNet-18 x0.25": zoo_network("resnet18", 0.25),
    "MobileNetV2 x0.35": zoo_network("mobilenet_v2", 0.35),
    "MobileNetV3-small x0.5": zoo_network("mobilenet_v3_small", 0.5),
    "ShuffleNetV2 x0.5": zoo_network("shufflenet_v2", 0.5),
    "GroupNorm ResNet": Kind(group_norms),
    "ConvNeXt style": Kind(convnext),
    "ViT": Kind(ViT),
    "MLP-Mixer": Kind(Mixer),
    "DenseNet style": Kind(densenet),
    "pixels 0 to 255, no norms": Kind(Raw),
    "answers x100": Kind(plain_norms, answers_times(100), "plain CNN, batch norms"),
    "answers x0.01, no norms": Kind(plain, answers_times(0.01), "plain CNN, no norms"),
    "weights badly scaled": Kind(plain, weights_apart, "plain CNN, no norms"),
    "norms badly scaled": Kind(plain_norms, norms_apart, "plain CNN, batch norms"),
}
