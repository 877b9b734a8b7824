"""Whatever network somebody brings: recovery trains it, its weights are finite, and it is no worse than it began."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocketfit.core.model import Model
from pocketfit.core.plan.train import Train
from pocketfit.core.samples import Samples
from pocketfit.passes.train import fine_tune
from pocketfit.passes.train.guarded import find_learning_rate
from pocketfit.passes.train.torch_accuracy import accuracy
from pocketfit.sources.data.dataset import from_arrays
from tests.brought.networks import CLASSIFIERS, arrays, opened

STEPS, BATCH = 6, 16
COUNT = 120  # pictures, a tenth of which nobody trains with
LOST = 0.08  # share of right answers that may change by chance, of so few


def samples_of(name: str, model: Model) -> Samples:
    return from_arrays(*arrays(name, COUNT)).split("train", model.preprocess, split_seed=0)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_recovery_is_no_loss(name: str) -> None:
    """Learned a little first; then with itself as teacher, where any change is one for the worse."""
    model = opened(name)
    samples = samples_of(name, model)
    settings = Train(STEPS, batch_size=BATCH)
    learned = fine_tune.transfer(model, samples, epochs=2 * STEPS * BATCH / len(samples), batch_size=BATCH)
    rate = find_learning_rate.found_rate(learned, settings, samples)
    recovered = fine_tune.apply(
        learned, Train(STEPS, batch_size=BATCH, learning_rate=rate.learning_rate), samples, teacher=learned
    )
    assert 0 < rate.learning_rate <= settings.learning_rate
    assert all(bool(torch.isfinite(p).all()) for p in recovered.network.parameters())
    assert not recovered.network.training
    flags = [p.requires_grad for p in model.network.parameters()]
    assert [p.requires_grad for p in recovered.network.parameters()] == flags, "frozen is what was frozen"
    assert accuracy(recovered, samples) >= accuracy(learned, samples) - LOST
    before = [p.detach() for p in model.network.parameters()]
    moved = sum(not torch.equal(a, b.detach()) for a, b in zip(before, learned.network.parameters(), strict=True))
    kept = any("as it was before" in sentence for sentence in learned.findings)
    assert moved or kept, "something was learned, or it is said that it was no good"
    assert np.isfinite(rate.rise)
