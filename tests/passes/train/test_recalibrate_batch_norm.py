"""Batch norms re-estimated: exact means, untouched weights, and a pruned network that predicts better than before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.train import Recalibrate
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.passes.train import recalibrate_batch_norm
from pocketfit.sources.models.open_model import model_from_module

PREPROCESS = Preprocess(height=8, width=8, resize_px=8)


def model() -> Model:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
        nn.BatchNorm2d(5, momentum=0.3),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 2),
    )
    return model_from_module(network, preprocess=PREPROCESS, labels=("a", "b"))


def samples(count: int) -> Samples:
    pixels = np.random.default_rng(1).integers(0, 256, (count, 8, 8, 3), np.uint8)
    labels = np.arange(count) % 2
    return Samples(
        array=pixels,
        labels=labels,
        names=[f"{i}" for i in range(count)],
        split="train",
        sha256="00",
        preprocess=PREPROCESS,
        class_names=("a", "b"),
    )


@pytest.mark.parametrize("count", [2, 65, 150])
def test_the_first_batch_norm_holds_the_mean_and_variance_of_its_inputs(count: int) -> None:
    """65 samples are two batches of different size: each sample counts the same."""
    start, data = model(), samples(count)
    found = recalibrate_batch_norm.apply(start, Recalibrate(1000), data)
    with torch.no_grad():
        inputs = start.network[0](torch.from_numpy(data.inputs(slice(None))))
    norm = found.network[1]
    torch.testing.assert_close(norm.running_mean, inputs.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, inputs.var((0, 2, 3)), rtol=0.02, atol=1e-6)


def test_one_batch_gives_every_norm_what_training_would_see() -> None:
    start, data = model(), samples(40)
    found = recalibrate_batch_norm.apply(start, Recalibrate(40), data)
    outputs = torch.from_numpy(data.inputs(slice(None)))
    with torch.no_grad():
        for index, layer in enumerate(start.network[:5]):
            if isinstance(layer, nn.BatchNorm2d):
                mean, var = outputs.mean((0, 2, 3)), outputs.var((0, 2, 3), unbiased=True)
                torch.testing.assert_close(found.network[index].running_mean, mean, rtol=1e-4, atol=1e-6)
                torch.testing.assert_close(found.network[index].running_var, var, rtol=1e-4, atol=1e-6)
                outputs = nn.functional.batch_norm(outputs, None, None, layer.weight, layer.bias, training=True)
            else:
                outputs = layer(outputs)


def test_weights_and_settings_stand_still() -> None:
    start = model()
    before = {name: value.clone() for name, value in start.network.state_dict().items()}
    found = recalibrate_batch_norm.apply(start, Recalibrate(50), samples(80))
    assert all(torch.equal(value, before[name]) for name, value in start.network.state_dict().items())
    for name, parameter in found.network.named_parameters():
        assert torch.equal(parameter, before[name])
    assert not torch.equal(found.network[4].running_mean, before["4.running_mean"])
    assert [found.network[1].momentum, found.network[4].momentum] == [0.1, 0.3]
    assert not any(layer.training for layer in found.network.modules())
    assert str(found.network) == str(start.network) and found.sha256 != start.sha256


def test_the_seed_draws_the_samples_and_nothing_else_counts() -> None:
    start, data = model(), samples(80)
    first = recalibrate_batch_norm.apply(start, Recalibrate(20), data)
    torch.rand(3)
    assert recalibrate_batch_norm.apply(start, Recalibrate(20), data).sha256 == first.sha256
    assert recalibrate_batch_norm.apply(start, Recalibrate(20, seed=1), data).sha256 != first.sha256
    again = recalibrate_batch_norm.apply(first, Recalibrate(20), data)
    torch.testing.assert_close(again.network[4].running_mean, first.network[4].running_mean)


def test_statistics_that_were_spoiled_come_back() -> None:
    start, data = model(), samples(80)
    good = recalibrate_batch_norm.apply(start, Recalibrate(80), data)
    inputs = torch.from_numpy(data.inputs(slice(None)))
    with torch.no_grad():
        wanted = good.network(inputs)
        good.network[1].running_mean += 3.0
        good.network[4].running_var *= 9.0
        assert (good.network(inputs) - wanted).abs().max() > 0.05
        mended = recalibrate_batch_norm.apply(good, Recalibrate(80), data).network(inputs)
    torch.testing.assert_close(mended, wanted, rtol=1e-4, atol=1e-5)


def test_without_batch_norms_it_says_so() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 2, 3), nn.InstanceNorm2d(2), nn.Flatten())
    plain.append(nn.Linear(72, 2))
    start = model_from_module(plain, preprocess=PREPROCESS, labels=("a", "b"))
    found = recalibrate_batch_norm.apply(start, Recalibrate(), samples(4))
    assert found.sha256 == start.sha256 and found.network is start.network
    assert found.findings[-1] == "Batch norms were not re-estimated: the network has none"


def test_refusals() -> None:
    with pytest.raises(UserError, match="at least two samples, and the train split has 1"):
        recalibrate_batch_norm.apply(model(), Recalibrate(), samples(1))
    broken = model()
    with torch.no_grad():
        broken.network[0].weight[0] = 1e38
    with pytest.raises(UserError, match=r"not finite \(1.running"):
        recalibrate_batch_norm.apply(
            broken, Recalibrate(), replace(samples(8), preprocess=replace(PREPROCESS, scale=1e3))
        )
