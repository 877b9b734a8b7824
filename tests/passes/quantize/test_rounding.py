"""Learned rounding: on the grid, never worse than the nearest, as good as trying everything where that can be tried."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pocketfit.core.learned import Learned
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings, Grid
from pocketfit.core.plan.prune import Sparsify
from pocketfit.core.plan.quantize import Round
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.numerics.sqnr import sqnr_db
from pocketfit.passes.prune import sparsify
from pocketfit.passes.quantize import rounding
from pocketfit.passes.quantize.rounding import Sums, descended, patches, shift, solve
from pocketfit.passes.quantize.simulate import fake_quantize
from pocketfit.passes.quantize.simulate.simulation import layers_of, simulate
from pocketfit.sources.models.open_model import model_from_module


def statistics(rows: Tensor) -> Sums:
    """Of rows [n, k], one group."""
    return Sums(rows.sum(0, keepdim=True), (rows.T @ rows)[None], len(rows))


def error(change: Tensor, covariance: Tensor) -> Tensor:
    """The mean squared change of each output: [outputs]."""
    return torch.einsum("oi,ij,oj->o", change, covariance, change)


@given(st.integers(0, 10**6), st.sampled_from([3, 4, 8]))
@example(72822, 3)  # the scale that looks best weight by weight ends 3 % above the nearest
def test_never_worse_than_the_nearest_and_on_the_grid(seed: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(300, 12, generator=generator) @ torch.randn(12, 12, generator=generator) + 1
    weight = torch.randn(6, 12, generator=generator)
    sums = statistics(rows)
    on_grid = solve(weight, sums, bits, sweeps=20)
    scale = fake_quantize.widest_scale(on_grid, bits)  # what the runtime's quantizer will take
    torch.testing.assert_close(fake_quantize.fake_weight(on_grid, scale, bits), on_grid, rtol=1e-5, atol=0)
    _, covariance = sums.moments()
    nearest = fake_quantize.fake_weight(weight, fake_quantize.widest_scale(weight, bits), bits)
    ours, theirs = error(on_grid - weight, covariance[0]), error(nearest - weight, covariance[0])
    assert (ours <= theirs * 1.001 + 1e-6).all()
    mean_change = (rows @ (on_grid - weight).T + shift(weight - on_grid, rows.mean(0)[None])).mean(0)
    assert mean_change.abs().max() < 1e-3 * rows.std(), "the bias takes the mean error off"


@given(st.integers(0, 10**6))
def test_descent_against_all_combinations(seed: int) -> None:
    """5 integers of a 2-bit grid: 3^4 combinations beside the pinned one. Descent stops where no single one helps."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(5, 5, generator=generator)
    covariance = (mixed @ mixed.T + 0.5 * torch.eye(5))[None]
    wanted = torch.randn(1, 1, 5, generator=generator)
    scale = wanted.abs().amax().view(1, 1, 1)
    found = descended(wanted, scale, covariance, 1, sweeps=50)[0, 0]
    pinned = int(wanted.abs().argmax())
    assert found[pinned] == wanted[0, 0, pinned].sign()
    value = float(error((found * scale - wanted)[0], covariance[0]))
    best = np.inf
    for combination in product([-1.0, 0.0, 1.0], repeat=5):
        other = torch.tensor(combination)
        if other[pinned] != found[pinned]:
            continue
        cost = float(error((other * scale - wanted)[0], covariance[0]))
        best = min(best, cost)
        if (other != found).sum() == 1:
            assert cost >= value - 1e-5, "one more step down was left"
    assert value >= best - 1e-5


def test_blocks_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(500, 40, generator=generator) @ torch.randn(40, 40, generator=generator)
    weight = torch.randn(5, 40, generator=generator)
    whole = solve(weight, statistics(rows), 4, 10)
    monkeypatch.setattr(rounding, "BLOCK", 7)
    torch.testing.assert_close(solve(weight, statistics(rows), 4, 10), whole)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch makes a copy, and says so
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6),
        nn.Conv2d(6, 9, (3, 1), groups=3),
        nn.Conv2d(6, 4, 1),
        nn.Conv2d(6, 4, (4, 3), padding="same", dilation=(1, 2)),
        nn.Conv2d(6, 4, 3, padding="valid"),
        nn.Linear(6, 4),
    ],
)
def test_patches_are_what_the_layer_sees(layer: nn.Conv2d | nn.Linear) -> None:
    """Multiplied with the weights they give the layer's outputs."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(seen(x)).flatten(1)

    def seen(x: Tensor) -> Tensor:
        x = torch.cat((x, x.flip(2)), 1)
        return x.mean((2, 3)) if isinstance(layer, nn.Linear) else x

    model = model_of(One(), 9)
    (node, _), *_ = layers_of(simulate(model, Grid(8, None)).network, through_grids=True).items()
    given_ = seen(torch.randn(2, 3, 9, 9))
    rows = patches(node, given_, layer.weight.shape, 10**6)
    groups = rows.shape[0]
    outputs = torch.einsum("grk,gok->gro", rows, layer.weight.reshape(groups, -1, rows.shape[2]))
    assert layer.bias is not None
    exact = layer(given_)
    exact = exact.flatten(2).transpose(1, 2).flatten(0, 1) if exact.ndim == 4 else exact
    ours = outputs.permute(1, 0, 2).flatten(1) + layer.bias
    assert torch.allclose(ours.sum(0), exact.sum(0), atol=1e-3)
    assert torch.allclose(ours.sort(0).values, exact.sort(0).values, atol=1e-4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 24, 1)
        self.norm, self.fc = nn.BatchNorm2d(16), nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.c(F.relu6(self.b(F.relu(self.norm(self.a(x))))))).mean((2, 3)))


def model_of(network: nn.Module, side: int) -> Model:
    return model_from_module(network.eval(), preprocess=Preprocess(height=side, width=side))


def noise(count: int, side: int, seed: int) -> Samples:
    smooth = torch.nn.functional.interpolate(
        torch.randn(count, 3, side // 2, side // 2, generator=torch.Generator().manual_seed(seed)), scale_factor=2.0
    ).numpy()
    return Samples(
        array=smooth,
        labels=np.full(count, -1),
        names=[""] * count,
        split="calibration",
        sha256="noise",
        preprocess=Preprocess(height=side, width=side),
    )


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_a_network_comes_nearer_to_itself(weights: str) -> None:
    torch.manual_seed(0)
    model = model_of(Net(), 12)
    grid = ExportSettings("litert", "int8", weights=weights).grid  # type: ignore[arg-type]
    assert grid is not None
    done: list[tuple[int, int]] = []
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    found = rounding.apply(
        model, Round(samples=32), noise(64, 12, 0), grid, progress=lambda *counts: done.append(counts)
    )
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())
    assert found.sha256 != model.sha256
    held_out = torch.from_numpy(noise(32, 12, 1).inputs(slice(None)))
    exact = model.network(held_out).detach().numpy()
    plain = simulate(model, grid)
    plain.activate(points=False)
    rounded = simulate(found, grid)
    rounded.activate(points=False)
    with torch.no_grad():
        nearest, learned = sqnr_db(exact, plain.network(held_out)), sqnr_db(exact, rounded.network(held_out))
        assert learned > nearest + 3
        rounded.activate(weights=False, points=False)
        assert sqnr_db(rounded.network(held_out), found.network(held_out)) > 90
    again = rounding.apply(model, Round(samples=32), noise(64, 12, 0), grid)
    assert again.sha256 == found.sha256


def test_layers_in_float_are_left_as_they_are() -> None:
    torch.manual_seed(0)
    model = model_of(Net(), 12)
    found = rounding.apply(model, Round(samples=8), noise(8, 12, 0), Grid(8, 8, keep_float=("fc", "b")))
    assert torch.equal(found.network.fc.weight, model.network.fc.weight)
    assert torch.equal(found.network.b.weight, model.network.b.weight)
    assert not torch.equal(found.network.c.weight, model.network.c.weight)


def test_dead_inputs_do_no_harm() -> None:
    weight = torch.randn(3, 4)
    on_grid = solve(weight, Sums(torch.zeros(1, 4), torch.zeros(1, 4, 4), 10), 8, 5)
    assert torch.isfinite(on_grid).all()
    torch.testing.assert_close(on_grid, weight, rtol=0, atol=float(weight.abs().max()) / 127)


def test_outputs_with_weights_next_to_nothing_get_none() -> None:
    """Their scale is 1, and the end of that grid is 127."""
    rows = torch.randn(300, 4)
    weight = torch.randn(3, 4)
    weight[1] = torch.tensor([1e-38, -9e-38, 0.0, 2e-38])
    on_grid = solve(weight, statistics(rows), 8, 5)
    assert (on_grid[1] == 0).all()
    torch.testing.assert_close(on_grid[[0, 2]], weight[[0, 2]], rtol=0, atol=float(weight.abs().max()) / 60)


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_zeros_of_sparse_layers_stay(weights: str) -> None:
    torch.manual_seed(0)
    sparse = sparsify.apply(model_of(Net(), 12), Sparsify(0.6), None)
    grid = ExportSettings("litert", "int8", weights=weights).grid  # type: ignore[arg-type]
    assert grid is not None and sparse.learned.sparse == ("c", "fc")
    found = rounding.apply(sparse, Round(samples=32), noise(64, 12, 0), grid)
    free = rounding.apply(replace(sparse, learned=Learned()), Round(samples=32), noise(64, 12, 0), grid)
    moved = 0
    for name in ("c", "fc"):
        zero = sparse.network.get_submodule(name).weight == 0
        assert (found.network.get_submodule(name).weight[zero] == 0).all()
        moved += int((free.network.get_submodule(name).weight[zero] != 0).sum())
    assert moved > 0, "without the note they move"
    assert found.learned == sparse.learned
