"""Fold each batch norm into the layer before it: conv(x) * g + b is a convolution again.

Quantizers set a weight's range per channel; folded first, they see the weights that run.
"""

from __future__ import annotations

from collections import Counter
from weakref import WeakKeyDictionary

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from pocketfit.core.signature import Signature
from pocketfit.passes.graph import aten
from pocketfit.passes.graph.aten import module_of, operation
from pocketfit.sources.models.unwrap import copied, eval_mode

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_FOUND: WeakKeyDictionary[nn.Module, tuple[tuple[Signature, str], tuple[tuple[str, str], ...]]] = WeakKeyDictionary()


def fold_batch_norm(network: nn.Module, signature: Signature) -> nn.Module:
    """A copy in eval mode with the same outputs, in which every foldable batch norm has become nn.Identity.

    Foldable: it has running statistics, it is the only reader of a convolution or linear layer, and both are called
    once and share their weights with nobody. Raises UserError where torch.export can't follow the network.
    """
    folded = copied(network)
    eval_mode(folded)
    for layer, norm in foldable(network, signature):
        before, after = folded.get_submodule(layer), folded.get_submodule(norm)
        assert isinstance(after, _NORMS)
        if isinstance(before, nn.Linear):
            _replace(folded, layer, fuse_linear_bn_eval(before, after))
        elif isinstance(before, _CONVOLUTIONS):
            _replace(folded, layer, fuse_conv_bn_eval(before, after))
        _replace(folded, norm, nn.Identity())
    return folded


def foldable(network: nn.Module, signature: Signature) -> tuple[tuple[str, str], ...]:
    """(layer, batch norm) by dotted names, in the order in which they are carried out.

    The answer follows from the network's structure and is cached as long as the network exists: passes ask often.
    """
    asked = signature, str(network)
    if _FOUND.get(network, (None,))[0] != asked:
        _FOUND[network] = asked, _foldable(network, signature)
    return _FOUND[network][1]


def _foldable(network: nn.Module, signature: Signature) -> tuple[tuple[str, str], ...]:
    nodes = [n for n in aten.export(network, signature).graph.nodes if n.op == "call_function"]
    calls = Counter((module_of(node), operation(node)) for node in nodes)
    owners = Counter(id(p) for module in _with_weights(network) for p in module.parameters(recurse=False))
    pairs = []
    for node in nodes:
        source = node.args[0] if node.args else None
        if operation(node) != "batch_norm" or not isinstance(source, fx.Node) or len(source.users) != 1:
            continue
        layer, norm = module_of(source), module_of(node)
        before, after = network.get_submodule(layer), network.get_submodule(norm)
        if not isinstance(after, _NORMS) or after.running_mean is None:
            continue
        if calls[layer, operation(source)] != 1 or calls[norm, "batch_norm"] != 1:
            continue
        flat = isinstance(before, nn.Linear) and len(aten.shape_of(source)) == 2
        shared = any(owners[id(p)] > 1 for module in (before, after) for p in module.parameters())
        if (isinstance(before, _CONVOLUTIONS) or flat) and not shared:
            pairs.append((layer, norm))
    return tuple(pairs)


def _with_weights(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if any(True for _ in module.parameters(recurse=False))]


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace a module in place, under all of its names."""
    old = network.get_submodule(name)
    for parent in network.modules():
        for attribute, child in list(parent.named_children()):
            if child is old:
                setattr(parent, attribute, layer)
