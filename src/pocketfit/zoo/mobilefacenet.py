"""MobileFaceNet (Chen et al. 2018, https://arxiv.org/abs/1804.07573, table 1): faces of 112 x 112 pixels to embeddings.

    pocketfit fit pocketfit.zoo.mobilefacenet:mobilefacenet --weights FILE --task embedding …

Names of layers are those of InsightFace_Pytorch (MIT), whose checkpoints load. It and the paper end with the embedding
at length 1; here that is left to whoever compares, so that no norm stands at the end of a quantized file.
"""

from __future__ import annotations

from torch import Tensor, nn

from pocketfit.zoo.blocks import make_divisible

SIDE_PX = 112


class ConvBlock(nn.Module):
    """Convolution without a bias, batch norm, and PReLU where it is not linear."""

    def __init__(
        self,
        given: int,
        found: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(given, found, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(found)
        self.prelu = None if linear else nn.PReLU(found)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.bn(self.conv(maps))
        return maps if self.prelu is None else self.prelu(maps)


class DepthWise(nn.Module):
    """A bottleneck: 1 x 1 to `inner` channels, 3 x 3 of each channel, 1 x 1 back without an activation."""

    def __init__(self, given: int, found: int, inner: int, *, stride: int, residual: bool) -> None:
        super().__init__()
        self.conv = ConvBlock(given, inner, 1)
        self.conv_dw = ConvBlock(inner, inner, 3, stride=stride, padding=1, groups=inner)
        self.project = ConvBlock(inner, found, 1, linear=True)
        self.residual = residual

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = self.project(self.conv_dw(self.conv(maps)))
        return maps + found if self.residual else found


class Residual(nn.Module):
    def __init__(self, channels: int, blocks: int, inner: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            *(DepthWise(channels, channels, inner, stride=1, residual=True) for _ in range(blocks))
        )

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = self.model(maps)
        return found


class MobileFaceNet(nn.Module):
    """Faces [N, 3, 112, 112] -> embeddings [N, size]."""

    def __init__(self, size: int, width: float) -> None:
        super().__init__()
        a, b, c = (make_divisible(channels * width) for channels in (64, 128, 512))
        self.conv1 = ConvBlock(3, a, 3, stride=2, padding=1)
        self.conv2_dw = ConvBlock(a, a, 3, padding=1, groups=a)
        self.conv_23 = DepthWise(a, a, 2 * a, stride=2, residual=False)
        self.conv_3 = Residual(a, 4, 2 * a)
        self.conv_34 = DepthWise(a, b, 4 * a, stride=2, residual=False)
        self.conv_4 = Residual(b, 6, 2 * b)
        self.conv_45 = DepthWise(b, b, 4 * b, stride=2, residual=False)
        self.conv_5 = Residual(b, 2, 2 * b)
        self.conv_6_sep = ConvBlock(b, c, 1)
        self.conv_6_dw = ConvBlock(c, c, SIDE_PX // 16, groups=c, linear=True)
        self.conv_6_flatten = nn.Flatten()
        self.linear = nn.Linear(c, size, bias=False)
        self.bn = nn.BatchNorm1d(size)

    def forward(self, faces: Tensor) -> Tensor:
        maps = self.conv2_dw(self.conv1(faces))
        maps = self.conv_3(self.conv_23(maps))
        maps = self.conv_4(self.conv_34(maps))
        maps = self.conv_5(self.conv_45(maps))
        found: Tensor = self.bn(self.linear(self.conv_6_flatten(self.conv_6_dw(self.conv_6_sep(maps)))))
        return found


def mobilefacenet(*, size: int = 128, width: float = 1.0) -> MobileFaceNet:
    """The network with random weights.

    size   numbers of an embedding
    width  multiplies the channels
    """
    return MobileFaceNet(size, width)
