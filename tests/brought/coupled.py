"""Ways in which channels are coupled, and layers that are used in several places."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.brought.parts import CLASSES, cbr, trained


class TwiceInOneConcatenation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = cbr(3, 24, stride=2), cbr(48, 32, stride=2), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.fc(self.b(torch.cat([x, x], 1)).mean((2, 3)))


class ChunkAndConcatenate(nn.Module):
    """A stage that halves its channels, works on the second half over and over, and joins all that came up."""

    def __init__(self, steps: int = 2) -> None:
        super().__init__()
        self.stem, self.enter = cbr(3, 16, stride=2), cbr(16, 48, 1)
        self.steps = nn.ModuleList(nn.Sequential(cbr(24, 24), cbr(24, 24)) for _ in range(steps))
        self.leave, self.fc = cbr(24 * (2 + steps), 40, 1), nn.Linear(40, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found = list(self.enter(self.stem(x)).chunk(2, 1))
        for step in self.steps:
            found.append(found[-1] + step(found[-1]))
        return self.fc(self.leave(torch.cat(found, 1)).mean((2, 3)))


class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.wide, self.up = cbr(3, 16, stride=2), cbr(16, 64), cbr(16, 24)
        self.shuffle, self.fc = nn.PixelShuffle(2), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.up(self.shuffle(self.wide(self.down(x)))).mean((2, 3)))


class FewGroups(nn.Module):
    """A grouped convolution in a residual block: 3 groups, or as many as there are channels, with two filters each."""

    def __init__(self, groups: int = 3, middle: int = 48) -> None:
        super().__init__()
        self.stem, self.mid = cbr(3, 48, stride=2), cbr(48, middle, stride=2, groups=groups)
        self.out, self.skip, self.fc = cbr(middle, 64, 1), nn.Conv2d(48, 64, 1, 2), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(F.relu(self.out(self.mid(x)) + self.skip(x)).mean((2, 3)))


class FlattenAndBack(nn.Module):
    """Flattened, normalized, and viewed as a picture again, whose sizes are written down."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = cbr(3, 12, stride=4), trained(nn.BatchNorm1d(12 * 64))
        self.lin, self.up = nn.Linear(12 * 64, 16 * 16), nn.ConvTranspose2d(16, 8, 4, 2, 1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.flatten(self.conv(x), 1))
        x = F.relu(self.lin(x)).view(-1, 16, 4, 4)
        return self.fc(F.relu(self.up(x)).amax((2, 3)))


class ChannelShuffle(nn.Module):
    """view, transpose, contiguous, view, as everybody writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped, self.last = cbr(3, 24, stride=2), cbr(24, 48, 1, groups=3), cbr(48, 32, groups=2)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.fc(self.last(x).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Squeeze and excite, then hardswish of the product; two channels of the depthwise layer are loud."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        conv, norm = nn.Conv2d(3, width, 3, 2, 1, bias=False), trained(nn.BatchNorm2d(width))
        self.stem = nn.Sequential(conv, norm, nn.Hardswish())
        deep = nn.Conv2d(width, width, 5, 1, 2, groups=width, bias=False)
        self.deep = nn.Sequential(deep, trained(nn.BatchNorm2d(width)))
        self.gate = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 8, 1), nn.ReLU(), nn.Conv2d(8, width, 1), nn.Hardsigmoid())
        )
        self.out = nn.Sequential(nn.Conv2d(width, 48, 1, bias=False), trained(nn.BatchNorm2d(48)))
        self.fc = nn.Linear(48, CLASSES)
        with torch.no_grad():
            self.deep[1].weight[:2] *= 40

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.stem(x))
        return self.fc(self.out(F.hardswish(x * self.gate(x))).mean((2, 3)))


class Dense(nn.Module):
    """Each layer sees all that came before (DenseNet: norm, relu, convolution), with a transition between blocks."""

    def __init__(self, growth: int = 12) -> None:
        super().__init__()
        self.stem, width = nn.Conv2d(3, 16, 3, 2, 1, bias=False), 16
        self.blocks, self.between = nn.ModuleList(), nn.ModuleList()
        for _ in range(2):
            steps = nn.ModuleList()
            for _ in range(3):
                conv = nn.Conv2d(width, growth, 3, padding=1, bias=False)
                steps.append(nn.Sequential(trained(nn.BatchNorm2d(width)), nn.ReLU(), conv))
                width += growth
            self.blocks.append(steps)
            self.between.append(nn.Sequential(cbr(width, width // 2, 1), nn.AvgPool2d(2)))
            width //= 2
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for steps, leave in zip(self.blocks, self.between, strict=True):
            for step in steps:
                x = torch.cat([x, step(x)], 1)
            x = leave(x)
        return self.fc(x.mean((2, 3)))


class GroupedResidual(nn.Module):
    """ResNeXt: bottlenecks whose middle convolution has 8 groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 32, stride=2)
        self.blocks = nn.ModuleList(
            nn.Sequential(cbr(32, 32, 1), cbr(32, 32, groups=8), *cbr(32, 32, 1)[:2]) for _ in range(2)
        )
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.fc(x.mean((2, 3)))


class InPlace(nn.Module):
    """A residual network that saves memory as most do: relu and sum in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = cbr(3, 16, stride=2), cbr(16, 16), cbr(16, 16)[:2]
        self.relu, self.c, self.fc = nn.ReLU(inplace=True), cbr(16, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.b(self.a(x))
        y += x
        x = self.c(self.relu(y))
        return self.fc(F.relu_(F.max_pool2d(x, 2) - 0.1).mean((2, 3)))


class ConvNext(nn.Module):
    """Patches, layer norm along the last dimension, a factor for each channel on the branch."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.deep = nn.ModuleList(nn.Conv2d(width, width, 7, padding=3, groups=width) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.wide = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(2))
        self.back = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(2))
        self.gammas = nn.ParameterList(nn.Parameter(torch.full((width,), 0.5)) for _ in range(2))
        self.norm, self.fc = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for deep, norm, wide, back, gamma in zip(self.deep, self.norms, self.wide, self.back, self.gammas, strict=True):
            y = norm(deep(x).permute(0, 2, 3, 1))
            x = x + (gamma * back(F.gelu(wide(y)))).permute(0, 3, 1, 2)
        return self.fc(self.norm(x.mean((2, 3))))


class UNetWithClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.deep = cbr(3, 16), cbr(16, 32), cbr(32, 48)
        self.up, self.join, self.last = nn.ConvTranspose2d(48, 32, 2, 2), cbr(64, 24), cbr(40, 16)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(F.max_pool2d(x, 2))
        b = self.down2(F.max_pool2d(a, 2))
        y = self.join(torch.cat([self.up(self.deep(F.max_pool2d(b, 2))), b], 1))
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        return self.fc(self.last(torch.cat([y, a], 1)).mean((2, 3)))


class SideHeads(nn.Module):
    """GoogLeNet: branches side by side, and in training a tuple with the answer of a head on the way."""

    def __init__(self, *, inceptions: bool = False) -> None:
        super().__init__()
        self.a, self.b = cbr(3, 16, stride=2), cbr(16, 32, stride=2)
        self.branches = nn.ModuleList()
        if inceptions:
            pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), cbr(32, 8, 1))
            self.branches.extend([cbr(32, 8, 1), nn.Sequential(cbr(32, 8, 1), cbr(8, 16)), pool])
        self.main, self.side = nn.Linear(32, CLASSES), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.a(x)
        side, x = self.side(x.mean((2, 3))), self.b(x)
        if len(self.branches):
            x = torch.cat([branch(x) for branch in self.branches], 1)
        main = self.main(x.mean((2, 3)))
        return (main, side) if self.training else main


class OneConvolutionThreeTimes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = cbr(3, 24, stride=2), nn.Conv2d(24, 24, 3, padding=1)
        self.norms = nn.ModuleList(trained(nn.BatchNorm2d(24)) for _ in range(3))
        self.fc = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, norm in enumerate(self.norms):
            x = F.max_pool2d(F.relu(norm(self.block(x))), 2 if i else 1)
        return self.fc(x.mean((2, 3)))


class NormAfterRelu(nn.Module):
    """Batch norms behind activations and on branches, half of their factors negative; one convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 24, 3, 2, 1), trained(nn.BatchNorm2d(24))
        self.c2, self.b2 = nn.Conv2d(24, 24, 3, 1, 1), trained(nn.BatchNorm2d(24))
        self.fc = nn.Linear(24, CLASSES)
        with torch.no_grad():
            self.b1.weight[::2] *= -1

    def forward(self, x: Tensor) -> Tensor:
        x = self.b1(F.relu(self.c1(x)))
        y = self.b2(self.c2(x))
        return self.fc(F.relu(self.c2(y) + y + x).mean((2, 3)))


class TiedWeights(nn.Module):
    """Two modules that share one weight, each with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = cbr(3, 16, stride=2), nn.Conv2d(16, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)
        self.two.weight = self.one.weight
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.two(F.relu(self.one(self.stem(x))))).mean((2, 3)))
