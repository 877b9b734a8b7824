"""Batch-norm re-estimation: running statistics computed again on samples. A first step of recovery without training.

Pruning changes the inputs of the layers behind, while the running means and variances are still those of the unpruned
network. Each is replaced by its mean over samples that run through the pruned network (as for averaged weights:
Izmailov et al. 2018, section 3.2).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.train import Recalibrate
from pocketfit.core.samples import Samples
from pocketfit.passes.graph.feed import Fed, call, fed, rows_in
from pocketfit.sources.models.fingerprint import fingerprint

BATCH_SIZE = 64
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def apply(model: Model, settings: Recalibrate, samples: Samples) -> Model:
    """A copy whose batch norms hold the statistics of `settings.samples` samples of the training split.

    Every batch counts by its number of samples: means are exact means over all samples; variances are means of the
    batches' unbiased ones, as in training. The samples are a fixed part, drawn by the seed, without augmentation.
    Raises UserError where there are fewer than two samples, or where the statistics are no longer finite.
    """
    network = copy.deepcopy(model.network)
    norms = norms_of(network)
    if not norms:
        sentence = "Batch norms were not re-estimated: the network has none"
        return replace(model, findings=tuple(dict.fromkeys((*model.findings, sentence))))
    if len(samples) < 2:
        raise UserError(
            f"Statistics of batch norms need at least two samples, and the {samples.split} split has {len(samples)}"
        )
    order = np.random.default_rng(settings.seed).permutation(len(samples))
    rows = np.sort(order[: settings.samples])
    parts = np.array_split(rows, math.ceil(len(rows) / BATCH_SIZE))  # equal parts, so that none has only one sample
    take_anew(network, norms, (fed(samples, part) for part in parts))
    network.eval()
    for name, buffer in network.named_buffers():
        if buffer.is_floating_point() and not torch.isfinite(buffer).all():
            raise UserError(f"Taking batch norms anew gave statistics that are not finite ({name}): check the weights")
    return replace(model, network=network, sha256=fingerprint(network))


def norms_of(network: nn.Module) -> list[Norm]:
    """The batch norms with running statistics."""
    return [layer for layer in network.modules() if isinstance(layer, NORMS) and layer.track_running_stats]


def take_anew(network: nn.Module, norms: Sequence[Norm], batches: Iterable[Fed]) -> None:
    """Compute the running statistics of these norms again from `batches`, each weighed by its number of samples. The
    network is in eval mode; the norms are left in training mode."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
    seen = 0
    with torch.inference_mode():
        for batch in batches:
            seen += rows_in(batch)
            for norm in norms:  # with a momentum of 1 the first batch replaces the old statistics
                norm.momentum = rows_in(batch) / seen
            call(network, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
