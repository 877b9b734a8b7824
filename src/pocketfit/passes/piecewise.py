"""Activations in the form that has kernels: hard-swish as a product of sums, x / 6 * relu6(x + 3).

LiteRT's XNNPACK has no int8 kernel for HARD_SWISH, and the builtin one took three quarters of MobileNetV3-small's time.
Additions and products have kernels. Written as x * relu6(x + 3) / 6, the converter makes a HARD_SWISH of it again.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.sources.fingerprint import fingerprint

CHECKED = torch.linspace(-10, 10, 4001)
SAME = 1e-6  # float32's rounding at the values that are checked


class HardswishProduct(nn.Module):
    """x / 6 * relu6(x + 3) (Howard et al. 2019, section 5.2)."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * (1 / 6)) * nn.functional.relu6(x + 3)


def replaceable(network: nn.Module) -> tuple[str, ...]:
    """Dotted names of the modules that `apply` replaces."""
    return tuple(name for name, module in network.named_modules() if isinstance(module, nn.Hardswish))


def apply(model: Model) -> Model:
    """A copy in which every nn.Hardswish has become a product; its answers are the same but for rounding.

    Raises UserError where the network has none as a module (one called as a function in a forward stays).
    """
    if not replaceable(model.network):
        raise UserError("This network has no module nn.Hardswish to replace")
    given = CHECKED
    worst = float((HardswishProduct()(given) - nn.functional.hardswish(given)).abs().max())
    assert worst <= SAME * float(given.abs().max()), worst
    network = copy.deepcopy(model.network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Hardswish):
                setattr(parent, name, HardswishProduct())
    if isinstance(network, nn.Hardswish):
        network = HardswishProduct()
    return replace(model, network=network, sha256=fingerprint(network))
