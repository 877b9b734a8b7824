"""The highest learning rate at which a network can be trained without harm, found by short trainings beforehand.

The network is its own teacher, so that every change raises the loss. It is trained for a few steps at each rate of a
list, the highest first. The first rate is taken at which the loss rises by no more than a share of the loss of constant
logits. The loss is that in training mode, in which batch norms normalise by the current batch: running statistics lag
behind at first, and with them every rate would look harmful. Figures: benchmarks/README.md, "Recovery".
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.train import Train
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Tick
from pocketfit.passes.graph.feed import fed
from pocketfit.passes.train import distillation
from pocketfit.passes.train.answers import manner, thawed
from pocketfit.passes.train.batches import prefetched, shuffled
from pocketfit.passes.train.fine_tune import Run, device, recipe_of
from pocketfit.passes.train.malloc import kept_memory

STEPS = 16  # at each rate
WARM_UP = 3  # steps until the rate is reached
LADDER = (1.0, 0.5, 0.25, 0.1, 0.05, 0.025, 0.01, 0.005)  # factors on the learning rate of the settings
WINDOW = 4  # steps over which losses are averaged
MOST_RISE = 0.2  # of the loss of constant logits


@dataclass(frozen=True)
class Rate:
    """The learning rate that was found.

    learning_rate     the highest one that does no harm
    rise              how much the loss rises at it, as a share of the loss of constant logits
    seconds_per_step  time of a step with the network as its own teacher
    finding           a sentence where it is not the usual rate, else ""
    """

    learning_rate: float
    rise: float
    seconds_per_step: float
    finding: str = ""


@kept_memory()
def found_rate(model: Model, settings: Train, samples: Samples, *, progress: Tick | None = None) -> Rate:
    """The highest rate of LADDER times `settings.learning_rate` that does the unpruned network no harm.

    samples  of the training split; the first batches that the settings draw are used

    Raises UserError where there are none, or the network cannot be trained.
    """
    if not len(samples):
        raise UserError("There is nothing to train on: the training split is empty")
    usual, first_rise = settings.learning_rate, 0.0
    for number, share in enumerate(LADDER):
        rise, seconds = _tried(model, settings, samples, usual * share)
        first_rise = first_rise or rise
        if progress:
            progress(number + 1, len(LADDER))
        if rise <= MOST_RISE:
            break
    rate = float(f"{usual * share:.3g}")
    return Rate(rate, rise, seconds, _words(usual, rate, first_rise, rise))


def _words(usual: float, rate: float, first: float, rise: float) -> str:
    if rate == usual and rise <= MOST_RISE:
        return ""
    lost = "not finite" if first == math.inf else f"up by {first:.0%} of the loss of constant logits"
    why = f"At the usual learning rate of {usual:g} this network forgets what it knows ({STEPS} steps with itself as"
    why += f" teacher: its loss is {lost})"
    if rise > MOST_RISE:
        return f"{why}, and at all lower rates that were tried; it is trained at {rate:g}, and will hardly recover"
    return f"{why}: it is trained at {rate:g}"


def _tried(model: Model, settings: Train, samples: Samples, rate: float) -> tuple[float, float]:
    """(how far the loss rises at this rate, the seconds of a step)."""
    network, place = copy.deepcopy(model.network), device()
    rows = min(settings.batch_size, len(samples))
    how = manner(network, fed(samples, slice(0, rows)))
    teacher = distillation.teacher_of(model, model)
    torch.manual_seed(settings.seed)
    losses: list[float] = []
    times: list[float] = []
    highest = 0.0
    with thawed(network):
        how.begin(network, place)
        recipe = recipe_of(settings, rate, model.task)
        run = Run(network, teacher.on(place), recipe, how, samples.first(rows), samples)
        assert run.exam is not None
        batches = shuffled(samples, settings.batch_size, STEPS, seed=settings.seed)
        for step, batch in enumerate(prefetched(batches)):
            losses.append(run.step((*batch, None), rows, min(1.0, (step + 1) / WARM_UP)))
            times.append(time.monotonic())
            if not math.isfinite(losses[-1]):
                highest = math.inf
            elif len(losses) >= WINDOW:
                highest = max(highest, (sum(losses[-WINDOW:]) / WINDOW - losses[0]) / run.exam.constant)
            if highest > MOST_RISE:
                break
    return highest, _pace(times)


def _pace(times: list[float]) -> float:
    return median([after - before for before, after in pairwise(times)] or [0.0])
