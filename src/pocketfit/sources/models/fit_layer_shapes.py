"""Give the layers of a freshly built network the sizes of stored tensors: how a pruned network comes back from disk.

No list of removed channels is stored: the shapes of the tensors are enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from pocketfit.core.errors import UserError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def resize_to(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put these tensors into the network, in place, and set every layer's own sizes to fit them.

    `state` has exactly the keys of `network.state_dict()`; sizes may differ, the number of dimensions may not.
    Raises UserError naming the tensor otherwise. Parameters that are shared stay shared.
    """
    own = network.state_dict(keep_vars=True)
    for name in sorted(own.keys() ^ state.keys()):
        there, missing = ("the network", "the weights") if name in own else ("the weights", "the network")
        raise UserError(f"The tensor {name} is in {there} but not in {missing}")
    tied: dict[int, Tensor] = {}
    for name, old in own.items():
        if old.ndim != state[name].ndim:
            raise UserError(
                f"The tensor {name} has {state[name].ndim} dimensions in the weights and {old.ndim} in the network"
            )
        layer, attribute = _owner(network, name)
        new = tied.get(id(old))
        if new is None:
            new = state[name].detach().clone().to(old.dtype)
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
            tied[id(old)] = new
        elif not torch.equal(new, state[name].to(new.dtype)):
            raise UserError(f"The tensor {name} is shared with another layer, but the weights hold two different ones")
        setattr(layer, attribute, new)
    for layer in network.modules():
        _fit_sizes(layer)


def fit_unweighted(network: nn.Module, *inputs: Tensor) -> None:
    """Give norms without tensors, whose width nothing stored shows, the width of their inputs, in place.

    Raises whatever the network's own forward raises on these inputs.
    """
    norms = [layer for layer in network.modules() if _holds_nothing(layer)]
    if not norms:
        return

    def fit(layer: nn.Module, given: tuple[Any, ...]) -> None:
        set_width(layer, given[0].shape[-1 if isinstance(layer, nn.LayerNorm) else 1])

    hooks = [layer.register_forward_pre_hook(fit) for layer in norms]
    try:
        with torch.no_grad():
            network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()


def set_width(norm: nn.Module, channels: int) -> None:
    """Set the width of a norm without tensors, in place; a layer norm keeps all its dimensions but the last."""
    if isinstance(norm, nn.LayerNorm):
        norm.normalized_shape = (*norm.normalized_shape[:-1], channels)
    elif isinstance(norm, nn.GroupNorm):
        norm.num_channels = channels
    else:
        cast(nn.modules.batchnorm._NormBase, norm).num_features = channels  # the third kind of _holds_nothing


def _holds_nothing(layer: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    return isinstance(layer, kinds) and not layer.state_dict()


def _owner(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return network.get_submodule(path), attribute


def _fit_sizes(layer: nn.Module) -> None:
    """Set the sizes that PyTorch keeps as integers beside a layer's tensors, from the tensors' shapes."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        statistics = getattr(layer, "running_mean", None)
        if isinstance(layer, nn.modules.batchnorm._NormBase) and isinstance(statistics, Tensor):
            layer.num_features = len(statistics)
        return
    if isinstance(layer, _CONVOLUTIONS):
        if layer.groups == layer.in_channels > 1:  # depthwise: one group for each input channel, m outputs in each
            layer.groups = weight.shape[0] * layer.groups // layer.out_channels
        layer.in_channels, layer.out_channels = weight.shape[1] * layer.groups, weight.shape[0]
    elif isinstance(layer, _TRANSPOSED):
        layer.in_channels, layer.out_channels = weight.shape[0], weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = weight.shape
    elif isinstance(layer, nn.modules.batchnorm._NormBase):
        layer.num_features = len(weight)
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = len(weight)
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(weight)
