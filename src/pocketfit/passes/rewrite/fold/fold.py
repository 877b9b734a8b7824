"""The pass: rules one after the other, each checked against the network as it was."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pocketfit.core.errors import UserError
from pocketfit.passes.graph.main_answer import tensors
from pocketfit.passes.rewrite.fold.activations import activations, constants, norms
from pocketfit.passes.rewrite.fold.affines import affines, batch_norms
from pocketfit.passes.rewrite.fold.identities import dropouts, identities
from pocketfit.passes.rewrite.fold.view import Rule, View
from pocketfit.sources.models.unwrap import copied
from pocketfit.sources.onnx.compare import relative
from pocketfit.sources.onnx.file.read import first_line

RULES: dict[str, Rule] = {
    "dropouts": dropouts,
    "identities": identities,
    "constants": constants,
    "activations": activations,
    "norms": norms,
    "batch norms": batch_norms,
    "affines": affines,
}
FOR_TRAINING = ("dropouts", "batch norms")  # rules that take away what training wants
ROUNDS = 8
EXACT = 1e-6  # largest difference allowed in float64: a rule that is right differs by 1e-10
SAME = 1e-5  # largest difference in the network's own dtype, beyond that from a change of the input's last digits


@dataclass(frozen=True)
class Folded:
    """The network with fewer operators.

    applied     rule -> how often
    difference  from the network as it was, in parts of an output's largest number, on the inputs given
    findings    sentences about rules that were left out, because they would have changed the outputs
    """

    network: fx.GraphModule
    applied: Mapping[str, int]
    difference: float
    findings: tuple[str, ...] = ()


def fold(network: nn.Module, inputs: Sequence[Tensor], *, rules: Collection[str] = tuple(RULES)) -> Folded:
    """A folded copy of a network in eval mode; `network` itself stays as it is.

    inputs  one example, on which every rule is checked in float64
    rules   names of RULES; without those of FOR_TRAINING the network can be trained as before

    Raises UserError where torch.fx can't follow the network.
    """
    examples = tuple(inputs)
    own = traced(network)
    wide, wide_inputs = _widened(own, examples)
    exact: tuple[Tensor, ...] | None = None
    tried = copy.deepcopy(wide)
    applied: dict[str, int] = {}
    findings: list[str] = []
    left_out: set[str] = set()
    for _ in range(ROUNDS):
        before = dict(applied)
        for name, rule in RULES.items():
            if name not in rules or name in left_out:
                continue
            count = rule(View(tried, wide_inputs))
            if not count:
                continue
            View(tried, wide_inputs)
            exact = answers(wide, wide_inputs) if exact is None else exact
            off = _worst(answers(tried, wide_inputs), exact)
            if off > EXACT:
                left_out.add(name)
                findings.append(f"Folding {name} would have changed the outputs by {off:.1g} of their range: left out.")
            else:
                wide, applied[name] = tried, applied.get(name, 0) + count
            tried = copy.deepcopy(wide)
        if applied == before:
            break
    result = _narrowed(wide, own)
    _remove_leftovers(result)
    difference = _worst(answers(result, examples), answers(own, examples)) if applied else 0.0
    return Folded(result, applied, difference, tuple(findings))


def traced(network: nn.Module, *, training: bool = False) -> fx.GraphModule:
    """A copy as a graph of calls, in eval mode unless it is asked for as it is in training."""
    network = copied(network).train(training)
    if isinstance(network, fx.GraphModule):
        return network
    whole: set[str] = set()
    while True:
        tracer = _Tracer(whole)
        try:
            return fx.GraphModule(network, tracer.trace(network))
        except Exception as error:  # tracing raises whatever the network's own code raises
            if not tracer.inside or tracer.inside[-1] in whole:
                cause = first_line(error).partition(". ")[0]  # behind it, torch tells of its documentation
                raise UserError(f"torch.fx can't follow the network's own forward: {cause}") from error
            whole.add(tracer.inside[-1])


class _Tracer(fx.Tracer):
    """Takes modules as a whole where their own code can't be followed (`whole`: their dotted names)."""

    def __init__(self, whole: set[str]) -> None:
        super().__init__()
        self.whole, self.inside = whole, []

    inside: list[str]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.whole or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.inside.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()
        return result


def answers(network: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(tensors(network(*inputs)))


def _worst(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> float:
    return max((relative(a, b) for a, b in zip(first, second, strict=True)), default=0.0)


def _widened(network: fx.GraphModule, inputs: tuple[Tensor, ...]) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """A copy in float64, where rounding hides no mistake; in the same numbers where it can't be run so."""
    wide = _recast(copy.deepcopy(network).double(), torch.float32, torch.float64)
    wide_inputs = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)
    try:
        answers(wide, wide_inputs)
    except RuntimeError:
        return copy.deepcopy(network), inputs
    return wide, wide_inputs


def _narrowed(wide: fx.GraphModule, own: fx.GraphModule) -> fx.GraphModule:
    kinds = {p.dtype for p in (*own.parameters(), *own.buffers()) if p.is_floating_point()} or {torch.float32}
    dtype = torch.float32 if torch.float32 in kinds else next(iter(kinds))
    narrow = _recast(wide.to(dtype), torch.float64, torch.float32)
    for node in narrow.graph.nodes:
        for key in ("tensor_meta", "type"):
            node.meta.pop(key, None)
    return narrow.eval()


def _remove_leftovers(network: fx.GraphModule) -> None:
    """Remove the numbers that no node reads any more."""
    read = {str(node.target) for node in network.graph.nodes if node.op == "get_attr"}
    called = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
    for kind in ("_parameters", "_buffers"):
        for path, module in network.named_modules():
            if any(path == name or path.startswith(f"{name}.") for name in called):
                continue
            for name in list(getattr(module, kind)):
                if f"{path}.{name}".lstrip(".") not in read:
                    del getattr(module, kind)[name]


def _recast(network: fx.GraphModule, old: torch.dtype, new: torch.dtype) -> fx.GraphModule:
    """Replace the dtype `old` by `new` where the graph names it itself (casts, new tensors)."""
    for node in network.graph.nodes:
        if any(value is old for value in (*node.args, *node.kwargs.values())):
            node.args = tuple(new if value is old else value for value in node.args)
            node.kwargs = {key: new if value is old else value for key, value in node.kwargs.items()}
    network.recompile()
    return network
