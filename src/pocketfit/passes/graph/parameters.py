"""Weights and biases written back into a network, by the names that they are stored under.

A weight may serve several layers, each with a bias of its own; and a weight need not belong to a layer of torch's own.
"""

from __future__ import annotations

from torch import Tensor, nn

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TAKE_A_BIAS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)


def attribute(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer with this dotted name."""
    owner, _, last = name.rpartition(".")
    found = getattr(module.get_submodule(owner), last)
    assert isinstance(found, Tensor)
    return found


def put(network: nn.Module, name: str, value: Tensor) -> None:
    """Write these numbers into the parameter of this name, in place."""
    attribute(network, name).data.copy_(value)


def add_to_bias(network: nn.Module, layer: str, bias: str, change: Tensor) -> None:
    """Add `change` [out] to the bias of a layer, in place.

    A convolution or linear layer without a bias (`bias` is "") gets one; anything else without one is left as it is.
    """
    if bias:
        attribute(network, bias).data.add_(change)
        return
    module = network.get_submodule(layer)
    if isinstance(module, _TAKE_A_BIAS) and module.bias is None:
        module.bias = nn.Parameter(change.clone())
