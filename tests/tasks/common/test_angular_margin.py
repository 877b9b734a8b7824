"""The angular margin against its formula, and what its head learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from pocketfit.tasks.common import angular_margin


def test_the_loss_is_that_of_the_paper() -> None:
    """Deng et al. 2019, equation 3, written with angles."""
    angles = torch.tensor([[0.4, 1.2, 1.5], [2.0, 0.9, 1.1]])
    own = torch.tensor([0, 2])
    for row, scale, margin in ((0, 64.0, 0.5), (1, 10.0, 0.3)):
        logits = [scale * math.cos(a) for a in angles[row].tolist()]
        logits[int(own[row])] = scale * math.cos(float(angles[row, own[row]]) + margin)
        expected = (math.log(sum(math.exp(x) for x in logits)) - logits[int(own[row])]) / scale
        found = angular_margin.loss(angles.cos(), own, scale, margin)[row]
        assert float(found) == pytest.approx(expected, abs=1e-4)


def test_a_wider_angle_to_the_own_identity_never_lowers_the_loss() -> None:
    angles = torch.linspace(0.01, math.pi - 0.01, 200)
    cosines = torch.stack([angles.cos(), torch.zeros(200)], 1)
    found = angular_margin.loss(cosines, torch.zeros(200, dtype=torch.int64))
    assert (found.diff() >= -1e-5).all()


def test_a_head_begins_with_the_mean_directions_and_learns() -> None:
    torch.manual_seed(0)
    centres = normalize(torch.randn(3, 8)) + 2.0  # all nearly alike, as an untrained network's
    targets = torch.tensor([4, 7, 9]).repeat(10)
    outputs = centres.repeat(10, 1) + 0.01 * torch.randn(30, 8)
    head = angular_margin.head_of(outputs, targets, torch.tensor([9, 4, 7, 11]))
    assert head.known.tolist() == [4, 7, 9, 11] and head.directions.shape == (4, 8)
    ours = normalize(outputs).view(10, 3, 8).mean(0)
    apart = normalize(ours - ours.mean(0))
    assert torch.allclose((normalize(head.directions)[:3] * apart).sum(1), torch.ones(3), atol=1e-2)
    before = float(head(outputs, targets).detach().mean())
    step = torch.optim.SGD(head.parameters(), lr=1.0)
    for _ in range(20):
        step.zero_grad()
        head(outputs, targets).mean().backward()
        step.step()
    assert float(head(outputs, targets).detach().mean()) < before


def test_a_batch_alone_is_told_apart_by_its_means() -> None:
    outputs = torch.eye(4).repeat(2, 1)
    alike = angular_margin.among_means(outputs, torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]))
    mixed = angular_margin.among_means(outputs, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    assert alike.shape == (8,) and float(alike.max()) < float(mixed.min())
