"""Layers behind a network that live only while it trains: the directions of identities, for an angular margin."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pocketfit.core.samples import Samples
from pocketfit.passes.train.batches import as_tensor
from pocketfit.passes.train.guarded.objective import Recipe
from pocketfit.tasks.common.angular_margin import Head, head_of

MOST_SEEN, BATCH_SIZE = 2048, 64  # samples whose embeddings the directions begin with


def training_head(
    recipe: Recipe, samples: Samples, answered: Callable[[Tensor], Tensor], place: torch.device
) -> Head | None:
    """The Head for the identities of the samples that are trained on; None where the task has none, or where the
    targets are pairs or count for nothing.

    answered  inputs on the CPU -> the network's outputs [n, width]
    """
    if recipe.task != "embedding" or recipe.alpha >= 1 or samples.labels.ndim != 1:
        return None
    known = np.flatnonzero(samples.labels >= 0)
    if len(np.unique(samples.labels[known])) < 2:
        return None
    some = known[:MOST_SEEN]
    parts = [some[i : i + BATCH_SIZE] for i in range(0, len(some), BATCH_SIZE)]
    outputs = torch.cat([answered(as_tensor(samples.inputs(part))).cpu() for part in parts])
    every = torch.from_numpy(samples.labels[known])
    return head_of(outputs, torch.from_numpy(samples.labels[some]), every, recipe.seed).to(place)
