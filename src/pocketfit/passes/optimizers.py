"""What moves the weights while a network trains: SGD, and Muon for the matrices among them.

A pointwise convolution is a matrix [outputs, inputs]. Its gradient is mostly a few steep directions; Muon (Jordan et
al. 2024, "Muon: an optimizer for hidden layers") goes as far in all others, which is what counts where there are a
hundred steps to recover in. How far is told in shares of the matrix's own size: behind a batch norm nothing else
matters (You et al. 2017, LARS, section 4). Everything else is left to SGD with Nesterov's momentum: larger windows,
too, with which ResNet-18 took 1.7 times as long to train and came out no better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from pocketfit.core.plan import OptimizerName

WEIGHT_DECAY = 4e-5  # MobileNetV2's (Sandler et al. 2018, section 6.1)
MOMENTUM = 0.9
# A matrix moves by this share of the learning rate, in units of its own size, and remembers its last five gradients.
# Tried on MobileNetV2, Fashion-MNIST, 156 steps: shares of 0.15 to 0.5 and momenta of 0.6 to 0.9 are within 0.2 points.
MATRIX_SHARE = 0.4
MATRIX_MOMENTUM = 0.8


class Optimizer:
    """One learning rate for all the parameters of a network that learn."""

    def __init__(self, network: nn.Module, name: OptimizerName) -> None:
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self._weights = matrices(network) if name == "muon" else []
        taken = {id(weight) for weight in self._weights}
        others = [p for p in self.parameters if id(p) not in taken]
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in others if p.ndim <= 1]},
        ]
        self._all: list[torch.optim.Optimizer] = [torch.optim.SGD(groups, lr=1.0, momentum=MOMENTUM, nesterov=True)]
        self._matrices = [nn.Parameter(weight.detach().flatten(1).clone()) for weight in self._weights]
        if self._matrices:
            moved = [{"params": [m], "lr": MATRIX_SHARE * step(m)} for m in self._matrices]
            self._all.append(torch.optim.Muon(moved, momentum=MATRIX_MOMENTUM, weight_decay=0.0))
        self._rates = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in self._all]

    def step(self, learning_rate: float) -> None:
        """Move the parameters by their gradients, and forget these."""
        for optimizer, rates in zip(self._all, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = learning_rate * rate
        with torch.no_grad():
            for weight, matrix in self._pairs():
                matrix.copy_(weight.flatten(1))
                matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for optimizer in self._all:
            optimizer.step()
        with torch.no_grad():
            for weight, matrix in self._pairs():
                weight.copy_(matrix.view(weight.shape))
        for parameter in self.parameters:
            parameter.grad = None

    def _pairs(self) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
        """A weight as the network has it, and the matrix that Muon, which knows nothing else, moves for it."""
        return zip(self._weights, self._matrices, strict=True)


def matrices(network: nn.Module) -> list[nn.Parameter]:
    """The weights that learn of pointwise convolutions whose outputs all see the same inputs."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = [m for m in network.modules() if isinstance(m, kinds) and m.groups == 1 and set(m.kernel_size) == {1}]
    weights = {id(layer.weight): layer.weight for layer in layers if layer.weight.requires_grad}
    return list(weights.values())


def step(matrix: torch.Tensor) -> float:
    """The learning rate with which Muon moves a matrix [m, n] by about as much as there is of it.

    Its updates have singular values about 1, so that they measure sqrt(min(m, n)) (Frobenius), and it multiplies them
    by sqrt(max(1, m / n)). A matrix of zeros stays where it is.
    """
    rows, columns = matrix.shape
    return float(matrix.detach().norm()) / math.sqrt(min(rows, columns) * max(1.0, rows / columns))
