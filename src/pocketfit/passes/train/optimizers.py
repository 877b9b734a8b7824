"""The optimizer: Muon for pointwise convolutions, SGD for all other weights.

A pointwise convolution is a matrix [outputs, inputs]. A few steep directions make most of its gradient. Muon (Jordan et
al. 2024, "Muon: an optimizer for hidden layers") moves the matrix equally far in all directions, which matters where
recovery has a hundred steps. The length of a step is a share of the matrix's own norm: behind a batch norm only that
ratio matters (You et al. 2017, LARS, section 4). All other weights, convolutions with larger windows among them, are
left to SGD with Nesterov's momentum: for those Muon takes longer and gains nothing.

Muon is written out here because PyTorch's own computes in bfloat16, which is slow on processors without bfloat16
instructions. Figures: docs/results/notes.md, "Training".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pocketfit.core.plan.train import OptimizerName

WEIGHT_DECAY = 4e-5  # MobileNetV2's (Sandler et al. 2018, section 6.1)
MOMENTUM = 0.9
# A matrix moves by this share of the learning rate, in units of its own norm; a momentum of 0.8 averages about five
# gradients. Other values that were tried: docs/results/notes.md, "Training".
MATRIX_SHARE = 0.4
MATRIX_MOMENTUM = 0.8
QUINTIC = (3.4445, -4.775, 2.0315)  # Jordan et al. 2024: steepest at zero; singular values end between 0.7 and 1.2
ITERATIONS = 5
WARMUP_SHARE = 0.05


def schedule(share: float) -> float:
    """Linear warm-up, then half a cosine to zero (Loshchilov and Hutter 2017, equation 5).

    >>> round(schedule(0.05), 3), round(schedule(1.0), 3)
    (1.0, 0.0)
    """
    if share < WARMUP_SHARE:
        return (share + 0.01) / (WARMUP_SHARE + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (share - WARMUP_SHARE) / (1 - WARMUP_SHARE)))


class Optimizer:
    """One learning rate for all the parameters of a network that learn, and for some others."""

    def __init__(self, network: nn.Module, name: OptimizerName, also: Sequence[nn.Parameter] = ()) -> None:
        self.parameters = [*(p for p in network.parameters() if p.requires_grad), *also]
        self._matrices = [_Matrix(weight) for weight in matrices(network)] if name == "muon" else []
        self.relative = [matrix.weight for matrix in self._matrices]  # they move by shares of their own norm
        taken = set(map(id, self.relative))
        others = [p for p in self.parameters if id(p) not in taken]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in others if p.ndim <= 1]},
        ]
        self._sgd = torch.optim.SGD(groups, lr=1.0, momentum=MOMENTUM, nesterov=True)

    def step(self, learning_rate: float) -> None:
        """Move the parameters by their gradients, and clear the gradients."""
        for group in self._sgd.param_groups:
            group["lr"] = learning_rate
        self._sgd.step()
        for matrix in self._matrices:
            matrix.step(MATRIX_SHARE * learning_rate)
        for parameter in self.parameters:
            parameter.grad = None


class _Matrix:
    """A weight [outputs, inputs, 1, …] as Muon moves it."""

    def __init__(self, weight: nn.Parameter) -> None:
        self.weight = weight
        self._size = float(weight.detach().norm())
        self._momentum = torch.zeros_like(weight).flatten(1)

    @torch.no_grad()
    def step(self, share: float) -> None:
        """Move the weight by about `share` of the norm that it had at first; without a gradient it stays."""
        if self.weight.grad is None:
            return
        gradient = self.weight.grad.flatten(1)
        self._momentum.lerp_(gradient, 1 - MATRIX_MOMENTUM)
        direction = orthogonal(gradient.lerp(self._momentum, MATRIX_MOMENTUM))  # Nesterov's
        self.weight.sub_(direction.view_as(self.weight), alpha=share * self._size / math.sqrt(min(direction.shape)))


def orthogonal(matrix: Tensor) -> Tensor:
    """U Vᵀ of a matrix [m, n] = U S Vᵀ, nearly: a quintic Newton-Schulz iteration brings all singular values near 1.
    Those below a hundredth of the largest ones get part of the way.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    linear, cubic, quintic = QUINTIC
    found: Tensor = matrix / matrix.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), found, beta=linear)
    return found


def matrices(network: nn.Module) -> list[nn.Parameter]:
    """The trainable weights of pointwise convolutions with one group."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = [m for m in network.modules() if isinstance(m, kinds) and m.groups == 1 and set(m.kernel_size) == {1}]
    weights = [layer.weight for layer in layers if layer.weight.requires_grad]
    unique = {id(weight): weight for weight in weights if isinstance(weight, nn.Parameter)}
    return list(unique.values())
