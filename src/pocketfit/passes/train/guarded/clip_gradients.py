"""Gradients of a size that a network stands: no step goes many times as far as those before it.

Two bounds, both relative, so that they mean the same whatever the scale of a loss or of a weight is:

- all gradients together are no longer than a few times the median of the last steps (Pascanu et al. 2013, algorithm 1,
  with a bound that is looked for);
- those of one layer are no longer than a multiple of the layer itself (adaptive gradient clipping, Brock et al. 2021,
  equation 3, by layers in place of rows): a weight that is a hundred times as small as usual, behind a layer that is a
  hundred times as large, has a gradient of ten thousand times its share.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median

import torch
from torch import Tensor, nn

STEPS_REMEMBERED = 32
MEASURED_EVERY = 25  # steps: a layer's size
FEWEST_STEPS = 5  # before which no step is called unusual
USUAL = 4.0  # times the median of the steps remembered
LAYER_SHARE = 1.0  # of a layer's own size; times the learning rate it is what one step may move
SMALLEST_WEIGHT = 1e-3  # root of the mean square of a layer, below which its own size says nothing (Brock et al. 2021)


class Clip:
    """Of gradients of a network's parameters.

    relative  parameters whose steps are relative to their size already (optimizers.matrices)
    """

    def __init__(self, network: nn.Module, relative: Iterable[nn.Parameter] = ()) -> None:
        self._network, self._relative, self._taken = network, set(map(id, relative)), 0
        self._norms: deque[float] = deque(maxlen=STEPS_REMEMBERED)
        self._sizes: dict[int, float] = {}

    @torch.no_grad()
    def __call__(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Shorten the gradients of these parameters in place. False, and gradients of zero, where one is not finite:
        such a step moves nothing.
        """
        given = [p for p in parameters if p.grad is not None]
        gradients: list[Tensor] = [p.grad for p in given if p.grad is not None]
        if not gradients:
            return True
        if self._taken % MEASURED_EVERY == 0:
            sizes = layer_sizes(self._network)
            self._sizes = {key: size for key, size in sizes.items() if key not in self._relative}
        self._taken += 1
        norms = torch.stack(torch._foreach_norm(gradients)).tolist()
        if not all(map(math.isfinite, norms)):
            for gradient in gradients:
                gradient.zero_()
            return False
        factors = []
        for parameter, norm in zip(given, norms, strict=True):
            most = LAYER_SHARE * self._sizes.get(id(parameter), math.inf)
            factors.append(min(1.0, most / norm) if norm > 0 else 1.0)
        whole = self._usual(math.hypot(*(n * f for n, f in zip(norms, factors, strict=True))))
        for gradient, factor in zip(gradients, factors, strict=True):
            if factor * whole < 1:
                gradient.mul_(factor * whole)
        return True

    def _usual(self, norm: float) -> float:
        """What the gradients are multiplied by, whose norm is this."""
        most = USUAL * median(self._norms) if len(self._norms) >= FEWEST_STEPS else math.inf
        self._norms.append(min(norm, most))
        return 1.0 if norm <= most else most / norm


@torch.no_grad()
def layer_sizes(network: nn.Module) -> dict[int, float]:
    """By id of a parameter: the Euclidean norm of all parameters of the layer that holds it."""
    parameters: list[Tensor] = list(network.parameters())
    norms = dict(zip(map(id, parameters), torch.stack(torch._foreach_norm(parameters)).tolist(), strict=True))
    sizes: dict[int, float] = {}
    for layer in network.modules():
        held = list(layer.parameters(recurse=False))
        least = SMALLEST_WEIGHT * math.sqrt(sum(p.numel() for p in held))
        size = max(math.hypot(*(norms[id(p)] for p in held)), least)
        sizes |= {id(p): size for p in held}
    return sizes
