"""Small networks, one for each way in which channels are coupled, and what the tests of the passes need with them."""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pocketfit.core.model import Model
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.sources.models.open_model import model_from_module


def cbr(inputs, outputs, kernel=3, groups=1, stride=1):
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.enter, self.a, self.b, self.fc = (
            cbr(3, 8),
            cbr(8, 24),
            cbr(24, 32),
            cbr(32, 24),
            nn.Linear(24, 5),
        )

    def forward(self, x):
        x = self.enter(self.stem(x))
        x = x + self.b(self.a(x))
        return self.fc(x.mean((2, 3)))


class Squeeze(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.wide, self.deep = cbr(3, 8), cbr(8, 32, 1), cbr(32, 32, groups=32)
        self.fc1, self.fc2, self.out = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 32, 1), nn.Linear(32, 5)

    def forward(self, x):
        x = self.deep(self.wide(self.stem(x)))
        scale = torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))
        return self.out((x * scale).mean((2, 3)))


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.join, self.fc = cbr(3, 8), cbr(8, 16), cbr(8, 24), cbr(40, 16), nn.Linear(16, 5)
        self.norm = nn.BatchNorm2d(40)

    def forward(self, x):
        x = self.stem(x)
        return self.fc(self.join(self.norm(torch.cat((self.a(x), self.b(x)), 1))).amax((2, 3)))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.wide, self.grouped, self.last = cbr(3, 8), cbr(8, 32), cbr(32, 64, groups=4), cbr(64, 16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.last(self.grouped(self.wide(self.stem(x)))).mean((2, 3)))


class Shuffle(nn.Module):
    """A ShuffleNet unit whose branch and whose outer channels can both be pruned."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = cbr(3, 8), cbr(8, 32), cbr(8, 32)
        self.inner, self.back, self.last, self.fc = cbr(32, 24), cbr(24, 32), cbr(64, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        x = self.shuffled(torch.cat((self.a(x), self.b(x)), 1))
        passed, convolved = x.chunk(2, 1)
        x = self.shuffled(torch.cat((passed, self.back(self.inner(convolved))), 1))
        return self.fc(self.last(x).mean((2, 3)))

    def shuffled(self, x):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Flatten(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(cbr(3, 8), cbr(8, 24), nn.MaxPool2d(4))
        self.classifier = nn.Sequential(nn.Linear(24 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class Spatial(nn.Module):
    """Attention over places (one map for all channels), a factor for each channel, and padded stride-2 shortcuts."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.map = (
            cbr(3, 8),
            cbr(8, 16),
            cbr(16, 32, stride=2),
            nn.Conv2d(2, 1, 7, padding=3),
        )
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, 16).view(16, 1, 1))
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = self.a(self.stem(x)) * self.gamma
        x = x * torch.sigmoid(self.map(torch.cat((x.sum(1, keepdim=True), x.amax(1, keepdim=True)), 1)))
        x = self.b(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
        return self.fc(x.mean((2, 3)))


class Twice(nn.Module):
    """One convolution that is used twice, so that its inputs and its outputs are the same channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.enter, self.twice, self.fc = (
            cbr(3, 8),
            cbr(8, 16),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.Linear(16, 5),
        )

    def forward(self, x):
        x = self.enter(self.stem(x))
        return self.fc(F.relu(self.twice(F.relu(self.twice(x)))).mean((2, 3)))


class Channelwise(nn.Module):
    """Layer norm along the last dimension, after a permutation, and a linear layer there."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide, self.norm = cbr(3, 8), nn.Conv2d(8, 24, 3), nn.LayerNorm(24)
        self.mlp, self.back, self.fc = nn.Linear(24, 40), nn.Linear(40, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = self.wide(self.stem(x)).permute(0, 2, 3, 1)
        x = x + self.back(F.gelu(self.mlp(self.norm(x))))
        return self.fc(x.mean((1, 2)))


class HardCoded(nn.Module):
    """The size behind the first convolutions is written into the forward."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.fc1, self.fc2 = cbr(3, 8), cbr(8, 16), nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.a(self.stem(x)), 1).view(-1, 16)
        return self.fc2(F.relu(self.fc1(x)))


class Unknown(nn.Module):
    """An operator that nobody taught the graph stands behind `hidden`."""

    def __init__(self):
        super().__init__()
        self.stem, self.seen, self.hidden, self.fc = cbr(3, 8), cbr(8, 16), cbr(16, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.hidden(self.seen(self.stem(x)))
        return self.fc(torch.cumsum(x, 1).mean((2, 3)))


EXACT = (Residual, Squeeze, Concat, Grouped, Shuffle, Flatten, Spatial, Twice)


def with_statistics(network: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms as after training: no channel's is like another's."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(layer.bias, generator=generator)
    return network.eval()


def model_of(network: nn.Module, side: int = 16) -> Model:
    return model_from_module(with_statistics(network), preprocess=Preprocess(height=side, width=side))


def masked(network: nn.Module, graph, removed: np.ndarray) -> nn.Module:
    """The network at its full size, with everything that makes or reads the removed channels set to zero."""
    masked = copy.deepcopy(network)
    state = masked.state_dict()
    for part in graph.slices:
        entries = torch.from_numpy(np.isin(part.ids, removed))
        if not part.parameter.endswith("running_var"):
            state[part.parameter].movedim(part.dim, 0)[entries] = 0
    return masked


def pictures(model: Model, count: int = 3) -> torch.Tensor:
    shape = model.signature.inputs[0].with_batch(count)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Plain(nn.Module):
    """Convolutions behind each other, without biases: what every pruning library understands alike."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = cbr(3, 8), cbr(8, 12), cbr(12, 10)
        self.fc = nn.Linear(10, 5)

    def forward(self, x):
        return self.fc(self.b(self.a(self.stem(x))).mean((2, 3)))


class Line(nn.Module):
    """Linear throughout: two 1x1 convolutions and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.a(self.stem(x)).mean((2, 3)))


def samples_of(model: Model, count: int = 40, *, labels: bool = True, seed: int = 3) -> Samples:
    rng = np.random.default_rng(seed)
    shape = model.signature.inputs[0].with_batch(count)
    classes = model.signature.outputs[0].shape[-1]
    given = rng.integers(0, classes, count) if labels else np.full(count, -1)
    array = rng.normal(size=shape).astype(np.float32)
    return Samples(
        array=array,
        labels=given.astype(np.int64),
        names=[f"{i}" for i in range(count)],
        split="train",
        sha256="made",
        preprocess=model.preprocess,
    )


class Everything(nn.Module):
    """All ways to couple channels in one network: squeeze-and-excite, depthwise, concatenation, residual, grouped
    convolution, channel shuffle; and a reshape with sizes written down, which hides the channels of `hidden`."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide, self.deep = cbr(3, 8, stride=2), cbr(8, 16, 1), cbr(16, 16, groups=16)
        self.fc1, self.fc2 = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.a, self.b, self.join = cbr(16, 16, 1), cbr(16, 24, 1), cbr(40, 32, 1)
        self.inner, self.outer = cbr(32, 24), cbr(24, 32)
        self.grouped, self.after = cbr(32, 64, groups=4), cbr(64, 16, 1)
        self.left, self.right, self.shuffled = cbr(16, 16, 1), cbr(16, 16, 1), cbr(32, 32, groups=2)
        self.hidden, self.fc = cbr(32, 16, 1), nn.Linear(20, 5)

    def forward(self, x):
        x = self.deep(self.wide(self.stem(x)))
        x = x * F.hardsigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), True)))))
        x = self.join(torch.cat((self.a(x), self.b(x)), 1))
        x = x + self.outer(self.inner(x))
        x = self.after(self.grouped(x))
        x = torch.cat((self.left(x), self.right(x)), 1)
        n, c, h, w = x.shape
        x = self.shuffled(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))
        x = self.hidden(x).mean((2, 3))
        return self.fc(torch.cat((x, x.view(n, 4, 4).amax(2)), 1))


class Branching(nn.Module):
    """Control flow that depends on values, as torch.cond says it; what stands before it can't be pruned."""

    def __init__(self):
        super().__init__()
        self.stem, self.free, self.before = cbr(3, 8), cbr(8, 16), cbr(16, 16)
        self.behind, self.fc = cbr(16, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.before(self.free(self.stem(x)))
        x = torch.cond(x.sum() > 0, lambda x: 2 * x, lambda x: x + 1, (x,))
        return self.fc(self.behind(x).mean((2, 3)))
