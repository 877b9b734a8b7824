"""What moves the weights: matrices in every direction alike, all others as PyTorch's SGD moves them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pocketfit.passes.train import optimizers
from pocketfit.passes.train.optimizers import MATRIX_MOMENTUM, MATRIX_SHARE, MOMENTUM, WEIGHT_DECAY, Optimizer


class Net(nn.Module):
    """One layer of each kind; all but `wide` and `narrow` are SGD's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 24, 1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.narrow = nn.Conv2d(24, 8, (1, 1), bias=False)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.head = nn.Linear(8, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        inside = self.depthwise(self.wide(self.norm(self.stem(image))))
        return self.head(self.grouped(self.narrow(inside)).mean((2, 3)))


MATRICES = ("wide.weight", "narrow.weight")


def network(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def with_gradients(given: nn.Module, seed: int = 0) -> None:
    torch.manual_seed(seed)
    (10 * given(torch.rand(4, 3, 6, 6))).square().sum().backward()


def changes(after: nn.Module, before: nn.Module) -> dict[str, torch.Tensor]:
    old = dict(before.named_parameters())
    return {name: (new - old[name]).detach() for name, new in after.named_parameters()}


def test_matrices_are_the_pointwise_convolutions_that_see_all_inputs() -> None:
    given = network()
    assert [id(p) for p in optimizers.matrices(given)] == [id(given.get_parameter(name)) for name in MATRICES]
    given.wide.weight.requires_grad_(False)
    assert [id(p) for p in optimizers.matrices(given)] == [id(given.narrow.weight)]
    twice = nn.Sequential(given.narrow, given.narrow)
    assert len(optimizers.matrices(twice)) == 1


def steep_in_one_direction(weight: torch.Tensor, seed: int) -> torch.Tensor:
    """A gradient that is 20 times as large in one direction as in the last, those between on a line."""
    noise = torch.randn(weight.flatten(1).shape, generator=torch.Generator().manual_seed(seed))
    left, values, right = torch.linalg.svd(noise, full_matrices=False)
    return (left * torch.linspace(1, 0.05, len(values)) @ right).view(weight.shape)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_matrix_moves_by_its_share_and_in_all_directions_alike(memory: torch.memory_format) -> None:
    """The oracle is the singular value decomposition; Newton and Schulz come within 0.5 to 1.5 of it."""
    given = network().to(memory_format=memory)
    before = copy.deepcopy(given)
    for seed, name in enumerate(MATRICES):
        weight = given.get_parameter(name)
        weight.grad = steep_in_one_direction(weight, seed).to(memory_format=memory)
    wanted = {
        name: torch.linalg.svd(given.get_parameter(name).grad.flatten(1), full_matrices=False) for name in MATRICES
    }
    Optimizer(given, "muon").step(0.1)
    moved = changes(given, before)
    for name, (left, values, right) in wanted.items():
        size = before.get_parameter(name).detach().norm()
        unit = 0.1 * MATRIX_SHARE * size / len(values) ** 0.5
        along = -(left.T @ moved[name].flatten(1) @ right.T) / unit
        assert ((along.diagonal() > 0.5) & (along.diagonal() < 1.5)).all()
        assert (along - torch.diag(along.diagonal())).abs().max() < 1e-4
        assert float(moved[name].norm() / size) == pytest.approx(0.1 * MATRIX_SHARE, rel=0.3)


def test_matrices_move_as_pytorchs_muon_moves_them() -> None:
    """Over several steps with ever other rates; PyTorch computes in bfloat16, which has three digits."""
    given = network()
    before = copy.deepcopy(given)
    ours = Optimizer(given, "muon")
    theirs = {name: nn.Parameter(before.get_parameter(name).detach().flatten(1).clone()) for name in MATRICES}
    muon = torch.optim.Muon(theirs.values(), momentum=MATRIX_MOMENTUM, weight_decay=0.0)
    torch.manual_seed(1)
    for rate in (0.1, 0.05, 0.2):
        for name, matrix in theirs.items():
            gradient = torch.randn_like(given.get_parameter(name))
            given.get_parameter(name).grad = gradient.clone()
            matrix.grad = gradient.flatten(1).clone()
        for group in muon.param_groups:
            group["lr"] = rate
        ours.step(rate)
        muon.step()
    for name, matrix in theirs.items():
        start = before.get_parameter(name).detach().flatten(1)
        rows, columns = matrix.shape
        theirs_per_ours = max(1.0, rows / columns) ** 0.5 * min(rows, columns) ** 0.5 / (MATRIX_SHARE * start.norm())
        change = (given.get_parameter(name).detach().flatten(1) - start) * theirs_per_ours
        wanted = matrix.detach() - start
        assert (change - wanted).norm() < 0.02 * wanted.norm()


def test_all_others_move_as_sgd_moves_them() -> None:
    """Over several steps with ever other rates, to the bit."""
    given, other = network(), network()
    ours, named = Optimizer(given, "muon"), dict(other.named_parameters())
    kept = [p for name, p in named.items() if name not in MATRICES]
    groups = [{"params": [p for p in kept if p.ndim > 1], "weight_decay": WEIGHT_DECAY}]
    groups += [{"params": [p for p in kept if p.ndim <= 1]}]
    theirs = torch.optim.SGD(groups, lr=1.0, momentum=MOMENTUM, nesterov=True)
    for rate in (0.1, 0.05, 0.2):
        gradients = {name: torch.randn_like(p) for name, p in named.items()}
        for name, gradient in gradients.items():
            given.get_parameter(name).grad = gradient.clone()
            named[name].grad = gradient.clone()
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
        ours.step(rate)
    for name, value in given.named_parameters():
        assert torch.equal(value, named[name]) == (name not in MATRICES), name
        assert value.grad is None


def test_sgd_moves_everything_where_it_is_asked_for() -> None:
    given, other = network(), network()
    with_gradients(given)
    with_gradients(other)
    Optimizer(given, "sgd").step(0.01)
    groups = [{"params": [p for p in other.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY}]
    groups += [{"params": [p for p in other.parameters() if p.ndim <= 1]}]
    torch.optim.SGD(groups, lr=0.01, momentum=MOMENTUM, nesterov=True).step()
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), other.parameters(), strict=True))


def test_earlier_gradients_are_remembered() -> None:
    """After a gradient of many times the next one's size the matrix goes on where that one led."""
    given = network()
    optimizer = Optimizer(given, "muon")
    large = torch.randn(24, 8, 1, 1, generator=torch.Generator().manual_seed(0))
    given.wide.weight.grad = 1000 * large
    optimizer.step(0.1)
    before = given.wide.weight.detach().clone()
    given.wide.weight.grad = torch.randn(24, 8, 1, 1, generator=torch.Generator().manual_seed(1))
    optimizer.step(0.1)
    moved = given.wide.weight.detach() - before
    cosine = nn.functional.cosine_similarity(-moved.flatten(), large.flatten(), dim=0)
    assert MATRIX_MOMENTUM > 0 and cosine > 0.8


def test_weights_that_something_else_changed_are_moved_from_where_they_are() -> None:
    """As masks do, which put zeros back after every step."""
    given = network()
    optimizer = Optimizer(given, "muon")
    with_gradients(given)
    with torch.no_grad():
        given.wide.weight.zero_()
    optimizer.step(0.1)
    with torch.no_grad():
        largest = given.wide.weight.abs().max()
        assert 0 < largest < 0.1 * MATRIX_SHARE


def test_what_has_no_gradient_and_what_is_zero_stays() -> None:
    given = network()
    with torch.no_grad():
        given.narrow.weight.zero_()
    before = copy.deepcopy(given)
    optimizer = Optimizer(given, "muon")
    given.narrow.weight.grad = torch.ones_like(given.narrow.weight)
    optimizer.step(0.1)
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), before.parameters(), strict=True))
