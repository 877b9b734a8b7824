"""The pass on a Model: folded where that changes no answers, left as it is where torch.fx can't follow the network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.signature import Signature
from pocketfit.passes.rewrite.fold.fold import FOR_TRAINING, RULES, SAME, answers, fold, traced
from pocketfit.sources.models.check_network import example
from pocketfit.sources.models.fingerprint import fingerprint
from pocketfit.sources.onnx.compare import relative

KEPT = tuple(name for name in RULES if name not in FOR_TRAINING)
BATCHES = (2, 3)  # the first one is looked at; the folded network has to answer the second one as well
NOISY = 100 * SAME  # float32's rounding over a deep network stays below it


@dataclass(frozen=True)
class Found:
    """What there is to fold.

    network   the folded network; None where it stays as it is
    sha256    of the folded network
    changed   layers whose outputs are others than before
    findings  sentences
    """

    network: nn.Module | None = None
    sha256: str = ""
    changed: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()


_FOUND: WeakKeyDictionary[nn.Module, tuple[Signature, Found]] = WeakKeyDictionary()


def apply(model: Model) -> Model:
    """The Model with fewer operators and the same answers; layers keep their names, batch norms and dropout stay.

    Where nothing can be folded, or torch.fx can't follow the network, the network stays as it is; the latter is said in
    a finding.
    """
    found = _found(model)
    findings = (*model.findings, *found.findings)
    if found.network is None:
        return replace(model, findings=findings)
    learned = model.learned.without_outputs_of(found.changed)
    return replace(model, network=found.network, sha256=found.sha256, learned=learned, findings=findings)


def finds_something(model: Model) -> bool:
    """Whether `apply` would change the network. The answer is kept as long as the network exists."""
    return _found(model).network is not None


def _found(model: Model) -> Found:
    known = _FOUND.get(model.network)
    if known is None or known[0] != model.signature:
        known = _FOUND[model.network] = model.signature, _folded(model.network, model.signature)
    return known[1]


def _folded(network: nn.Module, signature: Signature) -> Found:
    inputs = [tuple(example(s.with_batch(n), s.dtype) for s in signature.inputs) for n in BATCHES]
    try:
        if unlike := _trained_otherwise(network):
            return Found(findings=(unlike,))
        done = fold(network, inputs[0], rules=KEPT)
    except UserError as error:
        return Found(findings=(f"Nothing was folded: {str(error).rstrip('.')}.",))
    if not done.applied:
        return Found(findings=done.findings)
    off = _difference(done.network, network, inputs[1])
    if off > NOISY:
        sentence = f"Nothing was folded: for a batch of {BATCHES[1]} the outputs would have changed by {off:.1g}."
        return Found(findings=(*done.findings, sentence))
    changed = _changed(network, done.network)
    return Found(done.network.eval(), fingerprint(done.network), changed, done.findings)


def _trained_otherwise(network: nn.Module) -> str:
    """A sentence where the network's own forward does something else in training; "" where it doesn't.

    A traced network does always what it did when it was traced.
    """
    if isinstance(network, fx.GraphModule):
        return ""
    if _steps(traced(network)) == _steps(traced(network, training=True)):
        return ""
    return "Nothing was folded: the network's own forward does something else in training, and would do so no more."


def _steps(network: fx.GraphModule) -> list[str]:
    return [f"{node.op} {node.target} {node.args} {node.kwargs}" for node in network.graph.nodes]


def _difference(one: nn.Module, other: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    pairs = zip(answers(one, inputs), answers(other, inputs), strict=True)
    return max((relative(first, second) for first, second in pairs), default=0.0)


def _changed(before: nn.Module, after: nn.Module) -> tuple[str, ...]:
    """Layers whose weights have changed, or which are gone."""
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    gone = [n for n, p in old.items() if n not in new or p.shape != new[n].shape or not torch.equal(p, new[n])]
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in (*gone, *sorted(new.keys() - old.keys()))))
