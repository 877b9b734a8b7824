"""The accuracy of a network in PyTorch: a first look, as a deployed file has its own."""

from __future__ import annotations

import torch

from pocketfit.core.model import Model
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Tick
from pocketfit.passes.graph.feed import call, fed
from pocketfit.passes.graph.main_answer import main_answer


def accuracy(model: Model, samples: Samples, *, batch_size: int = 256, progress: Tick | None = None) -> float:
    """Top-1 accuracy in PyTorch: a first look, not the accuracy of a deployed file. NaN logits count as wrong."""
    right = done = 0
    with torch.inference_mode():
        for start in range(0, len(samples), batch_size):
            rows = slice(start, start + batch_size)
            labels = samples.labels[rows]
            logits = main_answer(call(model.network, fed(samples, rows)))
            right += int(((logits.argmax(1).numpy() == labels) & torch.isfinite(logits).all(1).numpy()).sum())
            done += len(labels)
            if progress:
                progress(done, len(samples))
    return right / len(samples)
