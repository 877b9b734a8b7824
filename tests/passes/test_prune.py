"""Pruned networks: exactly the unpruned ones without the removed channels, smaller, at the multiples asked for."""

import numpy as np
import pytest
import small_nets as nets
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketfit import zoo
from pocketfit.core.errors import UserError
from pocketfit.core.plan import Prune
from pocketfit.passes import prune
from pocketfit.passes.graph import trace


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def expected(model, graph, settings):
    """The unpruned network with the channels that `settings` removes set to zero."""
    removed = prune.removed_ids(model.network, graph, prune._ratios(graph, settings), settings)
    return nets.masked(model.network, graph, np.concatenate(list(removed.values())))


def assert_is_masked(model, graph, pruned, settings):
    images = nets.pictures(model)
    with torch.no_grad():
        wanted, got = expected(model, graph, settings)(images), pruned.network(images)
    assert not torch.allclose(wanted, model.network(images), atol=1e-3)
    scale = wanted.abs().max().clamp(min=1)
    torch.testing.assert_close(got / scale, wanted / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("network", nets.EXACT)
def test_pruned_is_the_network_without_the_removed_channels(network):
    model = nets.model_of(network())
    graph = trace(model.network, model.signature)
    for ratio in (0.3, 0.5):
        settings = Prune(ratio, multiple=4)
        pruned = prune.apply(model, settings, graph=graph)
        assert parameters(pruned.network) < parameters(model.network)
        assert_is_masked(model, graph, pruned, settings)


@pytest.mark.parametrize("name", sorted(zoo.ARCHITECTURES))
def test_zoo(name):
    model = nets.model_of(zoo.build(name, classes=10), 32)
    graph = trace(model.network, model.signature)
    for ratio in (0.3, 0.5):
        settings = Prune(ratio, multiple=8)
        pruned = prune.apply(model, settings, graph=graph)
        assert pruned.findings == model.findings
        assert parameters(pruned.network) < (1 - ratio) * 1.1 * parameters(model.network)
        assert_is_masked(model, graph, pruned, settings)
        for row in prune.kept(model, pruned):
            assert row.after == row.before or row.after % 8 == 0, row


def test_first_layer_and_outputs_stay_and_the_model_is_left_alone():
    model = nets.model_of(nets.Residual())
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    pruned = prune.apply(model, Prune(0.5))
    assert [(row.layer, row.before, row.after) for row in prune.kept(model, pruned)] == [
        ("stem.0", 8, 8),
        ("enter.0", 24, 16),
        ("a.0", 32, 16),
        ("b.0", 24, 16),
        ("fc", 5, 5),
    ]
    assert pruned.sha256 != model.sha256
    assert all(torch.equal(before[name], tensor) for name, tensor in model.network.state_dict().items())
    assert pruned.network.a[0].in_channels == 16 and pruned.network.a[1].num_features == 16
    assert prune.apply(model, Prune(0.5)).sha256 == pruned.sha256


def test_groups_of_a_grouped_convolution_stay_equal():
    model = nets.model_of(nets.Grouped())
    pruned = prune.apply(model, Prune(0.5, multiple=16)).network
    assert (pruned.grouped[0].groups, pruned.grouped[0].in_channels, pruned.grouped[0].out_channels) == (4, 16, 32)


@pytest.mark.parametrize(("criterion", "stays"), [("l1", [0, 2, 3, 4]), ("l2", [1, 2, 3, 4])])
def test_criterion(criterion, stays):
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.fc = (
                torch.nn.Conv2d(3, 4, 1),
                torch.nn.Conv2d(4, 5, 1, bias=False),
                torch.nn.Linear(5, 2),
            )

        def forward(self, x):
            return self.fc(self.a(self.stem(x)).mean((2, 3)))

    network = Two()
    rows = [[0.6] * 4, [1.3, 0, 0, 0], [2.0] * 4, [2.0] * 4, [2.0] * 4]  # sums 2.4 and 1.3, squares 1.44 and 1.69
    with torch.no_grad():
        network.a.weight.copy_(torch.tensor(rows).view(5, 4, 1, 1))
    model = nets.model_of(network)
    pruned = prune.apply(model, Prune(0.2, criterion, multiple=1)).network
    assert torch.equal(pruned.a.weight.flatten(1), torch.tensor(rows)[stays])


@given(channels=st.integers(1, 2048), ratio=st.floats(0, 0.99), multiple=st.integers(1, 32), per_id=st.integers(1, 8))
def test_channels_kept_is_the_nearest_multiple(channels, ratio, multiple, per_id):
    count = prune.channels_kept(channels, ratio, multiple, per_id)
    assert 1 <= count <= channels
    if count < channels:
        possible = [k for k in range(1, channels + 1) if k * per_id % multiple == 0]
        target = (1 - ratio) * channels
        assert count in possible
        assert abs(count - target) <= min(abs(k - target) for k in possible) + 1e-6


def test_patterns_overrule_the_ratio_and_the_first_one_wins():
    model = nets.model_of(nets.Residual())
    pruned = prune.apply(model, Prune(0.5, layers=(("^a", 0.0), ("a|b", 0.3))))
    assert [(r.layer, r.after) for r in prune.kept(model, pruned)][1:4] == [("enter.0", 16), ("a.0", 32), ("b.0", 16)]


def test_pattern_without_a_match_is_a_sentence():
    model = nets.model_of(nets.Residual())
    with pytest.raises(UserError, match=r"'nowhere' matches no .* for example stem\.0, enter\.0"):
        prune.apply(model, Prune(0.5, layers=(("nowhere", 0.1),)))
    with pytest.raises(UserError, match=r"'\(' is not a regular expression"):
        prune.apply(model, Prune(0.5, layers=(("(", 0.1),)))


def test_channels_whose_number_is_written_into_the_forward_stay_and_it_is_said():
    model = nets.model_of(nets.HardCoded())
    pruned = prune.apply(model, Prune(0.5))
    assert [(r.layer, r.after) for r in prune.kept(model, pruned)] == [
        ("stem.0", 8),
        ("a.0", 16),
        ("fc1", 16),
        ("fc2", 5),
    ]
    assert len(pruned.findings) == 1 and "a.0" in pruned.findings[0] and "fails" in pruned.findings[0]


def test_network_that_only_runs_at_its_own_size_is_a_sentence():
    class Stiff(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.fc = nets.cbr(3, 8), nets.cbr(8, 16), torch.nn.Linear(16, 5)

        def forward(self, x):
            return self.fc(self.a(self.stem(x)).mean((2, 3)).view(-1, 16))

    with pytest.raises(UserError, match=r"Stiff does not run with fewer channels: .* take sizes from x\.shape"):
        prune.apply(nets.model_of(Stiff()), Prune(0.5))


def test_unknown_operator_is_told_and_the_rest_is_pruned():
    model = nets.model_of(nets.Unknown())
    pruned = prune.apply(model, Prune(0.5))
    assert [(r.layer, r.after) for r in prune.kept(model, pruned)][1:3] == [("seen.0", 8), ("hidden.0", 16)]
    assert any("cumsum" in sentence for sentence in pruned.findings)


def test_layer_norm_networks_run_smaller():
    model = nets.model_of(nets.Channelwise())
    pruned = prune.apply(model, Prune(0.5)).network
    assert pruned.norm.normalized_shape == (16,) and pruned.mlp.out_features == 24
    assert pruned(nets.pictures(model)).shape == (3, 5)


def test_what_was_learned_about_changed_layers_is_forgotten():
    import dataclasses

    model = dataclasses.replace(nets.model_of(nets.Residual()), learned={"stem.0": 1, "a.0": 2})
    assert prune.apply(model, Prune(0.5)).learned == {"stem.0": 1}
