"""Gradients in bounds: those of a layer by the layer, all together by the steps before."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pocketfit.passes.train.guarded import clip_gradients
from pocketfit.passes.train.guarded.clip_gradients import FEWEST_STEPS, LAYER_SHARE, MEASURED_EVERY, USUAL, Clip
from pocketfit.passes.train.optimizers import Optimizer


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4))


def give(network: nn.Module, size: float) -> None:
    """Each layer's parameters a gradient of this share of the layer's own size, all in all."""
    sizes = clip_gradients.layer_sizes(network)
    for parameter in network.parameters():
        torch.manual_seed(parameter.numel())
        parameter.grad = torch.randn_like(parameter)
        parameter.grad *= size * sizes[id(parameter)] / parameter.grad.norm()


def gradients(network: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in network.parameters()]


def test_ordinary_gradients_stay_as_they_are_to_the_bit() -> None:
    network = net()
    bound = Clip(network)
    for size in (0.5, 0.9, 0.3, 0.2, 0.25, 0.7, 0.9):
        give(network, size)
        before = gradients(network)
        assert bound(list(network.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(before, gradients(network), strict=True))


def test_a_layer_moves_by_its_own_size_at_most_in_the_same_direction() -> None:
    network = net()
    with torch.no_grad():
        network[1].weight.div_(100)
    sizes = clip_gradients.layer_sizes(network)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    network[1].weight.grad *= 1e4
    before = gradients(network)
    Clip(network)(list(network.parameters()))
    for parameter, old in zip(network.parameters(), before, strict=True):
        most = LAYER_SHARE * sizes[id(parameter)]
        assert float(parameter.grad.norm()) == pytest.approx(min(float(old.norm()), most), rel=1e-5)
        assert nn.functional.cosine_similarity(parameter.grad.flatten(), old.flatten(), 0) > 0.999


def test_a_layer_whose_bias_is_zero_has_the_size_of_its_weight() -> None:
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.bias)
    assert clip_gradients.layer_sizes(layer)[id(layer.bias)] == pytest.approx(float(layer.weight.detach().norm()))
    nn.init.zeros_(layer.weight)
    assert clip_gradients.layer_sizes(layer)[id(layer.bias)] == pytest.approx(
        clip_gradients.SMALLEST_WEIGHT * math.sqrt(20)
    )


def test_matrices_of_muon_move_by_shares_of_their_own_alnet() -> None:
    network = net()
    optimizer = Optimizer(network, "muon")
    assert [id(p) for p in optimizer.relative] == [id(network[0].weight)]
    give(network, 10.0)
    before = gradients(network)
    Clip(network, optimizer.relative)(optimizer.parameters)
    same = [torch.equal(a, b) for a, b in zip(before, gradients(network), strict=True)]
    assert same == [True] + [False] * 5


def test_a_step_far_longer_than_those_before_is_shortened_to_a_few_times_their_median() -> None:
    network = net()
    bound = Clip(network)
    for _ in range(FEWEST_STEPS):
        give(network, 0.01)
        bound(list(network.parameters()))
    usual = math.hypot(*(float(g.norm()) for g in gradients(network)))
    give(network, 0.9)
    bound(list(network.parameters()))
    assert math.hypot(*(float(g.norm()) for g in gradients(network))) == pytest.approx(USUAL * usual, rel=1e-4)


def test_what_is_not_finite_moves_nothing() -> None:
    network = net()
    bound = Clip(network)
    give(network, 0.1)
    network[1].weight.grad[0] = float("nan")
    assert not bound(list(network.parameters()))
    assert all(not g.any() for g in gradients(network))
    for parameter in network.parameters():
        parameter.grad = None
    assert bound(list(network.parameters())), "nothing has a gradient: nothing is wrong"


def test_layers_that_grow_are_measured_anew() -> None:
    network = net()
    bound = Clip(network)
    give(network, 0.9)
    bound(list(network.parameters()))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    for step in range(1, MEASURED_EVERY + 1):
        give(network, 0.9)
        before = gradients(network)
        bound(list(network.parameters()))
        same = all(torch.equal(a, b) for a, b in zip(before, gradients(network), strict=True))
        assert same == (step == MEASURED_EVERY)
