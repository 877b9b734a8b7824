"""Pruned networks: exactly the unpruned ones without the removed channels, smaller, at the multiples asked for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketfit import zoo
from pocketfit.core.errors import UserError
from pocketfit.core.learned import Learned
from pocketfit.core.plan.prune import Prune
from pocketfit.passes.graph.channel_graph import trace
from pocketfit.passes.prune import criteria, prune_channels
from tests.passes import small_networks as nets


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def expected(model, graph, settings):
    """The unpruned network with the channels that `settings` removes set to zero."""
    counts, _ = prune_channels.counts_kept(graph, settings)
    removed = prune_channels.removed_ids(graph, counts, criteria.group_scores(model, graph, settings))
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
        pruned = prune_channels.apply(model, settings, graph=graph)
        assert parameters(pruned.network) < parameters(model.network)
        assert_is_masked(model, graph, pruned, settings)


@pytest.mark.parametrize("name", sorted(zoo.ARCHITECTURES))
def test_zoo(name):
    model = nets.model_of(zoo.build(name, classes=10), 32)
    graph = trace(model.network, model.signature)
    for ratio in (0.3, 0.5):
        settings = Prune(ratio, multiple=8)
        pruned = prune_channels.apply(model, settings, graph=graph)
        mixed = [f for f in pruned.findings if f not in model.findings]
        assert all("each of them is tied to all others" in f for f in mixed)
        assert bool(mixed) == (name == "shufflenet_v2")
        assert parameters(pruned.network) < (1 - ratio) * 1.1 * parameters(model.network)
        assert_is_masked(model, graph, pruned, settings)
        for row in prune_channels.kept(model, pruned):
            assert row.after == row.before or row.after % 8 == 0, row


def test_first_layer_and_outputs_stay_and_the_model_is_left_alone():
    model = nets.model_of(nets.Residual())
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    pruned = prune_channels.apply(model, Prune(0.5))
    assert [(row.layer, row.before, row.after) for row in prune_channels.kept(model, pruned)] == [
        ("stem.0", 8, 8),
        ("enter.0", 24, 16),
        ("a.0", 32, 16),
        ("b.0", 24, 16),
        ("fc", 5, 5),
    ]
    assert pruned.sha256 != model.sha256
    assert all(torch.equal(before[name], tensor) for name, tensor in model.network.state_dict().items())
    assert pruned.network.a[0].in_channels == 16 and pruned.network.a[1].num_features == 16
    assert prune_channels.apply(model, Prune(0.5)).sha256 == pruned.sha256


def test_groups_of_a_grouped_convolution_stay_equal():
    model = nets.model_of(nets.Grouped())
    pruned = prune_channels.apply(model, Prune(0.5, multiple=16)).network
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
    pruned = prune_channels.apply(model, Prune(0.2, criterion, multiple=1)).network
    assert torch.equal(pruned.a.weight.flatten(1), torch.tensor(rows)[stays])


@given(channels=st.integers(1, 2048), ratio=st.floats(0, 0.99), multiple=st.integers(1, 32), per_id=st.integers(1, 8))
def test_channels_kept_is_the_nearest_multiple(channels, ratio, multiple, per_id):
    count = prune_channels.channels_kept(channels, ratio, multiple, per_id)
    assert 1 <= count <= channels
    if count < channels:
        possible = [k for k in range(1, channels + 1) if k * per_id % multiple == 0]
        target = (1 - ratio) * channels
        assert count in possible
        assert abs(count - target) <= min(abs(k - target) for k in possible) + 1e-6


def test_patterns_overrule_the_ratio_and_the_first_one_wins():
    model = nets.model_of(nets.Residual())
    pruned = prune_channels.apply(model, Prune(0.5, layers=(("^a", 0.0), ("a|b", 0.3))))
    assert [(r.layer, r.after) for r in prune_channels.kept(model, pruned)][1:4] == [
        ("enter.0", 16),
        ("a.0", 32),
        ("b.0", 16),
    ]


def test_exact_widths_overrule_ratio_pattern_and_multiple():
    model = nets.model_of(nets.Residual())
    settings = Prune(0.5, layers=(("^a", 0.0),), keep=(("a.0", 13), ("b.0", 7)))
    graph = trace(model.network, model.signature)
    pruned = prune_channels.apply(model, settings, graph=graph)
    assert widths_of(model, pruned) == {"stem.0": 8, "enter.0": 7, "a.0": 13, "b.0": 7, "fc": 5}
    assert_is_masked(model, graph, pruned, settings)


def widths_of(model, pruned):
    return {row.layer: row.after for row in prune_channels.kept(model, pruned)}


def test_all_of_a_group_and_one_of_it_are_widths():
    model = nets.model_of(nets.Residual())
    pruned = prune_channels.apply(model, Prune(0.5, keep=(("a.0", 32), ("enter.0", 1))))
    assert widths_of(model, pruned) == {"stem.0": 8, "enter.0": 1, "a.0": 32, "b.0": 1, "fc": 5}


def test_first_layer_is_pruned_where_it_is_asked_for_by_name_only():
    model = nets.model_of(nets.Residual())
    pruned = prune_channels.apply(model, Prune(0.0, keep=(("stem.0", 5),)))
    assert widths_of(model, pruned)["stem.0"] == 5 and pruned.network.enter[0].in_channels == 5
    by_pattern = prune_channels.apply(model, Prune(0.0, layers=(("^stem", 0.5),)))
    assert widths_of(model, by_pattern)["stem.0"] == 8
    assert any("'^stem' removes nothing from stem.0" in sentence for sentence in by_pattern.findings)
    assert not prune_channels.apply(model, Prune(0.5, layers=(("^stem", 0.0),))).findings


def test_counts_are_in_channels_of_the_layer():
    model = nets.model_of(nets.Grouped())
    graph = trace(model.network, model.signature)
    pruned = prune_channels.apply(model, Prune(0.0, keep=(("wide.0", 20), ("grouped.0", 16))), graph=graph).network
    assert (pruned.wide[0].out_channels, pruned.grouped[0].out_channels, pruned.grouped[0].groups) == (20, 16, 4)
    with pytest.raises(UserError, match=r"'wide\.0' cannot keep 21 channels: they go by 4 at a time"):
        prune_channels.apply(model, Prune(0.0, keep=(("wide.0", 21),)), graph=graph)


def test_layer_that_makes_several_groups_is_asked_for_by_number():
    class Sum(torch.nn.Module):
        """The first half of a is added to b, the second one to c."""

        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b, self.c = nets.cbr(3, 8), nets.cbr(8, 24), nets.cbr(8, 12), nets.cbr(8, 12)
            self.up, self.fc = nets.cbr(24, 8), torch.nn.Linear(8, 5)

        def forward(self, x):
            x = self.stem(x)
            y = self.a(x) + torch.cat((self.b(x), self.c(x)), 1)
            return self.fc(self.up(y).mean((2, 3)))

    model = nets.model_of(Sum())
    graph = trace(model.network, model.signature)
    assert [w.group for w in prune_channels.widths(graph)] == ["stem.0", "a.0#1", "a.0#2", "up.0"]
    settings = Prune(0.0, keep=(("a.0#1", 5), ("c.0", 9)))
    pruned = prune_channels.apply(model, settings, graph=graph)
    assert widths_of(model, pruned) == {"stem.0": 8, "a.0": 14, "b.0": 5, "c.0": 9, "up.0": 8, "fc": 5}
    assert_is_masked(model, graph, pruned, settings)
    with pytest.raises(UserError, match=r"'a\.0' makes several groups of channels: say which, one of a\.0#1, a\.0#2"):
        prune_channels.apply(model, Prune(0.0, keep=(("a.0", 5),)), graph=graph)


@pytest.mark.parametrize(
    ("keep", "sentence"),
    [
        ((("nosuch", 4),), r"No convolution or linear layer is called 'nosuch'.*for example stem\.0"),
        ((("a.0#2", 4),), r"No convolution or linear layer is called 'a\.0#2'"),
        ((("a.0", 33),), r"'a\.0' cannot keep 33 channels: it has 32"),
        ((("fc", 4),), r"The channels of layer 'fc' can't be pruned, because they are the outputs"),
        ((("enter.0", 8), ("b.0", 16)), r"'b\.0' is asked to keep 16 channels, and another pair .* with enter\.0"),
    ],
)
def test_width_that_cannot_be_is_a_sentence(keep, sentence):
    with pytest.raises(UserError, match=sentence):
        prune_channels.apply(nets.model_of(nets.Residual()), Prune(0.5, keep=keep))


def test_two_pairs_may_agree():
    model = nets.model_of(nets.Residual())
    pruned = prune_channels.apply(model, Prune(0.0, keep=(("enter.0", 9), ("b.0", 9))))
    assert widths_of(model, pruned)["b.0"] == 9


def test_widths_are_what_keep_takes():
    model = nets.model_of(nets.Grouped())
    graph = trace(model.network, model.signature)
    rows = {width.group: width for width in prune_channels.widths(graph)}
    assert {name: (w.channels, w.per_id, w.first) for name, w in rows.items()} == {
        "stem.0": (8, 1, True),
        "wide.0": (32, 4, False),
        "grouped.0": (64, 4, False),
        "last.0": (16, 1, False),
    }
    for name, width in rows.items():
        for count in (width.allowed[0], width.allowed[-1]):
            assert (
                widths_of(model, prune_channels.apply(model, Prune(0.0, keep=((name, count),)), graph=graph))[name]
                == count
            )


def test_width_of_a_layer_whose_number_is_written_into_the_forward_is_a_sentence():
    with pytest.raises(UserError, match=r"Layer 'a\.0' cannot keep fewer channels: without some of them"):
        prune_channels.apply(nets.model_of(nets.HardCoded()), Prune(0.5, keep=(("a.0", 8),)))


def test_ratio_of_one_is_a_sentence():
    for settings in ({"ratio": 1.0}, {"ratio": 0.5, "layers": (("a", 1.0),)}):
        with pytest.raises(UserError, match=r"from 0 up to, but not including, 1$"):
            Prune(**settings)


def test_reshape_that_would_mix_the_remaining_channels_is_refused_by_name():
    """view(n, 8, c // 8) runs with fewer channels, and shuffles them otherwise: nothing but a look shows it."""

    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b, self.c = nets.cbr(3, 8), nets.cbr(8, 32), nets.cbr(32, 16), nets.cbr(16, 16)
            self.fc = torch.nn.Linear(16, 5)

        def forward(self, x):
            x = self.a(self.stem(x))
            n, c, h, w = x.shape
            x = x.view(n, 8, c // 8, h, w).transpose(1, 2).reshape(n, c, h, w)
            return self.fc(self.c(self.b(x)).mean((2, 3)))

    model = nets.model_of(Wide())
    graph = trace(model.network, model.signature)
    assert graph.reshapes
    pruned = prune_channels.apply(model, Prune(0.5, multiple=1), graph=graph)
    assert widths_of(model, pruned) == {"stem.0": 8, "a.0": 32, "b.0": 8, "c.0": 8, "fc": 5}
    assert any("The channels of a.0 can't be pruned" in f and "in another order" in f for f in pruned.findings)
    settings = Prune(0.5, multiple=1, keep=(("a.0", 32),))
    assert_is_masked(model, graph, prune_channels.apply(model, settings, graph=graph), settings)


def test_pattern_without_a_match_is_a_sentence():
    model = nets.model_of(nets.Residual())
    with pytest.raises(UserError, match=r"'nowhere' matches no .* for example stem\.0, enter\.0"):
        prune_channels.apply(model, Prune(0.5, layers=(("nowhere", 0.1),)))
    with pytest.raises(UserError, match=r'"\(" is no regular expression'):
        prune_channels.apply(model, Prune(0.5, layers=(("(", 0.1),)))


def test_channels_whose_number_is_written_into_the_forward_stay_and_it_is_said():
    model = nets.model_of(nets.HardCoded())
    pruned = prune_channels.apply(model, Prune(0.5))
    assert [(r.layer, r.after) for r in prune_channels.kept(model, pruned)] == [
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
        prune_channels.apply(nets.model_of(Stiff()), Prune(0.5))


def test_unknown_operator_is_told_and_the_rest_is_pruned():
    model = nets.model_of(nets.Unknown())
    pruned = prune_channels.apply(model, Prune(0.5))
    assert [(r.layer, r.after) for r in prune_channels.kept(model, pruned)][1:3] == [("seen.0", 8), ("hidden.0", 16)]
    assert any("cumsum" in sentence for sentence in pruned.findings)


def test_layer_norm_networks_run_smaller():
    model = nets.model_of(nets.Channelwise())
    pruned = prune_channels.apply(model, Prune(0.5)).network
    assert pruned.norm.normalized_shape == (16,) and pruned.mlp.out_features == 24
    assert pruned(nets.pictures(model)).shape == (3, 5)


def test_what_was_learned_about_changed_layers_is_forgotten():
    import dataclasses

    model = dataclasses.replace(
        nets.model_of(nets.Residual()), learned=Learned(normal={"stem.0": ((0.0,), (1.0,)), "a.0": ((0.0,), (1.0,))})
    )
    assert set(prune_channels.apply(model, Prune(0.5)).learned.normal) == {"stem.0"}
