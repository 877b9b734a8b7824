"""Fine-tuning: with the unpruned network as teacher to recover a pruned one, or on a new head for new classes.

Plans count training in steps, so that a plan means the same on every machine. Whatever shuffles or shifts is drawn
from one seed; with the same number of threads a run repeats bit for bit.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan import Train
from pocketfit.core.samples import Samples
from pocketfit.passes.batches import prefetched, shuffled
from pocketfit.sources.fingerprint import fingerprint

Progress = Callable[[int, int], None]
WEIGHT_DECAY = 4e-5  # MobileNetV2's (Sandler et al. 2018, section 6.1)
MOMENTUM = 0.9
WARMUP_SHARE = 0.05
LABEL_SMOOTHING = 0.1  # for transfer without a teacher (Szegedy et al. 2016, section 7)


@dataclass(frozen=True)
class Recipe:
    """The part of a training run that `Train` and transfer share. `temperature` and `alpha` speak of the teacher."""

    batch_size: int
    learning_rate: float
    seed: int
    temperature: float = 1.0
    alpha: float = 0.0
    label_smoothing: float = 0.0


def apply(
    model: Model, settings: Train, samples: Samples, *, teacher: Model | None, progress: Progress | None = None
) -> Model:
    """A trained copy of the model, after `settings.steps` steps on `samples` (the training split).

    Raises UserError where the teacher answers with other classes, or its picture differs from the samples'.
    """
    if settings.alpha > 0 and teacher is None:
        raise UserError("Training with alpha > 0 needs a teacher: give one, or set alpha to 0")
    if teacher is not None and len(teacher.labels) != len(model.labels):
        raise UserError(
            f"The teacher knows {len(teacher.labels)} classes and the student {len(model.labels)}: use a teacher for"
            f" the same classes"
        )
    if settings.share < 1:
        order = np.random.default_rng(settings.seed).permutation(len(samples))
        samples = samples.take(np.sort(order[: max(1, round(settings.share * len(samples)))]))
    recipe = Recipe(settings.batch_size, settings.learning_rate, settings.seed, settings.temperature, settings.alpha)
    network = copy.deepcopy(model.network)
    teaching = teacher.network if teacher is not None and settings.alpha > 0 else None
    optimise(network, samples, recipe, steps=settings.steps, teacher=teaching, progress=progress)
    return replace(model, network=network, sha256=fingerprint(network))


def transfer(
    model: Model,
    samples: Samples,
    *,
    epochs: float,
    max_time_s: float | None = None,
    batch_size: int = 64,
    learning_rate: float = 0.02,
    seed: int = 0,
    progress: Progress | None = None,
) -> Model:
    """Fine-tune the whole network on labelled samples, for `epochs` or until `max_time_s`, whichever comes first.

    The learning rate has come down to zero at the end in both cases.
    """
    steps = max(1, math.ceil(epochs * len(samples) / batch_size))
    recipe = Recipe(batch_size, learning_rate, seed, label_smoothing=LABEL_SMOOTHING)
    network = copy.deepcopy(model.network)
    optimise(network, samples, recipe, steps=steps, max_time_s=max_time_s, progress=progress)
    return replace(model, network=network, sha256=fingerprint(network))


def replace_head(model: Model, labels: tuple[str, ...], *, seed: int) -> Model:
    """The model with a new, randomly initialised last linear layer for these labels."""
    network = copy.deepcopy(model.network)
    heads = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not heads:
        raise UserError(
            "This network has no linear layer at its end to replace: give a network with a linear classifier"
        )
    name, old = heads[-1]
    torch.manual_seed(seed)
    new = nn.Linear(old.in_features, len(labels), bias=old.bias is not None)
    nn.init.normal_(new.weight, 0, 0.01)
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    parent = network.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], new)
    output = replace(model.signature.outputs[0], shape=(None, len(labels)))
    origin = replace(model.origin, arguments={**model.origin.arguments, "classes": len(labels)})
    return replace(
        model,
        network=network,
        labels=labels,
        origin=origin,
        signature=replace(model.signature, outputs=(output,)),
        sha256=fingerprint(network),
    )


def optimise(
    network: nn.Module,
    samples: Samples,
    recipe: Recipe,
    *,
    steps: int,
    teacher: nn.Module | None = None,
    max_time_s: float | None = None,
    progress: Progress | None = None,
) -> int:
    """Train `network` in place with SGD (Nesterov) and a cosine schedule; returns the number of steps taken."""
    if len(samples) == 0:
        raise UserError("There is nothing to train on: the training split is empty")
    torch.manual_seed(recipe.seed)  # dropout draws from here
    network.train().to(memory_format=torch.channels_last)
    parameters = [p for p in network.parameters() if p.requires_grad]
    decayed = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(
        decayed, lr=recipe.learning_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    started = time.monotonic()
    taken = 0
    try:
        for inputs, labels in prefetched(shuffled(samples, recipe.batch_size, steps, seed=recipe.seed)):
            share = taken / steps
            if max_time_s is not None:
                share = max(share, (time.monotonic() - started) / max_time_s)
                if share >= 1:
                    break
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * schedule(share)
            loss = _loss(network, teacher, inputs, labels, recipe)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            taken += 1
            if progress:
                progress(taken, steps)
    finally:
        network.eval().to(memory_format=torch.contiguous_format)
    if any(not torch.isfinite(p).all() for p in parameters):
        raise UserError("Training diverged: weights are no longer finite; use a smaller learning rate")
    return taken


def schedule(share: float) -> float:
    """Linear warm-up, then half a cosine to zero (Loshchilov and Hutter 2017, equation 5).

    >>> round(schedule(0.05), 3), round(schedule(1.0), 3)
    (1.0, 0.0)
    """
    if share < WARMUP_SHARE:
        return (share + 0.01) / (WARMUP_SHARE + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (share - WARMUP_SHARE) / (1 - WARMUP_SHARE)))


def _loss(
    network: nn.Module, teacher: nn.Module | None, inputs: torch.Tensor, labels: torch.Tensor, recipe: Recipe
) -> torch.Tensor:
    logits = network(inputs)
    loss = logits.new_zeros(())
    if recipe.alpha < 1:
        known = labels >= 0
        if known.any():
            cross_entropy = nn.functional.cross_entropy(
                logits[known], labels[known], label_smoothing=recipe.label_smoothing
            )
            loss = loss + (1 - recipe.alpha) * cross_entropy
    if teacher is not None:
        with torch.inference_mode():
            wanted = teacher(inputs) / recipe.temperature
        divergence = nn.functional.kl_div(
            (logits / recipe.temperature).log_softmax(-1),
            wanted.clone().log_softmax(-1),
            reduction="batchmean",
            log_target=True,
        )
        loss = loss + recipe.alpha * recipe.temperature**2 * divergence
    return loss


def accuracy(model: Model, samples: Samples, *, batch_size: int = 256, progress: Progress | None = None) -> float:
    """Share of right answers in PyTorch: a first look, not what a deployed file does. NaN answers count as wrong."""
    right = 0
    with torch.inference_mode():
        for inputs, labels in samples.batches(batch_size):
            logits = model.network(torch.from_numpy(np.ascontiguousarray(inputs)))
            right += int(((logits.argmax(1).numpy() == labels) & torch.isfinite(logits).all(1).numpy()).sum())
            if progress:
                progress(min(len(samples), batch_size), len(samples))
    return right / len(samples)
