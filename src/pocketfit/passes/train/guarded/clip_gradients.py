"""Gradient clipping: no step is many times as long as the steps before it.

Two bounds, both relative, so that they mean the same whatever the scale of a loss or of a weight is:

- the norm of all gradients is at most a few times its median over the last steps (Pascanu et al. 2013, algorithm 1,
  with a bound that follows from the training);
- the norm of one layer's gradient is at most a multiple of the norm of the layer (adaptive gradient clipping, Brock et
  al. 2021, equation 3, by layers in place of rows). Take a layer with a hundred times the usual weights and one behind
  it with a hundredth of them: relative to its size, the second one's gradient is ten thousand times the usual.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median

import torch
from torch import Tensor, nn

STEPS_REMEMBERED = 32
MEASURED_EVERY = 25  # steps between two measurements of the layers' norms
FEWEST_STEPS = 5  # steps before any step can count as unusual
USUAL = 4.0  # bound on the norm of all gradients, in medians of the remembered steps
LAYER_SHARE = 1.0  # bound on a layer's gradient, in norms of the layer; times the learning rate it bounds a step
SMALLEST_WEIGHT = 1e-3  # a layer's root mean square counts as at least this (Brock et al. 2021)


class Clip:
    """Clips the gradients of a network's parameters, step after step.

    relative  parameters whose steps are relative to their size already (optimizers.matrices): no bound by layer
    """

    def __init__(self, network: nn.Module, relative: Iterable[nn.Parameter] = ()) -> None:
        self._network, self._relative, self._taken = network, set(map(id, relative)), 0
        self._norms: deque[float] = deque(maxlen=STEPS_REMEMBERED)
        self._sizes: dict[int, float] = {}

    @torch.no_grad()
    def __call__(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Shorten the gradients of these parameters in place. Where one is not finite, set all to zero, so that the
        step moves nothing, and return False.
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
        """The factor for gradients whose common norm is `norm`."""
        most = USUAL * median(self._norms) if len(self._norms) >= FEWEST_STEPS else math.inf
        self._norms.append(min(norm, most))
        return 1.0 if norm <= most else most / norm


@torch.no_grad()
def layer_sizes(network: nn.Module) -> dict[int, float]:
    """The Euclidean norm of all parameters of a layer, for each of its parameters by their id."""
    parameters: list[Tensor] = list(network.parameters())
    norms = dict(zip(map(id, parameters), torch.stack(torch._foreach_norm(parameters)).tolist(), strict=True))
    sizes: dict[int, float] = {}
    for layer in network.modules():
        held = list(layer.parameters(recurse=False))
        least = SMALLEST_WEIGHT * math.sqrt(sum(p.numel() for p in held))
        size = max(math.hypot(*(norms[id(p)] for p in held)), least)
        sizes |= {id(p): size for p in held}
    return sizes
