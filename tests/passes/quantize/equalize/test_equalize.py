"""Equalized networks compute what they computed before, and lose less on an 8-bit grid."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pocketfit import zoo
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid
from pocketfit.core.plan.quantize import CorrectBias, Equalize
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.numerics.sqnr import sqnr_db
from pocketfit.passes.graph import scale_graph
from pocketfit.passes.graph.fold_batch_norm import fold_batch_norm
from pocketfit.passes.graph.scale_graph import ONE
from pocketfit.passes.quantize import bias_correction
from pocketfit.passes.quantize.equalize import equalize
from pocketfit.passes.quantize.simulate.simulation import simulate
from pocketfit.sources.models.open_model import model_from_module, open_model
from tests.passes import small_networks as nets

EIGHT, FOUR = Grid(8, 8), Grid(4, 8)


def samples_of(model: Model, count: int = 8, seed: int = 0) -> Samples:
    shape = model.signature.inputs[0].with_batch(count)
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    names = [str(i) for i in range(count)]
    return Samples(
        array=array,
        labels=np.full(count, -1, np.int64),
        names=names,
        split="calibration",
        sha256=f"{seed}",
        preprocess=model.preprocess,
    )


def outputs(network: nn.Module, samples: Samples) -> np.ndarray:
    with torch.no_grad():
        return np.concatenate([network(part).numpy() for part in torch.from_numpy(samples.array).split(8)])


def quantized_db(model: Model, samples: Samples, reference: np.ndarray) -> float:
    """Of the simulated 8-bit network's outputs, without what is the same for all samples."""
    simulation = simulate(model, EIGHT)
    inputs = torch.from_numpy(samples.array)
    with torch.no_grad():
        with simulation.observing():
            simulation.network(inputs)
        simulation.activate()
        return sqnr_db(reference - reference.mean(0), simulation.network(inputs).numpy() - reference.mean(0))


def assert_same(model: Model, equalized: Model, samples: Samples) -> None:
    wanted, got = outputs(model.network, samples), outputs(equalized.network, samples)
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert not any("not equalized" in finding for finding in equalized.findings)


def changed(model: Model, equalized: Model) -> int:
    """How many weights are not those of the folded network."""
    folded = fold_batch_norm(model.network, model.signature).state_dict()
    return sum(not torch.allclose(folded[name], tensor) for name, tensor in equalized.network.state_dict().items())


@pytest.mark.parametrize("grid", [EIGHT, FOUR])
@pytest.mark.parametrize("statistics", ["data", "batch-norm"])
@pytest.mark.parametrize("network", [*nets.EXACT, nets.Channelwise, nets.HardCoded, nets.Unknown])
def test_function_is_unchanged(network, statistics, grid):
    model = nets.model_of(network())
    samples = samples_of(model)
    equalized = equalize.apply(model, Equalize(statistics), samples if statistics == "data" else None, grid)
    assert_same(model, equalized, samples)
    assert changed(model, equalized) > 1


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["data", "batch-norm"])
@pytest.mark.parametrize("name", sorted(zoo.ARCHITECTURES))
def test_function_of_the_zoo_is_unchanged(name, statistics):
    torch.manual_seed(0)
    model = nets.model_of(zoo.build(name, width=0.5, classes=10), 32)
    samples = samples_of(model)
    equalized = equalize.apply(model, Equalize(statistics), samples if statistics == "data" else None)
    assert_same(model, equalized, samples)
    assert changed(model, equalized) > 10


def test_the_given_model_is_left_alone_and_a_run_repeats():
    model = nets.model_of(nets.Residual())
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    samples = samples_of(model)
    first, second = (equalize.apply(model, Equalize(), samples) for _ in range(2))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.network.state_dict().items())
    assert first.sha256 == second.sha256 != model.sha256


def by_layer(network: nn.Module, side: int = 16) -> dict[str, scale_graph.Weighted]:
    model = nets.model_of(network, side)
    found = scale_graph.find(fold_batch_norm(model.network, model.signature), model.signature)
    return {layer.name: layer for layer in found.layers}


def test_streams_of_a_residual_are_one():
    layers = by_layer(nets.Residual())
    assert torch.equal(layers["enter.0"].outputs, layers["b.0"].outputs)
    assert torch.equal(layers["a.0"].inputs, layers["enter.0"].outputs)
    assert torch.equal(layers["fc"].inputs, layers["b.0"].outputs)
    assert not bool((layers["b.0"].outputs == ONE).any())
    assert bool((layers["fc"].outputs == ONE).all())  # outputs of the network


def test_a_gate_keeps_its_scale_and_lets_the_gated_pass():
    layers = by_layer(nets.Squeeze())
    assert bool((layers["fc2"].outputs == ONE).all())  # sigmoid
    assert torch.equal(layers["out"].inputs, layers["deep.0"].outputs)
    assert not bool((layers["deep.0"].outputs == ONE).any())
    assert torch.equal(layers["fc1"].inputs, layers["deep.0"].outputs)


def test_concatenation_keeps_its_parts_apart():
    layers = by_layer(nets.Concat())
    parts = torch.cat((layers["a.0"].outputs, layers["b.0"].outputs))
    assert torch.equal(layers["norm"].inputs, parts) and len(parts.unique()) == 40


def test_a_layer_that_is_called_twice_keeps_its_scale():
    layers = by_layer(nets.Twice())
    assert "twice" not in layers and bool((layers["enter.0"].outputs == ONE).all())


class Kinds(nn.Module):
    """One convolution for each activation, all of them added up by the next."""

    PASSING = ("relu", "leaky_relu", "prelu")
    HOLDING = ("hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "tanh", "softmax")

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.linspace(0.1, 0.4, 6))
        self.layers = nn.ModuleDict({name: nn.Conv2d(3, 6, 3) for name in self.PASSING + self.HOLDING})
        self.after = nn.ModuleDict({name: nn.Conv2d(6, 4, 1) for name in self.layers})

    def forward(self, x):
        total = 0
        for name, layer in self.layers.items():
            y = layer(x)
            y = (
                F.prelu(y, self.slope)
                if name == "prelu"
                else getattr(F, name)(y, **({"dim": 1} if name == "softmax" else {}))
            )
            total = total + self.after[name](y)
        return total.mean((2, 3))


def test_what_lets_a_factor_pass():
    layers = by_layer(Kinds())
    for name in Kinds.PASSING:
        assert bool((layers[f"layers.{name}"].outputs != ONE).all()), name
        assert torch.equal(layers[f"layers.{name}"].outputs, layers[f"after.{name}"].inputs)
    for name in Kinds.HOLDING:
        assert bool((layers[f"layers.{name}"].outputs == ONE).all()), name


class Bottlenecks(nn.Module):
    """Two of MobileNetV2's blocks: a linear bottleneck without a residual, then one with."""

    def __init__(self):
        super().__init__()
        self.stem, self.project = nets.cbr(3, 16), nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8))
        self.expand, self.deep = (self._relu6(layer) for layer in (nets.cbr(8, 32, 1), nets.cbr(32, 32, groups=32)))
        self.back = nn.Sequential(nn.Conv2d(32, 8, 1), nn.BatchNorm2d(8))
        self.last, self.fc = self._relu6(nets.cbr(8, 24, 1)), nn.Linear(24, 10)

    @staticmethod
    def _relu6(layer):
        layer[2] = nn.ReLU6()
        return layer

    def forward(self, x):
        x = self.project(self.stem(x))
        x = x + self.back(self.deep(self.expand(x)))
        return self.fc(self.last(x).mean((2, 3)))


def bottlenecks() -> Model:
    """Batch norms fit what runs through it."""
    torch.manual_seed(0)
    network = Bottlenecks().train()
    with torch.no_grad():
        for _ in range(50):
            network(torch.randn(16, 3, 16, 16))
    return model_from_module(network.eval(), preprocess=Preprocess(height=16, width=16))


def sabotaged(model: Model, makers: tuple[str, ...], readers: tuple[str, ...], channel: int, factor: float) -> Model:
    """One channel made wider by a factor, which its readers' weights undo."""
    network = copy.deepcopy(fold_batch_norm(model.network, model.signature))
    with torch.no_grad():
        for maker in makers:
            network.get_submodule(maker).weight[channel] *= factor
            network.get_submodule(maker).bias[channel] *= factor
        for reader in readers:
            network.get_submodule(reader).weight[:, channel] /= factor
    return model_from_module(network, preprocess=model.preprocess)


def test_sabotage_is_repaired():
    model = bottlenecks()
    samples = samples_of(model, 32)
    reference = outputs(model.network, samples)
    wrong = sabotaged(model, PLACES[0][0], PLACES[0][1], 3, 100.0)
    np.testing.assert_allclose(outputs(wrong.network, samples), reference, atol=1e-4 * np.abs(reference).max())
    clean, repaired = (equalize.apply(one, Equalize(), samples) for one in (model, wrong))
    plain_db, wrong_db = quantized_db(model, samples, reference), quantized_db(wrong, samples, reference)
    clean_db, repaired_db = quantized_db(clean, samples, reference), quantized_db(repaired, samples, reference)
    assert wrong_db < plain_db - 10
    assert abs(repaired_db - clean_db) < 1
    assert clean_db > plain_db


# made by all of the first, read by all of the second
PLACES = (
    (("project.0", "back.0"), ("expand.0", "last.0")),
    (("stem.0",), ("project.0",)),
)


@settings(max_examples=6, deadline=None)
@given(
    st.sampled_from(PLACES), st.integers(0, 7), st.sampled_from([1 / 300, 1 / 20, 7, 300]), st.sampled_from([None, 4])
)
def test_any_sabotage_is_repaired(place, channel, factor, bits):
    model = bottlenecks()
    samples = samples_of(model)
    reference = outputs(model.network, samples)
    wrong = sabotaged(model, *place, channel, factor)
    grid = None if bits is None else Grid(bits, 8)
    clean, repaired = (equalize.apply(one, Equalize(), samples, grid) for one in (model, wrong))
    assert abs(quantized_db(repaired, samples, reference) - quantized_db(clean, samples, reference)) < 1.5


class Offset(nn.Module):
    """A linear bottleneck whose channels lie far from zero, each elsewhere, added to another one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.down, self.side = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 6, 1), nn.Conv2d(16, 6, 1)
        self.up, self.fc = nn.Conv2d(6, 24, 1), nn.Linear(24, 5)
        with torch.no_grad():
            self.down.bias.copy_(torch.tensor([-30.0, -10, 0, 5, 20, 40]))
            self.side.bias.copy_(torch.tensor([10.0, 20, -50, 5, 8, 0]))
            self.up.bias.sub_(self.up.weight.flatten(1) @ (self.down.bias + self.side.bias))

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.fc(F.relu(self.up(self.down(x) + self.side(x))).mean((2, 3)))


def test_channels_are_centred_where_that_changes_nothing():
    model = nets.model_of(Offset())
    samples = samples_of(model)
    equalized = equalize.apply(model, Equalize(), samples)
    assert_same(model, equalized, samples)
    network, x = equalized.network, torch.from_numpy(samples.array)
    with torch.no_grad():
        wide = model.network.down(F.relu(model.network.stem(x)))
        narrow = network.down(F.relu(network.stem(x)))
    assert float(wide.mean((0, 2, 3)).abs().max()) > 25
    assert float(narrow.mean((0, 2, 3)).abs().max()) < 2
    reference = outputs(model.network, samples)
    centred = quantized_db(equalized, samples, reference)
    only_scaled = quantized_db(equalize.apply(model, Equalize(absorb=False), samples), samples, reference)
    assert centred > only_scaled + 6 and only_scaled >= quantized_db(model, samples, reference) - 1


class Wide(nn.Module):
    """conv -> relu6 -> conv, with channels that stay below 0.1, and one that reaches the bound."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.a.weight.mul_(0.01)
            self.a.weight[0] *= 1000
            self.a.bias.fill_(0.05)

    def forward(self, x):
        return self.b(F.relu6(self.a(x))).mean((2, 3))


def test_channels_far_below_the_bound_of_relu6_are_widened_and_said():
    model = nets.model_of(Wide())
    samples, others = samples_of(model, 32), samples_of(model, 32, seed=1)
    equalized = equalize.apply(model, Equalize(), samples)
    assert_same(model, equalized, samples)
    assert_same(model, equalized, others)
    gains = (equalized.network.a.weight / model.network.a.weight).detach().amax((1, 2, 3))
    torch.testing.assert_close(gains[0], torch.tensor(1.0))
    assert bool((gains[1:] > 2).all()) and float(gains.max()) <= 1 / equalize.LEAST + 1e-5
    assert sum("upper bound of their relu6" in finding for finding in equalized.findings) == 1
    reference = outputs(model.network, others)
    assert quantized_db(equalized, others, reference) > quantized_db(model, others, reference) + 3


def test_a_channel_that_few_samples_drive_is_not_widened_by_as_much():
    model = nets.model_of(Wide())
    samples = samples_of(model, 32)
    array = samples.array.copy()
    array[5] *= 4
    rare = replace(samples, array=array)
    usual, careful = (equalize.apply(model, Equalize(), one).network.a.bias[1:] for one in (samples, rare))
    # driven about three times as high in one sample: 3² of what is expected else, and the square root of that
    assert bool((careful < 0.8 * usual).all())


def test_what_would_change_the_function_is_not_done(monkeypatch):
    monkeypatch.setattr(equalize, "rescaled", lambda network, found, scale: nets.Residual().eval())
    model = nets.model_of(nets.Residual())
    equalized = equalize.apply(model, Equalize(), samples_of(model))
    assert any("not equalized" in finding for finding in equalized.findings)
    assert changed(model, equalized) == 0


def test_refusals_are_sentences():
    model = nets.model_of(nets.Residual())
    with pytest.raises(UserError, match="needs calibration samples: give data"):
        equalize.apply(model, Equalize(), None)
    with pytest.raises(UserError, match="has no batch norm behind a convolution"):
        equalize.apply(nets.model_of(Offset()), Equalize("batch-norm"), None)


def test_without_data_a_sentence_says_so_and_the_next_pass_still_knows_the_statistics():
    model = nets.model_of(nets.Residual())
    equalized = equalize.apply(model, Equalize("batch-norm"), None)
    assert any("no data seen" in finding for finding in equalized.findings)
    corrected = bias_correction.apply(equalized, CorrectBias("batch-norm"), None, EIGHT)
    assert corrected.sha256 != equalized.sha256
    assert sum("no data seen" in finding for finding in corrected.findings) == 1


@pytest.mark.slow
@pytest.mark.weights
def test_pretrained_mobilenet_v2(mobilenet_v2_checkpoint):
    """On pictures of noise of all frequencies, which reach more channels than white noise."""
    model = open_model("mobilenet_v2", weights=mobilenet_v2_checkpoint)
    generator = torch.Generator().manual_seed(0)
    coarse = [torch.randn(16, 3, side, side, generator=generator) for side in (3, 9, 30, 100)]
    array = sum(F.interpolate(noise, (224, 224), mode="bilinear") for noise in coarse).numpy() / 2
    names = [str(i) for i in range(16)]
    samples = Samples(
        array=array,
        labels=np.full(16, -1, np.int64),
        names=names,
        split="calibration",
        sha256="",
        preprocess=model.preprocess,
    )
    reference = outputs(model.network, samples)
    equalized = equalize.apply(model, Equalize(), samples)
    assert_same(model, equalized, samples)
    corrected = bias_correction.apply(equalized, CorrectBias(), samples, EIGHT)
    plain, after = (quantized_db(one, samples, reference) for one in (model, corrected))
    assert after > plain + 2
    wrong = sabotaged(model, ("features.1.conv.1",), ("features.2.conv.0.0",), 3, 100.0)
    repaired = bias_correction.apply(equalize.apply(wrong, Equalize(), samples), CorrectBias(), samples, EIGHT)
    assert abs(quantized_db(repaired, samples, reference) - after) < 1
