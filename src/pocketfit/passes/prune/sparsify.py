"""Set single weights to zero, in every layer alike or as a pattern along its inputs; the tensors keep their sizes.

In each layer the weights with the lowest scores become zero:

    magnitude   |w|                 Han et al. 2015, section 3
    movement    - w dL/dw           Sanh et al. 2020, equation 5: high where a step down the loss moves w away from zero

Movement is summed over samples with fixed weights; equation 5 sums it over the steps of a training. So it says less
about a network whose training has ended than about one that is being trained for a new task.

Depthwise layers and the first layer are left dense, as in Elsen et al. 2020 (Fast Sparse ConvNets, section 4) and Gale
et al. 2019 (The State of Sparsity, section 4): nine weights a channel save little and matter much. A regular expression
that names them overrules that. `learned.sparse` names the layers whose zeros later passes have to keep, and
`learned.patterns` which of them have an N:M pattern. Pruning channels afterwards removes single columns of the blocks
of four, so that the columns behind them form new blocks: `checked` tests whether the pattern still holds, and says
where it does not.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from pocketfit import tasks
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.prune import Sparsify
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Tick
from pocketfit.core.support.text import some
from pocketfit.passes.graph import aten
from pocketfit.passes.graph.feed import call, fed
from pocketfit.passes.graph.main_answer import main_answer
from pocketfit.sources.models.fingerprint import fingerprint

REMEDY = "put sparsify behind the pass that did so (prune)"
KEPT_OF_FOUR: Mapping[str, int] = {"2:4": 2, "1:4": 1}
BATCH = 32
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)


def apply(model: Model, settings: Sparsify, samples: Samples | None, *, progress: Tick | None = None) -> Model:
    """A copy of the model in which exactly round(sparsity n) of a layer's n weights are zero, or all but 1 or 2 of
    each four; weights that are zero already are among them.

    samples  labelled, of the training split; only the criterion "movement" looks at them (None: no samples)
    Raises UserError for a pattern in `settings.layers` that matches no layer, for a layer that would lose every weight,
    and for "movement" without labelled samples.
    """
    layers = weighted_layers(model)
    left, sentences = _left(layers, settings)
    shares = {name: share for name, share in _shares(layers, left, settings).items() if share > 0}
    network = copy.deepcopy(model.network)
    movement = None
    if settings.criterion == "movement":
        movement = _movement(model, tuple(shares), settings, samples, progress)
    with torch.no_grad():
        for name, share in shares.items():
            weight = network.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            scores = weight.abs() if movement is None else movement[name]
            scores = torch.where(weight == 0, -torch.inf, scores)
            if settings.pattern == "unstructured":
                lowest = lowest_of_all(scores, share, name)
            else:
                lowest = lowest_of_fours(scores, KEPT_OF_FOUR[settings.pattern], input_axis(layers[name]))
            weight.masked_fill_(lowest, 0.0)
    sparse = tuple(dict.fromkeys((*model.learned.sparse, *shares)))
    patterns = {} if settings.pattern == "unstructured" else dict.fromkeys(shares, settings.pattern)
    learned = replace(model.learned, sparse=sparse, patterns={**model.learned.patterns, **patterns})
    found = replace(
        model,
        network=network,
        sha256=fingerprint(network),
        learned=learned,
        findings=tuple(dict.fromkeys((*model.findings, *sentences))),
    )
    return checked(found)


def checked(model: Model) -> Model:
    """The model with findings that name all layers whose pattern does not hold any more, and no others."""
    broken: dict[str, list[str]] = {}
    for name, pattern in model.learned.patterns.items():
        layer = model.network.get_submodule(name)
        if not holds(layer.weight.detach(), KEPT_OF_FOUR[pattern], input_axis(layer)):
            broken.setdefault(pattern, []).append(name)
    sentences = [
        f"{some(names)} no longer hold{'s' if len(names) == 1 else ''} the pattern {pattern} along the inputs, because"
        f" a pass behind sparsify has changed the fours: {REMEDY}."
        for pattern, names in broken.items()
    ]
    kept = [sentence for sentence in model.findings if not sentence.endswith(f"{REMEDY}.")]
    findings = (*kept, *sentences)
    return model if findings == model.findings else replace(model, findings=findings)


def holds(weight: Tensor, kept: int, axis: int) -> bool:
    """Whether at most `kept` of each four consecutive entries along `axis` are not zero.

    >>> holds(torch.tensor([[3.0, 0.0, 0.0, 4.0]]), 2, 1), holds(torch.tensor([[3.0, 0.0]]), 2, 1)
    (True, False)
    """
    if weight.shape[axis] % 4:
        return False
    fours = torch.unflatten((weight != 0).movedim(axis, -1), -1, (-1, 4))
    return bool((fours.sum(-1) <= kept).all())


def zeros_of(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Layer -> (weights that are zero, weights), in the order in which the layers stand in the network.

    >>> zeros_of(nn.Sequential(nn.Linear(3, 2)))
    {'0': (0, 6)}
    """
    return {
        name: (int((module.weight == 0).sum()), module.weight.numel())
        for name, module in network.named_modules()
        if isinstance(module, _WEIGHTED)
    }


def weighted_layers(model: Model) -> dict[str, nn.Module]:
    """Convolutions and linear layers by dotted name, in the order in which they are called."""
    network = copy.deepcopy(model.network)
    called: dict[str, None] = {}
    for name, module in network.named_modules():
        if isinstance(module, _WEIGHTED):
            module.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name))
    with torch.no_grad():
        network(*aten.zeros(model.signature, aten.BATCH))
    return {name: model.network.get_submodule(name) for name in called}


def input_axis(layer: nn.Module) -> int:
    """The dimension of a layer's weight along which its inputs lie."""
    return 0 if isinstance(layer, _TRANSPOSED) else 1


def lowest_of_all(scores: Tensor, share: float, layer: str) -> Tensor:
    """A mask shaped as `scores`: True for the lowest round(share n) of its n entries.

    >>> lowest_of_all(torch.tensor([[3.0, 1.0], [2.0, 4.0]]), 0.5, "fc")
    tensor([[False,  True],
            [ True, False]])
    """
    count = round(share * scores.numel())
    if count == scores.numel():
        raise UserError(
            f"A sparsity of {share:g} would leave '{layer}' none of its {count} weights: give it a smaller one"
        )
    lowest = torch.zeros(scores.numel(), dtype=torch.bool)
    lowest[scores.flatten().argsort(stable=True)[:count]] = True
    return lowest.view(scores.shape)


def lowest_of_fours(scores: Tensor, kept: int, axis: int) -> Tensor:
    """A mask shaped as `scores`: True for all but the highest `kept` of each four consecutive entries along `axis`.

    >>> lowest_of_fours(torch.tensor([[3.0, 1.0, 2.0, 4.0]]), 2, 1)
    tensor([[False,  True,  True, False]])
    """
    fours = torch.unflatten(scores.movedim(axis, -1), -1, (-1, 4))
    going = fours.argsort(dim=-1, stable=True)[..., : 4 - kept]
    lowest = torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, going, True)
    return lowest.flatten(-2).movedim(-1, axis)


def _weight(layer: nn.Module) -> Tensor:
    """Of a convolution or a linear layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _left(layers: Mapping[str, nn.Module], settings: Sparsify) -> tuple[set[str], list[str]]:
    """(the layers that stay dense whatever the sparsity, sentences about them)."""
    named = {name for name in layers if any(_matches(pattern, name) for pattern, _ in settings.layers)}
    spared = [name for name, layer in layers.items() if name not in named and _depthwise(layer)]
    spared += [name for name in list(layers)[:1] if name not in named and name not in spared]
    sentences = []
    if spared:
        total = sum(_weight(layer).numel() for layer in layers.values())
        held = sum(_weight(layers[name]).numel() for name in spared)
        sentences.append(
            f"The first layer and depthwise layers ({some(spared)}) keep all their weights,"
            f" {100 * held / total:.1f} % of the network's; a pattern that names them overrules that."
        )
    if settings.pattern == "unstructured":
        return set(spared), sentences
    unfit = [
        name for name, layer in layers.items() if name not in spared and _weight(layer).shape[input_axis(layer)] % 4
    ]
    if unfit:
        sentences.append(
            f"The pattern {settings.pattern} takes layers whose inputs come in fours; {some(unfit)} keep"
            f"{'s' if len(unfit) == 1 else ''} all weights."
        )
    return {*spared, *unfit}, sentences


def _shares(layers: Mapping[str, nn.Module], left: set[str], settings: Sparsify) -> dict[str, float]:
    """The share of each layer's weights that is to be zero."""
    own = None if settings.pattern == "unstructured" else 1 - KEPT_OF_FOUR[settings.pattern] / 4
    for pattern, share in settings.layers:
        if not any(_matches(pattern, name) for name in layers):
            raise UserError(
                f"The layer pattern '{pattern}' matches no convolution or linear layer; there are for example"
                f" {', '.join(list(layers)[:3])}"
            )
        if own is not None and share not in (0, own):
            raise UserError(
                f"The pattern {settings.pattern} makes {own:g} of a layer's weights zero, so '{pattern}' cannot have"
                f" {share:g}: give {own:g}, or 0 to leave the layer dense"
            )
    default = settings.sparsity if own is None else own
    return {
        name: next((share for pattern, share in settings.layers if _matches(pattern, name)), default)
        for name in layers
        if name not in left
    }


def _movement(
    model: Model, layers: tuple[str, ...], settings: Sparsify, samples: Samples | None, progress: Tick | None
) -> dict[str, Tensor]:
    """- w dL/dw of each layer; L is the task's loss summed over the samples, batch norms use running statistics."""
    task = tasks.get(model.task)
    rows = np.zeros(0, np.int64) if samples is None else np.flatnonzero(task.has_target(samples.labels))
    if samples is None or not len(rows):
        raise UserError("The criterion 'movement' follows a loss: give labelled samples, or use 'magnitude'")
    rows = np.sort(np.random.default_rng(settings.seed).permutation(rows)[: settings.samples])
    network = copy.deepcopy(model.network).requires_grad_(False)
    weights = {name: _weight(network.get_submodule(name)) for name in layers}
    for weight in weights.values():
        weight.requires_grad_()
    for start in range(0, len(rows) if weights else 0, BATCH):
        batch = rows[start : start + BATCH]
        answers = main_answer(call(network, fed(samples, batch)))
        loss = task.loss(answers, torch.from_numpy(samples.labels[batch])).sum()
        torch.autograd.backward(loss)
        if progress:
            progress(min(start + BATCH, len(rows)), len(rows))
    found = {}
    for name, weight in weights.items():
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad  # a head that only training has
        found[name] = -(weight * gradient).detach()
        if not torch.isfinite(found[name]).all():
            raise UserError(f"The gradient of '{name}' is not finite on these samples: use the criterion 'magnitude'")
    return found


def _depthwise(layer: nn.Module) -> bool:
    groups = getattr(layer, "groups", 1)
    return groups > 1 and groups == layer.in_channels


def _matches(pattern: str, layer: str) -> bool:
    try:
        return re.search(pattern, layer) is not None
    except re.error as error:
        raise UserError(f"The layer pattern '{pattern}' is not a regular expression: {error}") from error
