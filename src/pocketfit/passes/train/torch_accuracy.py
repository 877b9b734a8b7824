"""The accuracy of a network in PyTorch: a first look, as a deployed file has its own."""

from __future__ import annotations

import numpy as np
import torch

from pocketfit.core.model import Model
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Tick
from pocketfit.passes.graph.main_answer import main_answer


def accuracy(model: Model, samples: Samples, *, batch_size: int = 256, progress: Tick | None = None) -> float:
    """Top-1 accuracy in PyTorch: a first look, not the accuracy of a deployed file. NaN logits count as wrong."""
    right = done = 0
    with torch.inference_mode():
        for inputs, labels in samples.batches(batch_size):
            logits = main_answer(model.network(torch.from_numpy(np.ascontiguousarray(inputs))))
            right += int(((logits.argmax(1).numpy() == labels) & torch.isfinite(logits).all(1).numpy()).sum())
            done += len(labels)
            if progress:
                progress(done, len(samples))
    return right / len(samples)
