"""The network without wrappers, with the weights that its layers compute with."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from pocketfit.core.errors import UserError
from pocketfit.sources.models.unwrap import bare, computing, copied


def test_a_plain_network_is_itself_and_put_into_eval_mode() -> None:
    network = nn.Sequential(nn.Linear(3, 2))
    assert bare(network) is network and not network.training


def test_wrappers_around_and_inside_are_taken_off() -> None:
    body = nn.Linear(3, 3)
    network = nn.DataParallel(nn.Sequential(nn.DataParallel(body), torch.compile(nn.Linear(3, 2), backend="eager")))
    found = bare(network)
    assert [type(layer) for layer in found] == [nn.Linear, nn.Linear]
    assert list(found.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert isinstance(network.module[0], nn.DataParallel), "what was handed over stays as it is"


def test_a_parametrization_of_ones_own_is_settled_and_the_given_network_keeps_it() -> None:
    class Symmetric(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight.triu() + weight.triu(1).T

    network = nn.Sequential(nn.Linear(3, 3))
    parametrize.register_parametrization(network[0], "weight", Symmetric())
    given = torch.randn(2, 3)
    wanted = network(given)
    found = bare(network)
    assert torch.equal(network(given), wanted) and torch.equal(found(given), wanted)
    assert type(found[0]) is nn.Linear and torch.equal(found[0].weight, network[0].weight)
    assert isinstance(found[0].weight, nn.Parameter) and found[0].weight.is_leaf
    assert parametrize.is_parametrized(network[0])


def test_masks_become_zeros() -> None:
    network = nn.Sequential(nn.Linear(4, 4))
    prune.random_unstructured(network[0], "weight", amount=0.5)
    found = bare(network)
    assert int((found[0].weight == 0).sum()) == 8 and sorted(found.state_dict()) == ["0.bias", "0.weight"]
    assert prune.is_pruned(network)
    assert computing(nn.DataParallel(network)) == ("0",) and computing(found) == ()


def test_tensors_with_a_history_are_copied_by_value() -> None:
    network = nn.Linear(3, 2)
    network.seen = [network(torch.ones(1, 3))]
    found = copied(network)
    assert torch.equal(found.seen[0], network.seen[0]) and found.seen[0].grad_fn is None


def test_what_cannot_be_copied_is_refused() -> None:
    network = nn.DataParallel(nn.Sequential(nn.Linear(3, 2)))
    network.module[0].lock = threading.Lock()
    with pytest.raises(UserError, match="Sequential cannot be copied"):
        copied(network.module)
