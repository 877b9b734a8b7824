"""Hard-swish as a product, x / 6 * relu6(x + 3), whose operators have int8 kernels.

LiteRT's XNNPACK has no int8 kernel for HARD_SWISH, and the builtin one is slow (docs/results/notes.md, "Kernels").
Additions and products have kernels. The order matters: of x * relu6(x + 3) / 6 the converter makes a HARD_SWISH again.

A module nn.Hardswish is replaced. A forward that calls F.hardswish itself is run with another function in its place:
its module gets a class of its own, with the same tensors under the same names.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.signature import Signature
from pocketfit.passes.graph import aten
from pocketfit.passes.graph.main_answer import tensors
from pocketfit.sources.models.fingerprint import fingerprint

SAME = 1e-4  # of the largest output: float32's rounding over a deep network stays below it


class HardswishProduct(nn.Module):
    """x / 6 * relu6(x + 3) (Howard et al. 2019, section 5.2)."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x)


def product(input: Tensor, inplace: bool = False) -> Tensor:
    """F.hardswish as a product, with the same arguments; never in place."""
    return (input * (1 / 6)) * nn.functional.relu6(input + 3)


def replaceable(network: nn.Module, signature: Signature) -> tuple[str, ...]:
    """Dotted names of the modules that `apply` changes: nn.Hardswish, and those whose own forward calls hard-swish; ""
    for the network itself."""
    running: list[str] = []
    hooks = []

    def leave(*_: object) -> None:
        running.pop()

    for name, module in network.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
        hooks.append(module.register_forward_hook(leave))
    found: dict[str, None] = {}
    try:
        with torch.no_grad(), _Calls(running, found):
            network(*aten.zeros(signature, aten.BATCH))
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found)


def apply(model: Model) -> Model:
    """A copy in which every hard-swish has become a product; its outputs are the same up to rounding.

    Raises UserError where the network has none, and where its outputs would change (a forward that calls hard-swish in
    place and reads its input again).
    """
    names = replaceable(model.network, model.signature)
    if not names:
        raise UserError("This network has no hard-swish to replace (neither nn.Hardswish nor F.hardswish)")
    network = copy.deepcopy(model.network)
    if isinstance(network, fx.GraphModule):
        _replace_calls(network)
    for module in [network.get_submodule(name) for name in names]:
        if isinstance(module, fx.GraphModule):
            continue
        if not isinstance(module, nn.Hardswish):
            module.__class__ = _with_products(type(module))
        elif module is network:
            network = HardswishProduct()
        else:  # one module may stand under many names
            for parent in list(network.modules()):
                for name in [name for name, child in parent._modules.items() if child is module]:
                    setattr(parent, name, HardswishProduct())
    network.train(model.network.training)
    given = aten.noise(model.signature, 2)
    with torch.no_grad():
        before, after = list(tensors(model.network(*given))), list(tensors(network(*given)))
    if any(
        float((a - b).abs().max()) > SAME * max(1.0, float(a.abs().max())) for a, b in zip(before, after, strict=True)
    ):
        raise UserError(
            f"Hard-swish in {names[0] or 'the network'} cannot be written as a product without changing the outputs:"
            " call it without inplace=True"
        )
    return replace(model, network=network, sha256=fingerprint(network))


def _replace_calls(network: fx.GraphModule) -> None:
    """Let a traced network call the product in place of F.hardswish; a copy of it does so, too."""
    for node in network.graph.nodes:
        if node.op == "call_function" and node.target is nn.functional.hardswish:
            node.target = product
    network.recompile()


class _Calls(TorchFunctionMode):
    """Notes which of the running modules calls hard-swish."""

    def __init__(self, running: list[str], found: dict[str, None]) -> None:
        super().__init__()
        self.running, self.found = running, found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.hardswish:
            self.found.setdefault(self.running[-1] if self.running else "")
        return func(*args, **(kwargs or {}))


class _Products(TorchFunctionMode):
    """Inside, hard-swish is a product."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.hardswish:
            return product(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _with_products(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose forward calls the product in place of hard-swish. Its name says so, because a network's hash
    covers the names of its classes."""

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _Products():
            return kind.forward(self, *args, **kwargs)

    name = f"{kind.__name__}WithProducts"
    return type(name, (kind,), {"forward": forward, "__qualname__": name, "__module__": kind.__module__})
