"""The rate that a network stands is found on itself, in a few steps, the same each time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.train import Train
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.passes.train import fine_tune
from pocketfit.passes.train.guarded import find_learning_rate
from pocketfit.passes.train.torch_accuracy import accuracy
from pocketfit.sources.models.open_model import model_from_module

PREPROCESS = Preprocess(height=16, width=16, resize_px=16, mean=(0.5,) * 3, std=(0.25,) * 3)
SETTINGS = Train(find_learning_rate.STEPS, batch_size=16)


def samples(count: int = 160) -> Samples:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 4
    pixels = rng.integers(0, 90, (count, 16, 16, 3))
    for row, label in zip(pixels, labels, strict=True):
        row[4 * label : 4 * label + 4] += 120
    return Samples(
        array=pixels.astype(np.uint8),
        labels=labels.astype(np.int64),
        names=[""] * count,
        split="train",
        sha256="00",
        preprocess=PREPROCESS,
    )


def learned(*, norms: bool, factor: float = 1.0) -> Model:
    """A small network that has learned its four classes; the second layer's weights `factor` times as small as usual,
    the first one's as large."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 16), (16, 16)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), *([nn.BatchNorm2d(outputs)] if norms else []), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 4))
    inputs, labels = torch.from_numpy(samples().inputs(slice(None))), torch.from_numpy(samples().labels)
    adam = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(60):
        adam.zero_grad()
        nn.functional.cross_entropy(network(inputs), labels).backward()
        adam.step()
    with torch.no_grad():
        first, second, _ = (layer for layer in network if isinstance(layer, nn.Conv2d))
        first.weight.mul_(factor)
        first.bias.mul_(factor)
        second.weight.div_(factor)
    return model_from_module(network.eval(), preprocess=PREPROCESS, labels=tuple("abcd"))


def test_a_network_with_norms_keeps_the_usual_rate_without_a_word() -> None:
    model = learned(norms=True)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    found = find_learning_rate.found_rate(model, SETTINGS, samples())
    assert (found.learning_rate, found.finding) == (0.02, "") and 0 <= found.rise <= find_learning_rate.MOST_RISE
    assert found.seconds_per_step > 0
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())


def test_one_that_does_not_stand_it_gets_a_lower_one_and_it_is_said() -> None:
    """The usual rate throws it off; at the one that is found it keeps what it knows."""
    model = learned(norms=False)
    high = Train(find_learning_rate.STEPS, batch_size=16, learning_rate=2.0)
    found = find_learning_rate.found_rate(model, high, samples())
    assert found.learning_rate < 2.0 and found.rise <= find_learning_rate.MOST_RISE
    assert found.finding.startswith("At the usual learning rate of 2 this network forgets what it knows (16 steps")
    assert found.finding.endswith(f"it is trained at {found.learning_rate:g}")
    again = find_learning_rate.found_rate(model, high, samples())
    assert (again.learning_rate, again.rise, again.finding) == (found.learning_rate, found.rise, found.finding)
    trained = fine_tune.apply(model, replace(high, learning_rate=found.learning_rate), samples(), teacher=model)
    assert not any("fall" in sentence for sentence in trained.findings)


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_training_at_the_rate_that_was_found_is_no_loss(factor: float, optimizer: str) -> None:
    model = learned(norms=False, factor=factor)
    found = find_learning_rate.found_rate(model, SETTINGS, samples())
    settings = Train(30, batch_size=16, learning_rate=found.learning_rate, optimizer=optimizer)  # type: ignore[arg-type]
    trained = fine_tune.apply(model, settings, samples(), teacher=model)
    assert accuracy(trained, samples()) >= accuracy(model, samples()) - 0.03


def test_where_no_rate_holds_the_lowest_is_taken_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_learning_rate, "MOST_RISE", -1.0)
    found = find_learning_rate.found_rate(learned(norms=True), SETTINGS, samples())
    assert found.learning_rate == pytest.approx(0.02 * find_learning_rate.LADDER[-1])
    assert "at all lower rates that were tried; it is trained at 0.0001, and will hardly recover" in found.finding


def test_nothing_to_look_at_is_said() -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        find_learning_rate.found_rate(learned(norms=True), SETTINGS, samples(0))
