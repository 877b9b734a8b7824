"""The bare network: taken out of its wrappers, and with plain tensors as weights.

Wrappers (nn.DataParallel, torch.compile) hide a network's layers. Weight norms, spectral norms and masks compute a
layer's weight from other tensors at every call, so that a pass would change the wrong tensors. On a copy, they are
replaced by the weight as it is in eval mode.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pocketfit.core.errors import UserError


def bare(module: nn.Module) -> nn.Module:
    """The bare network in eval mode: the module itself where it needs no change, else a copy that computes the same.

    Raises UserError where it can't be put into eval mode or can't be copied.
    """
    module = _unwrapped(module)
    eval_mode(module)
    if not any(True for _ in _reasons_to_copy(module)):
        return module
    network = copied(module)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if (inside := _unwrapped(child)) is not child:
                setattr(parent, name, inside)
    for layer in list(network.modules()):
        _settle_weights(layer)
    return network


def computing(module: nn.Module) -> tuple[str, ...]:
    """Dotted names of the layers whose weights are computed anew at every call."""
    return tuple(
        name
        for name, layer in _unwrapped(module).named_modules()
        if parametrize.is_parametrized(layer) or any(map(_computes_weight, layer._forward_pre_hooks.values()))
    )


def eval_mode(network: nn.Module) -> None:
    """Put the network into eval mode, in place. (Its own `train` may return nothing, though torch's returns it.)"""
    try:
        network.eval()
    except Exception as error:  # a stranger's train(), or a module of torch.export, which refuses
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"{type(network).__name__} cannot be put into eval mode ({cause}): hand over the torch.nn.Module that it"
            " was made of"
        ) from error


def copied(module: nn.Module) -> nn.Module:
    """A copy; tensors with a gradient history, left over from a training, are copied by value."""
    values: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in _computed(module)}
    try:
        return copy.deepcopy(module, values)
    except Exception as error:  # a stranger's module may hold anything: a lock, a file, a generator
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"{type(module).__name__} cannot be copied ({cause}): keep what is no tensor and no plain value out of its"
            " attributes"
        ) from error


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inside = module.module
        else:  # torch.compile's wrapper; importing its class would take seconds
            inside = getattr(module, "_orig_mod", None) if type(module).__name__ == "OptimizedModule" else None
        if not isinstance(inside, nn.Module):
            return module
        module = inside


def _reasons_to_copy(module: nn.Module) -> Iterator[object]:
    """Wrappers inside, layers whose weights are computed, tensors that can't be copied as they are."""
    for layer in module.modules():
        if _unwrapped(layer) is not layer or parametrize.is_parametrized(layer):
            yield layer
        yield from (hook for hook in layer._forward_pre_hooks.values() if _computes_weight(hook))
    yield from _computed(module)


def _computes_weight(hook: object) -> bool:
    """Whether this is a hook of torch.nn.utils.weight_norm, spectral_norm or prune, by the attributes of all three."""
    return isinstance(hook, prune.BasePruningMethod) or (
        type(hook).__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")
    )


def _settle_weights(layer: nn.Module) -> None:
    """Replace each weight that is computed at every call by a parameter of that value, in place."""
    if parametrize.is_parametrized(layer):
        # torch puts the computed weight on a class that it makes for this layer; a copy of the layer shares the class
        kind = type(layer)
        own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        layer.__class__ = type(kind.__name__, kind.__bases__, own)
        for name in list(cast(nn.ModuleDict, layer.parametrizations)):
            parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
    for key, hook in list(layer._forward_pre_hooks.items()):
        if isinstance(hook, prune.BasePruningMethod):
            hook.remove(layer)
            del layer._forward_pre_hooks[key]
        elif type(hook).__module__ == "torch.nn.utils.spectral_norm":
            remove_spectral_norm(layer, cast(SpectralNorm, hook).name)
        elif type(hook).__module__ == "torch.nn.utils.weight_norm":
            with torch.no_grad():
                cast(WeightNorm, hook).remove(layer)
            del layer._forward_pre_hooks[key]


def _computed(module: nn.Module) -> Iterator[Tensor]:
    """Tensors that modules hold and that are results of a computation with gradients."""
    for layer in module.modules():
        for value in vars(layer).values():
            held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
            yield from (tensor for tensor in held if isinstance(tensor, Tensor) and tensor.grad_fn is not None)
