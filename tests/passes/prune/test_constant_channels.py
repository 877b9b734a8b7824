"""Channels that give the same for every input: found, moved exactly, or not called dead."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketfit.core.plan.prune import Prune
from pocketfit.passes.graph.channel_graph import trace
from pocketfit.passes.prune import constant_channels, criteria, prune_channels
from tests.passes import small_networks as nets


class Reading(nn.Module):
    """Two convolutions; `a` has a norm, whose first two channels have a factor of 0 and a shift of 2."""

    def __init__(self, reader: nn.Module, *, act: object = F.relu, gamma: float = 0.0) -> None:
        super().__init__()
        self.stem, self.a, self.norm, self.reader = nets.cbr(3, 4), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), reader
        self.act, self.gamma = act, gamma

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self.act(self.norm(self.a(self.stem(x)))))  # type: ignore[operator]

    def settled(self) -> Reading:
        with torch.no_grad():
            self.norm.weight[:2], self.norm.bias[:2] = self.gamma, 2.0
        return self


def model(reader: nn.Module, **settings: object):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    network = nets.with_statistics(Reading(reader, **settings))  # type: ignore[arg-type]
    return nets.model_from_module(network.settled(), preprocess=nets.Preprocess(height=8, width=8))


def head() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


TWO_LESS = Prune(0.0, "bn-scale", keep=(("a", 4),))
EXACT = {
    "no padding": nn.Sequential(nn.Conv2d(6, 5, 3), *head()),
    "no bias, a norm behind": nn.Sequential(nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5), *head()),
    "flattened": nn.Sequential(nn.Flatten(), nn.Linear(6 * 64, 5)),
    "pooled, then a linear layer": nn.Sequential(
        nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    ),
    "depthwise on the way": nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 5, 1), *head()),
}


@pytest.mark.parametrize("reader", EXACT)
@pytest.mark.parametrize("act", [F.relu, F.hardswish, torch.sigmoid])
def test_what_they_give_is_moved_and_answers_stay(reader: str, act: object) -> None:
    before = model(EXACT[reader], act=act)
    after = prune_channels.apply(before, TWO_LESS)
    assert after.network.a.out_channels == 4
    given = nets.pictures(before)
    with torch.no_grad():
        torch.testing.assert_close(after.network(given), before.network(given), rtol=1e-4, atol=1e-5)
    assert any("2 of the removed channels gave the same for every input" in s for s in after.findings)


def test_they_are_moved_whatever_ranks_them_last() -> None:
    before = model(EXACT["no padding"])
    with torch.no_grad():
        before.network.a.weight[:2] *= 1e-3
    after = prune_channels.apply(before, Prune(0.0, "l1", keep=(("a", 4),)))
    given = nets.pictures(before)
    with torch.no_grad():
        torch.testing.assert_close(after.network(given), before.network(given), rtol=1e-4, atol=1e-5)


class TwoCalls(nn.Module):
    """One layer reads the constant channels, and in another place channels that vary."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(6, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(torch.sigmoid(self.conv(x))).mean((2, 3)))


torch.manual_seed(0)
NOT_EXACT = {
    "a layer that is called twice": TwoCalls(),
    "zeros at the border": nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), *head()),
    "no bias and no norm": nn.Sequential(nn.Conv2d(6, 5, 3, bias=False), *head()),
    "depthwise with zeros at the border": nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU(), nn.Conv2d(6, 5, 1), *head()
    ),
}


@pytest.mark.parametrize("reader", NOT_EXACT)
def test_where_that_is_not_exact_they_are_not_ranked_as_dead(reader: str) -> None:
    before = model(NOT_EXACT[reader])
    graph = trace(before.network, before.signature)
    scores = criteria.group_scores(before, graph, TWO_LESS)["a"]
    assert scores[:2].min() >= scores[2:].min() > 0
    assert any("were not ranked as dead ones" in s for s in prune_channels.apply(before, TWO_LESS).findings)


def test_nearly_constant_channels_count_as_constant() -> None:
    before = model(EXACT["no padding"], gamma=1e-4)
    after = prune_channels.apply(before, TWO_LESS)
    given = nets.pictures(before)
    with torch.no_grad():
        change = float((after.network(given) - before.network(given)).abs().max())
    assert 0 < change < 1e-3


def test_a_shift_that_relu_takes_away_is_dead() -> None:
    before = model(NOT_EXACT["zeros at the border"])
    with torch.no_grad():
        before.network.norm.bias[:2] = -2.0
    assert not constant_channels.held(constant_channels.readers(before))
    after = prune_channels.apply(before, TWO_LESS)
    given = nets.pictures(before)
    with torch.no_grad():
        torch.testing.assert_close(after.network(given), before.network(given), rtol=1e-4, atol=1e-5)


def test_a_network_without_any_is_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nets.model_of(nets.Residual())
    monkeypatch.setattr(constant_channels, "followed", lambda *_: pytest.fail("there is nothing to look for"))
    assert constant_channels.readers(plain) == ()
