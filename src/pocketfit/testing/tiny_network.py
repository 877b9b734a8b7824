"""One tiny network for the tests of all runtimes."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pocketfit.core.model import Model, Origin
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.signature import Signature, TensorSpec

SIDE = 32  # large enough for clocks that count whole microseconds
CLASSES = 5


class TinyNet(nn.Module):
    """Convolution, depthwise, residual, max pool, mean, linear: [N, 3, 32, 32] -> [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        x = self.pool(x + self.project(self.depthwise(x)))
        return self.head(x.mean((2, 3)))


WEIGHTS = {"stem.0": 216, "depthwise.0": 72, "project.0": 64, "head": 40}  # layer -> number of weights
POSITIONS = (SIDE // 2) ** 2  # after the stem
MACS = (216 + 72 + 64) * POSITIONS + 40


def tiny_model(network: nn.Module | None = None, sha256: str = "tiny") -> Model:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = network or TinyNet()
    network.train()
    with torch.no_grad():  # batch norms with statistics of their own
        for _ in range(20):
            network(torch.randn(16, 3, SIDE, SIDE))
    signature = Signature(
        (TensorSpec("image", (None, 3, SIDE, SIDE), "float32", "NCHW"),), (TensorSpec("logits", (None, CLASSES)),)
    )
    preprocess = Preprocess(height=SIDE, width=SIDE, resize_px=SIDE)
    return Model(
        network=network.eval(),
        signature=signature,
        preprocess=preprocess,
        labels=tuple("abcde"),
        origin=Origin("object", "tiny"),
        sha256=sha256,
    )


def pictures(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 3, SIDE, SIDE)).astype(np.float32)
