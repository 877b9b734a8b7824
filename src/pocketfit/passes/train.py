"""Fine-tuning: with the unpruned network as teacher to recover a pruned one, or on a new head for new classes.

Plans count training in steps, so that a plan means the same on every machine. Whatever shuffles or shifts is drawn
from one seed; on a CPU a run with the same number of threads repeats bit for bit. Where there is a GPU, networks are
trained there in mixed precision (bfloat16 needs no scaling of the loss) and come back to the CPU. Where torchrun has
started several processes, each trains on its rows of every batch (together.py).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.launch import rank
from pocketfit.core.model import Model
from pocketfit.core.plan import OptimizerName, Train
from pocketfit.core.samples import Samples
from pocketfit.passes import distil, together
from pocketfit.passes.average import Average
from pocketfit.passes.batches import prefetched, shuffled
from pocketfit.passes.memory import kept_memory
from pocketfit.passes.optimizers import Optimizer
from pocketfit.passes.soft_targets import taught
from pocketfit.sources.fingerprint import fingerprint

Progress = Callable[[int, int], None]
WARMUP_SHARE = 0.05
LABEL_SMOOTHING = 0.1  # for transfer without a teacher (Szegedy et al. 2016, section 7)


@dataclass(frozen=True)
class Recipe:
    """The part of a training run that `Train` and transfer share; all but the first three speak of the teacher, and
    mean what they mean in `Train`.
    """

    batch_size: int
    learning_rate: float
    seed: int
    temperature: float = 1.0
    alpha: float = 0.0
    label_smoothing: float = 0.0
    distillation: Literal["logits", "decoupled"] = "logits"
    beta: float = 0.0
    features: tuple[str, ...] = ()
    feature_weight: float = 0.0
    ema: float = 0.0
    optimizer: OptimizerName = "sgd"


def apply(
    model: Model,
    settings: Train,
    samples: Samples,
    *,
    teacher: Model | None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Model:
    """A trained copy of the model, after `settings.steps` steps on `samples` (the training split).

    Weights that are zero in the layers of `model.learned["sparse"]` stay zero.

    teacher  for the same classes, in whatever order where both networks name them
    cache    a folder in which the teacher's answers to `settings.views` are kept for other trainings
    Raises UserError where the teacher answers with other classes, its pictures differ from the student's, or a layer of
    `settings.features` is not in both networks.
    """
    teaching = None
    if settings.alpha > 0 or settings.features:
        if teacher is None:
            asked = "alpha > 0" if settings.alpha > 0 else "features"
            raise UserError(f"Training with {asked} needs a teacher: give one, or set alpha to 0 and features to none")
        teaching = distil.teacher_of(model, teacher, settings.features)
    if settings.share < 1:
        order = np.random.default_rng(settings.seed).permutation(len(samples))
        samples = samples.take(np.sort(order[: max(1, round(settings.share * len(samples)))]))
    shared = ("batch_size", "learning_rate", "seed", "temperature", "alpha", "distillation", "beta", "features")
    recipe = Recipe(**{name: getattr(settings, name) for name in (*shared, "feature_weight", "ema", "optimizer")})
    network = copy.deepcopy(model.network)
    optimise(
        network,
        samples,
        recipe,
        steps=settings.steps,
        teacher=teaching,
        views=settings.views,
        cache=cache,
        masks=masks_of(model),
        progress=progress,
    )
    return replace(model, network=network, sha256=fingerprint(network))


def masks_of(model: Model) -> dict[str, torch.Tensor]:
    """Parameter name -> ones and zeros: what a sparse layer has left, by `learned["sparse"]`, names of layers."""
    weights = {name: model.network.get_submodule(name).weight for name in model.learned.get("sparse", ())}
    return {f"{name}.weight": (weight.detach() != 0).to(weight.dtype) for name, weight in weights.items()}


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


@kept_memory()
def optimise(
    network: nn.Module,
    samples: Samples,
    recipe: Recipe,
    *,
    steps: int,
    teacher: distil.Teacher | None = None,
    views: int = 0,
    cache: Path | None = None,
    masks: Mapping[str, torch.Tensor] | None = None,
    max_time_s: float | None = None,
    progress: Progress | None = None,
) -> int:
    """Train `network` in place with a cosine schedule; returns the number of steps taken.

    views, cache  as `soft_targets.taught` has them; 0: the teacher answers at every step
    masks         by parameter name; the parameter is multiplied by it after every step

    Of several processes all end with the same weights. Each has batch norms of its own rows while training; what they
    remember in the end is the first one's.
    """
    if len(samples) == 0:
        raise UserError("There is nothing to train on: the training split is empty")
    rows = min(recipe.batch_size, len(samples))
    together.check_rows(rows)
    mine, place = together.join(), device()
    if teacher is not None and place.type != "cpu":
        teacher = replace(teacher, network=copy.deepcopy(teacher.network).to(place))
    batches = _batches(samples, recipe, steps, teacher if views else None, views, cache)
    torch.manual_seed(recipe.seed + mine.number)  # dropout draws from here
    network.train().to(place, memory_format=torch.channels_last)
    together.same_as_first(network)
    optimizer = Optimizer(network, recipe.optimizer)
    kept = [(network.get_parameter(name), mask.to(place)) for name, mask in (masks or {}).items()]
    average = Average(network, recipe.ema) if recipe.ema > 0 else None
    started = time.monotonic()
    taken = 0
    try:
        for batch in prefetched(batches):
            share = taken / steps
            if max_time_s is not None:
                share = together.from_first(max(share, (time.monotonic() - started) / max_time_s))
                if share >= 1:
                    break
            loss = _loss(network, teacher, *(None if part is None else part.to(place) for part in batch), recipe)
            loss.backward()
            together.average_gradients(optimizer.parameters, len(batch[0]) / rows)
            optimizer.step(recipe.learning_rate * schedule(share))
            _multiply(kept)
            taken += 1
            if average is not None:
                average.update()
            if progress:
                progress(taken, steps)
    finally:
        if average is not None:
            average.hand_over()
        network.eval().to("cpu", memory_format=torch.contiguous_format)
    together.same_as_first(network)
    if any(not torch.isfinite(p).all() for p in optimizer.parameters):
        raise UserError("Training diverged: weights are no longer finite; use a smaller learning rate")
    return taken


def _batches(
    samples: Samples, recipe: Recipe, steps: int, teacher: distil.Teacher | None, views: int, cache: Path | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Inputs, labels, and the answers of a teacher that is asked in advance; of several processes each has its rows."""
    size, seed, part = recipe.batch_size, recipe.seed, rank().part
    if teacher is not None:
        return taught(teacher, samples, size, steps, seed=seed, views=views, cache=cache, part=part)
    return ((*batch, None) for batch in shuffled(samples, size, steps, seed=seed, part=part))


def _multiply(kept: list[tuple[nn.Parameter, torch.Tensor]]) -> None:
    """Put zeros back where the masks have them."""
    with torch.no_grad():
        for parameter, mask in kept:
            parameter.mul_(mask)


def device() -> torch.device:
    """Where networks are trained: of several processes each has a GPU of its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", rank().local) if rank().count > 1 else torch.device("cuda")


def precision(place: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where a GPU has fast kernels for it; float32 on a CPU."""
    return nullcontext() if place.type == "cpu" else torch.autocast(place.type, torch.bfloat16)


def schedule(share: float) -> float:
    """Linear warm-up, then half a cosine to zero (Loshchilov and Hutter 2017, equation 5).

    >>> round(schedule(0.05), 3), round(schedule(1.0), 3)
    (1.0, 0.0)
    """
    if share < WARMUP_SHARE:
        return (share + 0.01) / (WARMUP_SHARE + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (share - WARMUP_SHARE) / (1 - WARMUP_SHARE)))


def _loss(
    network: nn.Module,
    teacher: Callable[[torch.Tensor], torch.Tensor] | None,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    answers: torch.Tensor | None,
    recipe: Recipe,
) -> torch.Tensor:
    """(1 - alpha) CE + alpha D + feature_weight AT; the last two where there is a teacher, or its kept answers."""
    with precision(inputs.device):
        logits, maps = distil.watched(network, recipe.features, inputs)
        wanted = teacher(inputs) if teacher is not None and answers is None else answers
    logits = logits.float()
    loss = 0 * logits.sum()  # so that rows without any label have a gradient too, of zeros
    if recipe.alpha < 1:
        known = labels >= 0
        if known.any():
            cross_entropy = nn.functional.cross_entropy(
                logits[known], labels[known], label_smoothing=recipe.label_smoothing
            )
            loss = loss + (1 - recipe.alpha) * cross_entropy
    if wanted is None:
        return loss
    wanted, *wanted_maps = wanted.split([logits.shape[1], *(ours.shape[1] for ours in maps)], 1)
    if recipe.alpha > 0:
        softened = (logits / recipe.temperature, wanted / recipe.temperature)
        if recipe.distillation == "decoupled":
            divergence = distil.decoupled(*softened, labels, recipe.beta)
        else:
            divergence = distil.divergence(*softened)
        loss = loss + recipe.alpha * recipe.temperature**2 * divergence
    return loss + recipe.feature_weight * distil.attention_loss(maps, wanted_maps) if maps else loss


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
