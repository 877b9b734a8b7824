"""A ratio that can't be reached is said with the one that was."""

from __future__ import annotations

from torch import nn

from pocketfit.core.plan.prune import Prune
from pocketfit.passes.prune import prune_channels
from pocketfit.passes.prune.reachable_ratio import NOTHING_TO_PRUNE
from tests.passes import small_networks as nets


def said(network: nn.Module, settings: Prune) -> list[str]:
    model = nets.model_of(network)
    return [s for s in prune_channels.apply(model, settings).findings if "were asked for" in s or s == NOTHING_TO_PRUNE]


def test_the_ratio_that_was_reached_is_said() -> None:
    narrow = nn.Sequential(nets.cbr(3, 8), nets.cbr(8, 16), nets.cbr(16, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (sentence,) = said(nn.Sequential(*narrow, nn.Linear(16, 5)), Prune(0.99))
    assert "99 % of the channels that can go were asked for, and 50 % went: 1.0, 2.0 keep one block of 8" in sentence


def test_layers_narrower_than_a_block_are_named() -> None:
    narrow = nn.Sequential(nets.cbr(3, 8), nets.cbr(8, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    (sentence,) = said(narrow, Prune(0.5))
    assert "50 % of the channels that can go were asked for, and 0 % went: 1.0 keeps" in sentence


def test_rounding_to_blocks_is_not_worth_a_sentence() -> None:
    assert not said(nets.Residual(), Prune(0.3))
    assert not said(nets.Residual(), Prune(0.5))


def test_exact_widths_are_no_ratio() -> None:
    assert not said(nets.Residual(), Prune(0.0, keep=(("a.0", 1),)))


def test_a_network_of_which_nothing_can_go_says_so() -> None:
    flat = nn.Sequential(nets.cbr(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    assert said(flat, Prune(0.5)) == [NOTHING_TO_PRUNE]
    assert not said(flat, Prune(0.0))
