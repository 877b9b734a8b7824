"""Weights and biases are written back by their names; each call of a shared weight has a mean error of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid
from pocketfit.core.plan.quantize import CorrectBias, Round
from pocketfit.passes.graph.parameters import add_to_bias
from pocketfit.passes.quantize import bias_correction, rounding
from pocketfit.passes.quantize.simulate.fake_quantize import fake_weight, widest_scale
from tests.passes import small_networks as nets


class Tied(nn.Module):
    """Two layers with one weight, fed with very different values; what each gives can be looked at."""

    def __init__(self, *, biases: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1, bias=biases), nn.Conv2d(3, 3, 1, bias=biases)
        self.two.weight = self.one.weight
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat((self.one(x), self.two(5 + x.abs())), 1).mean((2, 3)))


def on_the_grid(model: Model, weight: Tensor) -> Tensor:
    return fake_weight(weight, widest_scale(weight, 3), 3)


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("settings", [CorrectBias(samples=32), Round(4, 32)])
def test_each_call_of_a_shared_weight_gets_its_own_correction(settings: CorrectBias | Round, biases: bool) -> None:
    torch.manual_seed(1)
    model = nets.model_of(Tied(biases=biases), 8)
    samples = nets.samples_of(model, 32)
    apply = bias_correction.apply if isinstance(settings, CorrectBias) else rounding.apply
    found = apply(model, settings, samples, Grid(3, 8, keep_float=("fc",))).network  # type: ignore[operator]
    assert found.one.weight is found.two.weight
    weight = on_the_grid(model, found.one.weight.detach())
    inputs = torch.from_numpy(samples.inputs(slice(None)))
    for name, given in (("one", inputs), ("two", 5 + inputs.abs())):
        before, after = model.network.get_submodule(name), found.get_submodule(name)
        wanted = before(given).mean((0, 2, 3))
        got = nn.functional.conv2d(given, weight, after.bias).mean((0, 2, 3))
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_what_takes_no_bias_is_left_as_it_is() -> None:
    network = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Identity())
    add_to_bias(network, "1", "", torch.ones(3))
    add_to_bias(network, "0", "", torch.ones(3))
    add_to_bias(network, "0", "0.bias", torch.ones(3))
    assert network[0].bias.tolist() == [2.0, 2.0, 2.0] and not list(network[1].parameters())
