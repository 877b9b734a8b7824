"""The simulation: equal to the network where it is switched off, on the grid where it is on, where files quantize."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit import zoo
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings, Grid
from pocketfit.core.preprocess import Preprocess
from pocketfit.numerics.sqnr import sqnr_db
from pocketfit.passes.quantize.simulate import fake_quantize
from pocketfit.passes.quantize.simulate.simulation import fingerprints_of, simulate
from pocketfit.sources.models.open_model import model_from_module
from tests.passes.small_networks import (
    Channelwise,
    Concat,
    Flatten,
    Grouped,
    Residual,
    Shuffle,
    Spatial,
    Squeeze,
    model_of,
    with_statistics,
)

EIGHT = Grid(8, 8)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.out = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.out(self.deep(x)))
        return self.fc(x.mean((2, 3)).view(x.size(0), -1))


def small(side: int = 10) -> Model:
    torch.manual_seed(0)
    network = Small()
    with torch.no_grad():
        for _ in range(5):
            network(torch.randn(8, 3, side, side))
    return model_from_module(network.eval(), preprocess=Preprocess(height=side, width=side))


def test_points_stand_where_files_quantize() -> None:
    simulation = simulate(small(), EIGHT)
    assert [point.layer for point in simulation.points.values()] == ["x", "stem.0", "deep", "out", "add", "mean", "fc"]
    assert list(simulation.weights) == ["stem.0", "deep", "out", "fc"]
    assert [grid.layer.depthwise for grid in simulation.weights.values()] == [False, True, False, False]


def test_layers_in_float_have_no_grid_and_neither_do_tensors_between_them() -> None:
    simulation = simulate(small(), Grid(8, 8, keep_float=("stem.0", "fc")))
    assert list(simulation.weights) == ["deep", "out"]
    assert [point.layer for point in simulation.points.values()] == ["stem.0", "deep", "out", "add", "mean"]


def test_weights_only_has_no_points_and_depthwise_layers_keep_eight_bits() -> None:
    settings = ExportSettings("litert", "weight-only", weights="int4", keep_int8=("out",))
    assert settings.grid is not None
    simulation = simulate(small(), settings.grid)
    assert not simulation.points
    assert {name: grid.bits for name, grid in simulation.weights.items()} == {"stem.0": 4, "deep": 8, "out": 8, "fc": 4}


def run(simulation, values: torch.Tensor) -> np.ndarray:  # type: ignore[no-untyped-def]
    with torch.no_grad():
        return np.asarray(simulation.network(values))


@pytest.mark.parametrize("batch", [1, 3])
def test_off_it_is_the_network_on_it_is_near_and_layers_switch_one_by_one(batch: int) -> None:
    model, values = small(), torch.randn(batch, 3, 10, 10)
    simulation = simulate(model, EIGHT)
    with simulation.observing():
        run(simulation, values)
    simulation.activate(weights=False, points=False)
    exact = model.network(values).detach().numpy()
    np.testing.assert_allclose(run(simulation, values), exact, rtol=1e-4, atol=1e-5)
    simulation.activate()
    everything = sqnr_db(exact, run(simulation, values))
    assert 20 < everything < 60
    noises = []
    for weights, points in [([n], False) for n in simulation.weights] + [(False, [n]) for n in simulation.points]:
        simulation.activate(weights=weights, points=points)
        noises.append(10 ** (-sqnr_db(exact, run(simulation, values)) / 10))
    assert all(noise > 0 for noise in noises)
    assert sum(noises) / 10 < 10 ** (-everything / 10) < 10 * sum(noises), "noises nearly add up"


def test_weights_on_their_grid_are_where_the_quantizer_puts_them() -> None:
    simulation = simulate(small(), Grid(4, 8))
    for grid in simulation.weights.values():
        weight = torch.randn(grid.scale.shape[0], 6)
        scale = fake_quantize.widest_scale(weight, grid.bits)
        integers = fake_quantize.fake_weight(weight, scale, grid.bits) / scale
        assert torch.allclose(integers, integers.round(), atol=1e-4)
        assert (integers.abs().amax(1).round() == fake_quantize.largest_integer(grid.bits)).all()


def test_a_learning_step_never_leaves_the_largest_weight_short_of_the_end() -> None:
    grid = next(iter(simulate(small(), Grid(4, 8)).weights.values()))
    weight = torch.randn(8, 3, 3, 3)
    grid.learn(weight, fake_quantize.widest_scale(weight, 4))
    assert grid.ratio is not None and grid.stretch is not None
    for stretch in (-1.0, 0.0, 0.5, 3.0):
        grid.stretch.data.fill_(stretch)
        on_grid = grid(weight)
        again = fake_quantize.widest_scale(on_grid, 4)
        torch.testing.assert_close(again, grid.step(), rtol=1e-5, atol=0)
        torch.testing.assert_close(fake_quantize.fake_weight(on_grid, again, 4), on_grid, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", [Channelwise, Concat, Flatten, Grouped, Residual, Shuffle, Spatial, Squeeze])
def test_every_way_in_which_networks_are_built(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = model_of(with_statistics(kind()))
    values = torch.randn(3, *model.signature.inputs[0].shape[1:])
    simulation = simulate(model, EIGHT)
    with simulation.observing():
        run(simulation, values)
    exact = model.network(values).detach().numpy()
    np.testing.assert_allclose(run(simulation, values), exact, rtol=1e-3, atol=0.2 * np.abs(exact).max())
    simulation.activate()
    assert sqnr_db(exact, run(simulation, values)) > 8


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2", "efficientnet_lite0"])
def test_zoo_networks(name: str) -> None:
    torch.manual_seed(0)
    network = zoo.build(name, width=1.0, classes=10).eval()
    model = model_from_module(network, preprocess=Preprocess(height=32, width=32))
    values = torch.randn(2, 3, 32, 32)
    simulation = simulate(model, EIGHT)
    simulation.activate(weights=False, points=False)
    np.testing.assert_allclose(run(simulation, values), network(values).detach().numpy(), rtol=1e-3, atol=1e-4)
    weighted = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sorted(simulation.weights) == sorted(weighted)


def test_fingerprints_are_those_of_the_float_network() -> None:
    model = small()
    values = np.random.default_rng(0).standard_normal((2, 3, 10, 10)).astype(np.float32)
    found = fingerprints_of(model, EIGHT, torch.from_numpy(values))
    answers = model.network(torch.from_numpy(values)).detach().numpy()
    size, mean, _, low, high = found["linear"]
    assert (size, mean) == (answers.size, pytest.approx(float(answers.mean()), abs=1e-5))
    assert (low, high) == (pytest.approx(answers.min(), abs=1e-5), pytest.approx(answers.max(), abs=1e-5))
    assert found["relu"][3] == 0.0


def test_the_users_network_is_left_alone() -> None:
    model = small()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    simulation = simulate(replace(model), EIGHT)
    for parameter in simulation.network.parameters():
        parameter.data.add_(1.0)
    after = model.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
