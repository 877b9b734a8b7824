"""Criteria: against Torch-Pruning's where they mean the same, against numbers worked out by hand where not."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch.nn import functional as F

from pocketfit.core.errors import UserError
from pocketfit.core.plan.prune import Prune
from pocketfit.passes.graph.channel_graph import trace
from pocketfit.passes.prune import criteria, prune_channels
from tests.passes import small_networks as nets


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    model = nets.model_of(nets.Plain(), 8)
    return model, trace(model.network, model.signature)


def scores_of(model, graph, criterion, data=None, **settings):
    return criteria.group_scores(model, graph, Prune(0.5, criterion, **settings), data)


def theirs(network, importance, layer="a"):
    """Torch-Pruning's scores of one convolution's group."""
    dependencies = tp.DependencyGraph().build_dependency(network, torch.zeros(2, 3, 8, 8))
    convolution = network.get_submodule(layer)[0]
    group = dependencies.get_pruning_group(
        convolution, tp.prune_conv_out_channels, list(range(convolution.out_channels))
    )
    return importance(group).double().numpy()


ONLY_FILTERS = {"group_reduction": "first", "normalizer": None}
ONLY_READERS = {"group_reduction": "gate", "normalizer": None}  # the last of the group: the convolution behind


@pytest.mark.parametrize(
    ("criterion", "importance", "power"),
    [
        ("l1", tp.importance.MagnitudeImportance(p=1, **ONLY_FILTERS), 1),
        ("l2", tp.importance.MagnitudeImportance(p=2, **ONLY_FILTERS), 2),
        ("bn-scale", tp.importance.BNScaleImportance(normalizer=None), 1),
        ("fpgm", tp.importance.FPGMImportance(p=1, **ONLY_FILTERS), 1),
        ("lamp", tp.importance.LAMPImportance(p=2, group_reduction="first", normalizer="lamp"), 1),
    ],
)
def test_weights_as_torch_pruning_scores_them(plain, criterion, importance, power):
    model, graph = plain
    network = copy.deepcopy(model.network)
    if criterion == "fpgm":  # theirs takes distances between |w|, so that both agree on filters that are positive
        with torch.no_grad():
            network.a[0].weight.abs_()
    ours = scores_of(dataclasses.replace(model, network=network), graph, criterion)["a.0"]
    np.testing.assert_allclose(ours**power, theirs(network, importance), rtol=1e-4)


def test_gradients_as_torch_pruning_scores_them(plain):
    model, graph = plain
    samples = nets.samples_of(model, 24)
    network = copy.deepcopy(model.network)
    inputs, labels = torch.from_numpy(samples.array), torch.from_numpy(samples.labels)
    F.cross_entropy(network(inputs), labels).backward()
    wanted = theirs(network, tp.importance.TaylorImportance(multivariable=True, **ONLY_READERS))
    np.testing.assert_allclose(scores_of(model, graph, "taylor", samples)["a.0"], wanted**2, rtol=1e-4)

    importance = tp.importance.HessianImportance(**ONLY_READERS)
    importance._accu_grad = {p: torch.zeros_like(p) for p in network.parameters()}
    for loss in F.cross_entropy(network(inputs), labels, reduction="none"):
        network.zero_grad()
        loss.backward(retain_graph=True)
        for parameter in network.parameters():
            importance._accu_grad[parameter] += parameter.grad.square() / len(labels)
    importance._counter = dict.fromkeys(network.parameters(), 1)
    wanted = theirs(network, importance)
    np.testing.assert_allclose(scores_of(model, graph, "hessian", samples)["a.0"], wanted / 2, rtol=1e-4)


@pytest.mark.parametrize("network", [nets.Line, nets.Squeeze, nets.Residual, nets.Shuffle, nets.Grouped])
def test_taylor_is_the_change_of_the_loss_when_a_channel_fades(network):
    """The channels fade a little in all layers that read them: the loss changes by what first order says."""
    torch.manual_seed(1)
    model = nets.model_of(network(), 8)
    graph, samples = trace(model.network, model.signature), nets.samples_of(model, 16)
    inputs, labels = torch.from_numpy(samples.array).double(), torch.from_numpy(samples.labels)
    group = next(g for g in prune_channels.removable(graph) if len(g.ids) > 3)
    score = scores_of(model, graph, "taylor", samples)[group.name]

    def loss(label, share):
        faded = copy.deepcopy(model.network).double()
        state = faded.state_dict()
        for part in graph.slices:
            place = (part.parameter, part.dim)
            if place in group.members and place not in group.producers and (part.parameter, 0) in graph.producers:
                state[part.parameter].movedim(part.dim, 0)[torch.from_numpy(part.ids == label)] *= 1 - share
        with torch.no_grad():
            return float(F.cross_entropy(faded(inputs), labels))

    for place, label in enumerate(group.ids[:3]):
        slope = (loss(label, 1e-5) - loss(label, -1e-5)) / 2e-5
        assert score[place] == pytest.approx(slope**2, rel=2e-3, abs=1e-12)


def test_taylor_of_a_linear_loss_is_the_whole_change_when_a_channel_is_zeroed(monkeypatch):
    torch.manual_seed(2)
    model = nets.model_of(nets.Line(), 4)
    graph, samples = trace(model.network, model.signature), nets.samples_of(model, 8)
    monkeypatch.setattr(
        "pocketfit.tasks.classification.loss",
        lambda answers, labels: answers[:, 0],
    )
    score = scores_of(model, graph, "taylor", samples)["a"]
    inputs = torch.from_numpy(samples.array)
    group = next(g for g in graph.groups if g.name == "a")
    with torch.no_grad():
        before = model.network(inputs)[:, 0].mean()
        changes = [
            float(nets.masked(model.network, graph, group.ids[i : i + 1])(inputs)[:, 0].mean() - before)
            for i in range(6)
        ]
    np.testing.assert_allclose(score, np.square(changes), rtol=1e-4)


def test_lamp_by_hand(plain):
    model, graph = plain
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        network.a[0].weight.zero_()
        network.a[1].running_mean.zero_(), network.a[1].bias.zero_()  # else channels without weights give their shift
        for channel, square in enumerate([4.0, 1.0, 9.0, 1.0]):
            network.a[0].weight[channel, 0, 0, 0] = square**0.5
    score = scores_of(dataclasses.replace(model, network=network), graph, "lamp")["a.0"]
    np.testing.assert_allclose(score[:4], [4 / 13, 1 / 15, 1, 1 / 14], rtol=1e-6)  # of equals the first goes first
    assert (score[4:] == 0).all()


def test_fpgm_by_hand(plain):
    """Filters 0 and 1 are alike, and 2 lies between them and the others."""
    model, graph = plain
    network = copy.deepcopy(model.network)
    line = [0, 0, 3, 10, 10, 10, 10, 10, 10, 10, 10, -10]
    with torch.no_grad():
        network.a[0].weight.zero_()
        network.a[0].weight[:, 0, 0, 0] = torch.tensor(line, dtype=torch.float32)
    score = scores_of(dataclasses.replace(model, network=network), graph, "fpgm")["a.0"]
    np.testing.assert_allclose(score, [sum(abs(x - y) for y in line) for x in line], atol=1e-4)


def test_activation_and_rank_by_hand():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.fc = torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1), torch.nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(F.relu(self.a(self.stem(x))).mean((2, 3)))

    network = Two()
    with torch.no_grad():
        for layer in (network.stem, network.a):
            layer.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            layer.bias.zero_()
    model = nets.model_of(network, 4)
    graph = trace(model.network, model.signature)
    maps = torch.stack([torch.eye(4), torch.ones(4, 4) * 2, -torch.eye(4)])[None].repeat(3, 1, 1, 1)
    maps[2] = 0
    samples = dataclasses.replace(nets.samples_of(model, 3), array=maps.numpy())
    # 3 samples, so that a batch of 2 is half full, and the last one is empty: means are taken over three
    np.testing.assert_allclose(scores_of(model, graph, "activation", samples)["a"], [1 / 6, 4 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(scores_of(model, graph, "activation-rank", samples)["a"], [8 / 3, 2 / 3, 0])


@pytest.mark.parametrize("network", nets.EXACT)
def test_every_criterion_scores_every_structure_and_the_same_each_time(network):
    model = nets.model_of(network())
    graph, samples = trace(model.network, model.signature), nets.samples_of(model, 6)
    for criterion in criteria.CRITERIA:
        score, again = (scores_of(model, graph, criterion, samples) for _ in range(2))
        assert set(score) == {group.name for group in graph.groups if group.prunable}
        for name, values in score.items():
            assert values.dtype == np.float64
            np.testing.assert_array_equal(values, again[name])


def test_random_follows_its_seed_and_differs_between_groups(plain):
    model, graph = plain
    one, same, other = (scores_of(model, graph, "random", seed=seed) for seed in (1, 1, 2))
    assert one["a.0"].tolist() == same["a.0"].tolist() != other["a.0"].tolist()
    assert one["a.0"][:10].tolist() != one["b.0"].tolist()


def test_network_and_gradients_are_left_alone(plain):
    model, graph = plain
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    for criterion in criteria.DATA_DRIVEN:
        scores_of(model, graph, criterion, nets.samples_of(model, 4))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.network.state_dict().items())
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_unlabelled_samples_take_the_networks_own_answers_and_it_is_said(plain):
    model, graph = plain
    unlabelled = nets.samples_of(model, 8, labels=False)
    with torch.no_grad():
        own = model.network(torch.from_numpy(unlabelled.array)).argmax(1).numpy()
    labelled = dataclasses.replace(unlabelled, labels=own)
    one, other = (scores_of(model, graph, "taylor", samples)["a.0"] for samples in (unlabelled, labelled))
    np.testing.assert_array_equal(one, other)
    findings = prune_channels.apply(model, Prune(0.5, "taylor", multiple=1), unlabelled, graph=graph).findings
    assert any("8 of them without a label" in sentence for sentence in findings)


def test_samples_are_drawn_by_the_seed(plain):
    model, graph = plain
    samples = nets.samples_of(model, 20)
    one, other = (scores_of(model, graph, "activation", samples, samples=5, seed=s)["a.0"] for s in (0, 1))
    rows = np.sort(np.random.default_rng(0).permutation(20)[:5])
    by_hand = scores_of(model, graph, "activation", samples.take(rows))["a.0"]
    np.testing.assert_allclose(one, by_hand, rtol=1e-6)
    assert not np.allclose(one, other)


def test_batch_norms_that_are_missing_are_said():
    model = nets.model_of(nets.Squeeze())
    pruned = prune_channels.apply(model, Prune(0.5, "bn-scale"))
    assert any("No batch norm follows fc1" in sentence for sentence in pruned.findings)
    with pytest.raises(UserError, match="'bn-scale' finds no batch norm"):
        prune_channels.apply(nets.model_of(nets.Line()), Prune(0.5, "bn-scale", multiple=1))


def test_a_function_of_the_users_own(plain):
    model, graph = plain

    def backwards(group, statistics):
        assert statistics.makes().shape[0] == statistics.reads().shape[0] == len(group.ids)
        return np.arange(len(group.ids), 0, -1)

    pruned = prune_channels.apply(model, Prune(0.5, multiple=4), criterion=backwards, graph=graph).network
    torch.testing.assert_close(pruned.a[0].weight, model.network.a[0].weight[:8], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        (lambda group: np.full(len(group.ids), np.nan), "'mine' gives NaN or infinity for layer 'a.0'"),
        (lambda group: np.full(len(group.ids), np.inf), "'mine' gives NaN or infinity for layer 'a.0'"),
        (lambda group: np.zeros(3), r"'mine' gives scores of shape \(3,\) for layer 'a.0', which has 12 channels"),
        (lambda group: None, "'mine' gives"),
        (lambda group: ["much"] * len(group.ids), "'mine' gives no numbers for layer 'a.0'"),
    ],
)
def test_unsound_scores_are_a_sentence(plain, scores, sentence):
    model, graph = plain

    def mine(group, statistics):
        return scores(group)

    with pytest.raises(UserError, match=sentence):
        prune_channels.apply(model, Prune(0.5), criterion=mine, graph=graph)


def test_nan_from_the_network_itself_is_a_sentence(plain):
    model, graph = plain
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        network.a[0].weight[3] = float("nan")
    with pytest.raises(UserError, match=r"'l2' gives NaN or infinity for layer 'a\.0'"):
        prune_channels.apply(dataclasses.replace(model, network=network), Prune(0.5), graph=graph)


def test_data_that_does_not_fit_is_a_sentence(plain):
    model, graph = plain
    for criterion in criteria.DATA_DRIVEN:
        with pytest.raises(UserError, match=f"'{criterion}' looks at samples, and there are none"):
            prune_channels.apply(model, Prune(0.5, criterion), graph=graph)
    samples = dataclasses.replace(nets.samples_of(model, 4), labels=np.array([0, 1, 5, 2]))
    with pytest.raises(UserError, match="'taylor' met the label 5, and the network has 5 outputs"):
        prune_channels.apply(model, Prune(0.5, "taylor"), samples, graph=graph)
