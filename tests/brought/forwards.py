"""Ways in which people write a forward."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.brought.parts import CLASSES, cbr, pooled, trained


class LeNet(nn.Module):
    """x.view(x.size(0), -1), as in every tutorial."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(channels, 16, 5), nn.Conv2d(16, 32, 5)
        self.f1, self.f2 = nn.Linear(32 * 25, 64), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.c2(x)), 2)
        x = x.view(x.size(0), -1)
        return self.f2(F.relu(self.f1(x)))


class Vgg(nn.Module):
    def __init__(self, *, norms: bool = False, pool: int | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 24), (24, 32)):
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            layers += [trained(nn.BatchNorm2d(outputs))] if norms else []
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.pool, side = (nn.Identity(), 4) if pool is None else (nn.AdaptiveAvgPool2d(pool), pool)
        self.classifier = nn.Sequential(
            *(nn.Dropout(), nn.Linear(32 * side * side, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, CLASSES))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))
        return self.classifier(x.view(x.size(0), -1))


class SideBySideSizes(nn.Module):
    """Average and max pooling with ceil_mode on odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.p1, self.m = cbr(3, 16), nn.AvgPool2d(2, 2, ceil_mode=True), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.p2 = nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)
        self.fc = nn.Linear(16 * 5 * 6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.p2(self.m(self.p1(self.c(x)))).flatten(1))


class TransposedConvolutions(nn.Module):
    """output_padding, groups, a padding that differs by direction, no bias in front of a norm."""

    def __init__(self, groups: int = 4) -> None:
        super().__init__()
        up = nn.ConvTranspose2d(16, 16, 3, 2, 1, output_padding=1, groups=groups, bias=False)
        self.c, self.up = cbr(3, 16, stride=2), nn.Sequential(up, trained(nn.BatchNorm2d(16)), nn.ReLU())
        self.wide, self.fc = nn.ConvTranspose2d(16, 8, (1, 5), (1, 2), (0, 2)), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.wide(self.up(self.c(x))).amax((2, 3)))


class HardswishFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.norm, self.fc = trained(nn.BatchNorm2d(16)), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.hardswish(self.b(F.hardswish(self.norm(self.a(x))))).mean((2, 3)))


class KeepsWhatItSaw(nn.Module):
    """Stores its feature maps on itself, for a look at them later."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(cbr(3, 16, stride=2), cbr(16, 32, stride=2)), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.body(x)
        return self.fc(self.seen.mean((2, 3)))


def kept_a_graph() -> nn.Module:
    """The same network after a step of its owner's training: what it keeps has gradients, and can't be copied."""
    network = KeepsWhatItSaw()
    network.train()
    network(torch.randn(2, 3, 32, 32))
    return network


class ActsUnlessTraced(nn.Module):
    """A Python branch that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = cbr(3, 16, stride=2), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).mean((2, 3))
        return self.fc(x if x.sum() > 0 else -x)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = cbr(3, 16, stride=2), nn.Linear(20, CLASSES)

    def forward(self, picture: Tensor, facts: Tensor) -> Tensor:
        return self.fc(torch.cat([self.body(picture).mean((2, 3)), facts], 1))


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = cbr(3, 16, stride=2), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))  # there is no self.head


def plain() -> nn.Sequential:
    return nn.Sequential(cbr(3, 16, stride=2), cbr(16, 32, stride=2), *pooled(32))


def without_norms(width: int = 32) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, width, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, 48), nn.ReLU()),
        nn.Linear(48, CLASSES),
    )


def side_by_side(*widths: int) -> nn.Module:
    """Convolutions behind each other, as narrow as said."""
    layers = [cbr(i, o, stride=2) for i, o in zip((3, *widths), widths, strict=False)]
    return nn.Sequential(*layers, *pooled(widths[-1]))


def of_three_dimensions() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv3d(1, 8, 3, 2, 1), trained(nn.BatchNorm3d(8)), nn.ReLU(), nn.Conv3d(8, 16, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, CLASSES)),
    )


def of_one_dimension() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(2, 16, 9, 2, 4), trained(nn.BatchNorm1d(16)), nn.ReLU(), nn.Conv1d(16, 32, 9, 2, 4), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, CLASSES)),
    )
