"""Ranges without data: by hand where that is possible, against what such inputs really do elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid
from pocketfit.core.preprocess import Preprocess
from pocketfit.passes.quantize import data_free_ranges
from pocketfit.passes.quantize.simulate.simulation import simulate
from pocketfit.sources.models.open_model import model_from_module

GRID = Grid(8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1, bias=False)
        self.last, self.fc = nn.BatchNorm2d(5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.b(torch.relu(self.norm(self.a(x))))).mean((2, 3)))


def model() -> Model:
    torch.manual_seed(0)
    net = Net().eval()
    net.norm.weight.data, net.norm.bias.data = torch.tensor([1.0, 2, 0.5, 1]), torch.tensor([0.0, 1, -9, 2])
    net.last.weight.data, net.last.bias.data = torch.tensor([1.0, -1, 3, 1, 1]), torch.tensor([0.0, 0, 1, 0, 0])
    return model_from_module(net, preprocess=Preprocess(height=8, width=8, mean=(0.5,) * 3, std=(0.5,) * 3))


def test_by_hand() -> None:
    given = model()
    points = simulate(given, GRID).points
    found = {points[name].layer: ends for name, ends in data_free_ranges.ranges(given, GRID).items()}
    assert found[next(iter(found))] == (-1.0, 1.0), "the picture"
    assert found["a"] == pytest.approx((0.0, 1 + 6 * 2)), "mean 1, deviation 2, clipped by relu"
    assert found["b"] == pytest.approx((1 - 6 * 3, 1 + 6 * 3)), "mean 1, deviation 3 in absolute value"
    assert set(found) >= {"a", "b", "fc"}
    with torch.no_grad():
        _answers(given, found["fc"])


def _answers(given: Model, found: tuple[float, float]) -> None:
    pooled = torch.tensor([0.0, 0, 1, 0, 0])
    mean = given.network.fc(pooled)
    variance = (given.network.fc.weight**2) @ torch.tensor([1.0, 1, 9, 1, 1])  # every place of the picture alike
    reach = 6 * variance.sqrt()
    assert found == pytest.approx((2 * float((mean - reach).min()), 2 * float((mean + reach).max())), rel=1e-4)


def test_every_tensor_of_a_usual_network_has_one() -> None:
    given = model()
    found = data_free_ranges.ranges(given, GRID)
    assert set(found) == set(simulate(given, GRID).points)
    assert all(math.isfinite(low) and low < high for low, high in found.values())


def test_without_batch_norm() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    plain = model_from_module(net, preprocess=Preprocess(height=8, width=8))
    with pytest.raises(UserError, match="has no batch norm"):
        data_free_ranges.ranges(plain, GRID)
