"""Zeros: exactly as many as asked, those with the lowest scores, and they stay where other passes follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pocketfit.core.errors import UserError
from pocketfit.core.learned import Learned
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.prune import Prune, Sparsify
from pocketfit.core.plan.quantize import CorrectBias, Equalize
from pocketfit.core.samples import Samples
from pocketfit.passes.graph.fold_batch_norm import fold_batch_norm
from pocketfit.passes.prune import prune_channels, sparsify
from pocketfit.passes.prune.sparsify import lowest_of_all, lowest_of_fours, zeros_of
from pocketfit.passes.quantize import bias_correction
from pocketfit.passes.quantize.equalize import equalize
from tests.passes.quantize.test_rounding import model_of, noise


class Net(nn.Module):
    """A first layer, a depthwise one, one whose 18 inputs don't come in fours; stored in another order than called."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(24, 6)
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, groups=16, bias=False), nn.BatchNorm2d(16))
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16))
        self.wide, self.odd = nn.Conv2d(16, 18, 3), nn.Conv2d(18, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.deep(F.relu(self.stem(x))))
        return self.fc(F.relu(self.odd(F.relu(self.wide(x)))).mean((2, 3)))


def made(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    network = Net()
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(16, 3, 12, 12))
        network.deep[1].weight.uniform_(-1, 1)  # negative gains turn zeros into -0
    return model_of(network, 12)


def labelled(count: int = 48, seed: int = 0) -> Samples:
    pictures = noise(count, 12, seed)
    return replace(pictures, labels=np.arange(count) % 6, split="train")


def weight_of(model: Model, layer: str) -> Tensor:
    weight: Tensor = model.network.get_submodule(layer).weight.detach()
    return weight


SPARSE = ("wide", "odd", "fc")


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.87])
def test_exactly_so_many_and_the_smallest(sparsity: float) -> None:
    model = made()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    found = sparsify.apply(model, Sparsify(sparsity), None)
    assert found.learned.sparse == SPARSE and found.sha256 != model.sha256
    for layer in SPARSE:
        old, new = weight_of(model, layer), weight_of(found, layer)
        assert int((new == 0).sum()) == round(sparsity * old.numel())
        assert old[new == 0].abs().max() <= old[new != 0].abs().min()
        assert torch.equal(new[new != 0], old[new != 0]), "the others are as they were"
    for layer in ("stem.0", "deep.0"):
        assert torch.equal(weight_of(found, layer), weight_of(model, layer))
    (finding,) = found.findings[len(model.findings) :]
    assert "deep.0, stem.0" in finding and "keep all their weights" in finding
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())
    assert model.learned == Learned()


@given(st.integers(0, 10**6), st.floats(0, 0.95))
def test_lowest_scores_against_sorting(seed: int, share: float) -> None:
    scores = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
    lowest = lowest_of_all(scores, share, "")
    assert sorted(scores[lowest].tolist()) == sorted(scores.flatten().tolist())[: round(share * 20)]


@given(st.integers(0, 10**6), st.sampled_from([1, 2]), st.sampled_from([0, 1]))
def test_fours_against_a_loop(seed: int, kept: int, axis: int) -> None:
    scores = torch.randn(8, 8, 2, generator=torch.Generator().manual_seed(seed))
    lowest = lowest_of_fours(scores, kept, axis).movedim(axis, 0)
    rows = scores.movedim(axis, 0)
    for start in (0, 4):
        for other in range(8):
            for tap in range(2):
                four = rows[start : start + 4, other, tap].tolist()
                expected = [value < sorted(four)[4 - kept] for value in four]
                assert lowest[start : start + 4, other, tap].tolist() == expected


@pytest.mark.parametrize(("pattern", "kept"), [("2:4", 2), ("1:4", 1)])
def test_patterns_lie_along_the_inputs(pattern: Any, kept: int) -> None:
    found = sparsify.apply(made(), Sparsify(pattern=pattern), None)
    assert found.learned.sparse == ("wide", "fc")
    for layer in ("wide", "fc"):
        fours = weight_of(found, layer).movedim(1, -1).unflatten(-1, (-1, 4))
        assert ((fours != 0).sum(-1) == kept).all()
    assert any("odd keeps all weights" in finding for finding in found.findings)
    assert (weight_of(found, "odd") != 0).all()


def test_a_transposed_convolution_has_its_inputs_in_front() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3), nn.Flatten(), nn.Linear(864, 2))
    found = sparsify.apply(model_of(network, 12), Sparsify(pattern="2:4"), None)
    fours = weight_of(found, "2").movedim(0, -1).unflatten(-1, (-1, 4))
    assert ((fours != 0).sum(-1) == 2).all()


def test_patterns_of_names_overrule() -> None:
    settings = Sparsify(0.5, layers=(("^deep", 0.25), ("odd", 0.0), ("^o|^w", 0.75)))
    found = sparsify.apply(made(), settings, None)
    shares = {layer: zeros / count for layer, (zeros, count) in zeros_of(found.network).items()}
    assert shares == {"fc": 0.5, "deep.0": 0.25, "stem.0": 0.0, "wide": 0.75, "odd": 0.0}
    assert found.learned.sparse == ("deep.0", "wide", "fc")
    assert not any("deep.0" in finding for finding in found.findings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (Sparsify(0.5, layers=(("layer9", 0.5),)), "'layer9' matches no convolution or linear layer.*stem.0, deep.0"),
        (Sparsify(pattern="2:4", layers=(("fc", 0.8),)), "makes 0.5 of a layer's weights zero.*cannot have 0.8"),
        (Sparsify(0.999), "leave 'odd' none of its 432 weights"),
        (Sparsify(0.5, criterion="movement"), "give labelled samples"),
    ],
)
def test_what_cannot_be_done_is_said(settings: Sparsify, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        sparsify.apply(made(), settings, None)


def test_a_pattern_that_is_none_is_refused_where_the_settings_are_made() -> None:
    with pytest.raises(UserError, match=r'"\(" is no regular expression'):
        Sparsify(0.5, layers=(("(", 0.5),))


def test_movement_keeps_what_the_loss_pulls_away_from_zero() -> None:
    """Against finite differences: shrinking a weight by a share e changes the loss by -e w dL/dw = e * score."""
    model, samples = made(), labelled()
    settings = Sparsify(0.5, criterion="movement", samples=32, layers=(("wide|odd", 0.0),))
    counts: list[tuple[int, int]] = []
    found = sparsify.apply(model, settings, samples, progress=lambda *done: counts.append(done))
    assert counts == [(32, 32)]
    rows = np.sort(np.random.default_rng(0).permutation(48)[:32])
    network = model.network.double()
    inputs, labels = torch.from_numpy(samples.inputs(rows)).double(), torch.from_numpy(samples.labels[rows])
    weight, scores = network.fc.weight.detach().clone(), torch.zeros(6, 24, dtype=torch.float64)
    with torch.no_grad():
        for place in np.ndindex(6, 24):
            losses = []
            for share in (1 - 1e-4, 1 + 1e-4):
                network.fc.weight.copy_(weight)
                network.fc.weight[place] *= share
                losses.append(F.cross_entropy(network(inputs), labels, reduction="sum"))
            scores[place] = (losses[0] - losses[1]) / 2e-4
    lost = weight_of(found, "fc") == 0
    assert int(lost.sum()) == 72
    assert scores[lost].max() <= scores[~lost].min() + 1e-6
    assert sparsify.apply(made(), settings, samples).sha256 == found.sha256


def test_zeros_that_are_there_count_and_stay() -> None:
    once = sparsify.apply(made(), Sparsify(0.5), None)
    twice = sparsify.apply(once, Sparsify(0.75, criterion="movement"), labelled())
    for layer in SPARSE:
        old, new = weight_of(once, layer) == 0, weight_of(twice, layer) == 0
        assert new[old].all() and int(new.sum()) == round(0.75 * new.numel())
    assert twice.learned.sparse == SPARSE


def test_zeros_survive_folding_equalization_and_bias_correction() -> None:
    torch.manual_seed(0)
    found = sparsify.apply(made(), Sparsify(0.6, layers=(("deep.0|stem.0", 0.4),)), None)
    zero = {layer: weight_of(found, layer) == 0 for layer in found.learned.sparse}
    grid = ExportSettings("litert", "int8").grid
    assert grid is not None and len(zero) == 5
    folded = replace(found, network=fold_batch_norm(found.network, found.signature))
    equalized = equalize.apply(found, Equalize(samples=24), noise(24, 12, 1))
    assert not torch.equal(weight_of(equalized, "wide"), weight_of(folded, "wide"))
    corrected = bias_correction.apply(equalized, CorrectBias(samples=24), noise(24, 12, 1), grid)
    for after in (folded, equalized, corrected):
        assert after.learned.sparse == found.learned.sparse
        for layer, where in zero.items():
            assert torch.equal(weight_of(after, layer) == 0, where), layer


def test_pruning_behind_keeps_the_zeros_of_the_channels_that_stay() -> None:
    found = sparsify.apply(made(), Sparsify(0.6), None)
    smaller = prune_channels.apply(found, Prune(0.5, multiple=4))
    assert smaller.learned.sparse == SPARSE
    for layer in SPARSE:
        left, before = weight_of(smaller, layer), weight_of(found, layer)
        assert left.numel() < before.numel()
        assert int((left == 0).sum()) > 0.3 * left.numel()
        assert set(left[left != 0].tolist()) <= set(before[before != 0].tolist())
    with torch.no_grad():
        assert smaller.network(torch.randn(2, 3, 12, 12)).shape == (2, 6)


def broken(model: Model) -> list[str]:
    return [finding for finding in model.findings if "no longer hold" in finding]


def test_pruning_behind_a_pattern_says_which_layers_have_lost_it() -> None:
    """fc loses inputs, and with them its fours; wide loses outputs, and its fours stay."""
    found = sparsify.apply(made(), Sparsify(pattern="2:4"), None)
    assert found.learned.patterns == {"wide": "2:4", "fc": "2:4"} and not broken(found)
    smaller = prune_channels.apply(found, Prune(0.5, multiple=4))
    fours = (weight_of(smaller, "fc") != 0).unflatten(-1, (-1, 4)).sum(-1)
    assert fours.max() > 2, "otherwise there is nothing to say"
    assert broken(smaller) == [
        "fc no longer holds the pattern 2:4 along the inputs, because a pass behind sparsify has changed the fours: put"
        " sparsify behind the pass that did so (prune)."
    ]
    again = sparsify.apply(smaller, Sparsify(pattern="2:4"), None)
    assert not broken(again), "what was said before does not hold any more"


def test_the_weights_decide_and_not_the_pass() -> None:
    """Whole fours that go leave whole fours; inputs that are no multiple of four are none."""
    found = sparsify.apply(made(), Sparsify(pattern="1:4"), None)
    keep_first = prune_channels.apply(
        found, Prune(0.0, keep=(("odd", 16),)), criterion=lambda *_: np.arange(24.0)[::-1].copy()
    )
    assert keep_first.network.fc.in_features == 16 and not broken(keep_first)
    uneven = prune_channels.apply(
        found, Prune(0.0, keep=(("odd", 18),)), criterion=lambda *_: np.arange(24.0)[::-1].copy()
    )
    assert len(broken(uneven)) == 1 and broken(uneven)[0].startswith("fc no longer holds the pattern 1:4")
    with torch.no_grad():
        found.network.wide.weight.fill_(1.0)
        found.network.fc.weight.fill_(1.0)
    assert sparsify.checked(found).findings[-1].startswith("wide, fc no longer hold the pattern")


def test_without_a_pattern_nothing_is_said() -> None:
    found = sparsify.apply(made(), Sparsify(0.6), None)
    assert not found.learned.patterns and not broken(prune_channels.apply(found, Prune(0.5, multiple=4)))
    denser = sparsify.apply(sparsify.apply(made(), Sparsify(pattern="2:4"), None), Sparsify(0.8), None)
    assert denser.learned.patterns == {"wide": "2:4", "fc": "2:4"} and not broken(denser)
