"""Norms, statistics and weights that make trouble."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from tests.brought.parts import CLASSES, cbr, pooled, trained


class FrozenNorm(nn.Module):
    """A batch norm whose numbers are buffers, as in detection backbones that are loaded for inference."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(width) + 0.5)
        self.register_buffer("bias", 0.3 * torch.randn(width))
        self.register_buffer("mean", 0.3 * torch.randn(width))
        self.register_buffer("var", torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.var + 1e-5).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.mean * scale).view(1, -1, 1, 1)


def all_frozen() -> nn.Module:
    network = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 2, 1, bias=False), FrozenNorm(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1, bias=False), FrozenNorm(64), nn.ReLU(), *pooled(64)),
    )
    return network.requires_grad_(False)


def all_but_the_head_frozen() -> nn.Module:
    network = nn.Sequential(cbr(3, 16, stride=2), cbr(16, 32, stride=2), *pooled(32)).requires_grad_(False)
    network[-1].requires_grad_(True)
    return network


class NormsThatStayInEval(nn.Module):
    """A well-known idiom: `train` is overridden to keep the norms as they are, and forgets to return the network."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(cbr(3, 16, stride=2), cbr(16, 32, stride=2)), nn.Linear(32, CLASSES)

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = False

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


def dead_scale_live_shift(padding: int) -> nn.Module:
    """Half of the channels have a factor of 0 and a shift of 3: they are constant, and not zero."""
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 1, 1), trained(nn.BatchNorm2d(16)), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, padding), trained(nn.BatchNorm2d(32)), nn.ReLU(), *pooled(32)),
    )
    with torch.no_grad():
        network[1].weight[:8], network[1].bias[:8] = 0, 3
    return network


def bias_beyond_int32() -> nn.Module:
    conv = nn.Conv2d(16, 16, 3, padding=1)
    with torch.no_grad():
        conv.weight[3] *= 1e-9
        conv.bias[3] = 5.0
    return nn.Sequential(cbr(3, 16, stride=2), conv, nn.Hardswish(), *pooled(16))


def dead_channels() -> nn.Module:
    """A channel of zeros with a variance of zero, one of 1e-7, and a row of zeros in the classifier."""
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *pooled(16)),
    )
    with torch.no_grad():
        network[0].weight[0], network[1].running_var[0] = 0, 0
        network[3].weight[1] *= 1e-7
        network[4].running_var[1] *= 1e-14
        network[8].weight[2] = 0
    return network


class UnequalConcatenation(nn.Module):
    """Values to 600 beside values to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = cbr(3, 8, stride=2), cbr(3, 8, stride=2), nn.Linear(16, CLASSES)
        with torch.no_grad():
            self.fc.weight[:, :8] /= 600

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([600 * self.a(x), torch.sigmoid(self.b(x))], 1)
        return self.fc(F.adaptive_avg_pool2d(both, 1).flatten(1))


def prelu_face() -> nn.Module:
    """A slope for each channel (one of them negative), two filters for each channel, and an embedding at the end."""
    network = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 2, 1), trained(nn.BatchNorm2d(32)), nn.PReLU(32)),
        *(nn.Conv2d(32, 64, 3, 2, 1, groups=32), nn.PReLU(64)),
        *(nn.Conv2d(64, 64, 4, groups=64), nn.Flatten(), nn.Linear(64, 32), trained(nn.BatchNorm1d(32))),
    )
    with torch.no_grad():
        network[2].weight.copy_(torch.linspace(-0.5, 4, 32))
    return network


def saturating_pairs() -> nn.Module:
    """Every int8 weight would be 127 and every input near the top of its range: products overflow 16 bits."""
    network = nn.Sequential(cbr(3, 64, stride=2), nn.Conv2d(64, 64, 1), nn.ReLU(), *pooled(64))
    with torch.no_grad():
        network[1].weight.fill_(0.1)
        network[1].weight[:, 1::7] *= -1
        network[0][1].bias.fill_(4.0)
    return network


def denormal_weights() -> nn.Module:
    layers = [nn.Sequential(nn.Conv2d(32 if i else 3, 32, 3, 2 - (i > 1), 1), nn.ReLU()) for i in range(4)]
    network = nn.Sequential(*layers, *pooled(32))
    with torch.no_grad():
        for layer in layers:
            layer[0].bias.zero_()
            layer[0].weight[torch.rand_like(layer[0].weight) < 0.5] *= 1e-38
    return network


def normed_weights(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Layers whose weights are computed anew from others at each call."""
    return nn.Sequential(
        *(norm(nn.Conv2d(3, 16, 3, 2, 1)), nn.ReLU(), norm(nn.Conv2d(16, 32, 3, 2, 1)), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm(nn.Linear(32, CLASSES))),
    )


def masked_weights() -> nn.Module:
    """torch.nn.utils.prune: a mask over the weights that nobody has made permanent."""
    return normed_weights(lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5))


def with_norm(norm: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), norm(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), norm(32), nn.ReLU()), *pooled(32)
    )


def layer_norm_over_all() -> nn.Module:
    conv, norm = nn.Conv2d(3, 8, 3, 2, 1), nn.LayerNorm([8, 16, 16])
    return nn.Sequential(conv, norm, nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), *pooled(16))


class BareLayerNorm(nn.Module):
    """Layer and instance norms that hold no tensor at all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.norm1 = cbr(3, 8, stride=2), nn.Conv2d(8, 24, 3), nn.InstanceNorm2d(24)
        self.norm2, self.mlp = nn.LayerNorm(24, elementwise_affine=False), nn.Linear(24, 40)
        self.fc = nn.Linear(40, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.wide(self.stem(x))).permute(0, 2, 3, 1)
        return self.fc(F.relu(self.mlp(self.norm2(x))).mean((1, 2)))


class StandardizedWeights(nn.Module):
    """Weights are brought to mean 0 and deviation 1 at each call, inside of the layer's own forward."""

    class Conv(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
            return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.norm = cbr(3, 16, stride=2), self.Conv(16, 24, 3, 2, 1), nn.GroupNorm(4, 24)
        self.b, self.fc = cbr(24, 32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(F.relu(self.norm(self.a(self.stem(x))))).mean((2, 3)))


def batch_statistics() -> nn.Module:
    """Batch norms without running statistics: each answer depends on what else is in the batch."""
    return with_norm(lambda width: nn.BatchNorm2d(width, track_running_stats=False))
