"""Coupled channels: against Torch-Pruning's dependency graph, and rule by rule on small networks."""

import time

import pytest
import torch
import torch_pruning as tp

from pocketfit import zoo
from pocketfit.core.errors import UserError
from pocketfit.core.plan.prune import Prune
from pocketfit.passes.graph.channel_graph import OUTPUT, trace
from pocketfit.passes.prune import prune_channels
from tests.passes import small_networks as nets


def graph_of(network, side=16):
    model = nets.model_of(network, side)
    return trace(model.network, model.signature)


def group_of(graph, layer):
    return next(group for group in graph.groups if layer in group.layers)


def torch_prunings_groups(network, side):
    """Sets of (layer, "in" or "out") that Torch-Pruning prunes together, without those of the outputs."""
    dependencies = tp.DependencyGraph().build_dependency(network, torch.zeros(2, 3, side, side))
    names = {layer: name for name, layer in network.named_modules()}
    last = zoo.head(network)[0]
    found = set()
    for group in dependencies.get_all_groups(root_module_types=[torch.nn.Conv2d, torch.nn.Linear]):
        places = set()
        for dependency, _ in group:
            layer = dependency.target.module
            if layer not in names:
                continue
            reads = dependencies.is_in_channel_pruning_fn(dependency.handler)
            own = isinstance(layer, torch.nn.BatchNorm2d) or getattr(layer, "groups", 1) > 1
            places.add((names[layer], "in" if reads and not own else "out"))
        if (last, "out") not in places:
            found.add(frozenset(places))
    return found


def our_groups(graph):
    """In the same words; a filter of a depthwise convolution and a batch norm's entry belong to the outputs."""
    return {
        frozenset((name.rpartition(".")[0], "in" if dim else "out") for name, dim in group.members)
        for group in graph.groups
        if group.why_not != OUTPUT
    }


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "resnet50", "mobilenet_v3_small"])
def test_groups_are_those_of_torch_pruning(name):
    network = zoo.build(name).eval()
    assert our_groups(graph_of(network, 32)) == torch_prunings_groups(network, 32)


def test_mobilenet_v2_takes_less_than_five_seconds_at_its_own_size():
    network = zoo.build("mobilenet_v2").eval()
    model = nets.model_of(network, 224)
    trace(model.network, model.signature)  # the first export of a process also loads torch's own machinery
    start = time.process_time()
    graph = trace(model.network, model.signature)
    assert time.process_time() - start < 5
    assert sum(layer.params for layer in graph.layers) == 3_504_872


def test_residual_couples_both_ends_and_not_the_middle():
    graph = graph_of(nets.Residual())
    assert group_of(graph, "enter.0").layers == ("enter.0", "b.0")
    assert group_of(graph, "a.0").layers == ("a.0",)
    assert group_of(graph, "enter.0").members[("fc.weight", 1)] == 1


def test_squeeze_and_excite_couples_the_scale_with_what_it_scales():
    assert group_of(graph_of(nets.Squeeze()), "fc2").layers == ("wide.0", "deep.0", "fc2")


def test_concatenated_channels_lie_side_by_side():
    graph = graph_of(nets.Concat())
    norm = next(part for part in graph.slices if part.parameter == "norm.weight")
    a, b = group_of(graph, "a.0"), group_of(graph, "b.0")
    assert norm.ids.tolist() == [*a.ids.tolist(), *b.ids.tolist()]


def test_grouped_convolution_keeps_its_groups_equal():
    graph = graph_of(nets.Grouped())
    read, made = group_of(graph, "wide.0"), group_of(graph, "grouped.0")
    assert len(read.ids) == 32 // 4 and read.members[("wide.0.weight", 0)] == 4
    assert read.members[("grouped.0.weight", 1)] == 1
    assert len(made.ids) == 64 // 4 and made.members[("last.0.weight", 1)] == 4


def test_flattened_channel_has_an_entry_for_each_place():
    graph = graph_of(nets.Flatten())
    assert group_of(graph, "features.1.0").members[("classifier.0.weight", 1)] == 16


def test_one_map_for_all_channels_stays_and_padded_channels_stay():
    graph = graph_of(nets.Spatial())
    assert not group_of(graph, "map").prunable
    # F.pad puts 8 empty channels before and behind: only the 16 between them are those of `a`
    parts = [group for group in graph.groups if "b.0" in group.layers]
    assert sorted((len(g.ids), g.prunable) for g in parts) == [(16, False), (16, True)]
    assert ("gamma", 0) in group_of(graph, "a.0").members


def test_a_layer_used_twice_ties_its_inputs_to_its_outputs():
    members = group_of(graph_of(nets.Twice()), "twice").members
    assert {("twice.weight", 0), ("twice.weight", 1), ("twice.bias", 0), ("enter.0.weight", 0)} <= set(members)


def test_channels_may_lie_along_the_last_dimension():
    graph = graph_of(nets.Channelwise())
    assert group_of(graph, "wide").layers == ("wide", "back")
    assert ("norm.weight", 0) in group_of(graph, "wide").members
    assert group_of(graph, "mlp").layers == ("mlp",)


def test_unknown_operator_keeps_its_inputs_whole_and_says_so():
    graph = graph_of(nets.Unknown())
    assert not group_of(graph, "hidden.0").prunable
    assert group_of(graph, "seen.0").prunable
    assert len(graph.findings) == 1
    assert "hidden.0" in graph.findings[0] and "cumsum" in graph.findings[0]


def test_picks_by_position_and_unequal_parts_stay_whole():
    class Cut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b, self.c = nets.cbr(3, 8), nets.cbr(8, 16), nets.cbr(8, 16), nets.cbr(8, 16)
            self.fc = torch.nn.Linear(16, 5)

        def forward(self, x):
            x = self.stem(x)
            first, _ = torch.split(self.a(x), [4, 12], 1)
            return self.fc(
                torch.cat(
                    (
                        first,
                        self.b(x)[:, 3:5],
                        self.c(x)[:, :16:2, 0:2, :2].mean((2, 3), True).expand(-1, -1, 16, 16),
                        x[:, :2],
                    ),
                    1,
                ).mean((2, 3))
            )

    graph = graph_of(Cut())
    assert {group.name: group.prunable for group in graph.groups if group.name != "fc"} == {
        "stem.0": False, "a.0": False, "b.0": False, "c.0": False,
    }  # fmt: skip
    assert any("unequal" in sentence for sentence in graph.findings)
    assert any("position" in sentence for sentence in graph.findings)


def test_pixel_shuffle_and_transposed_convolution():
    class Up(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a = nets.cbr(3, 8), torch.nn.Conv2d(8, 64, 1)
            self.up, self.last = torch.nn.ConvTranspose2d(16, 24, 2, stride=2), torch.nn.Conv2d(24, 5, 1)

        def forward(self, x):
            x = torch.nn.functional.pixel_shuffle(self.a(self.stem(x)), 2)
            return self.last(torch.relu(self.up(x))).mean((2, 3))

    graph = graph_of(Up(), 8)
    assert group_of(graph, "a").members == {("a.weight", 0): 4, ("a.bias", 0): 4, ("up.weight", 0): 1}
    assert group_of(graph, "up").members == {("up.weight", 1): 1, ("up.bias", 0): 1, ("last.weight", 1): 1}


def test_network_that_cannot_be_traced_is_a_sentence():
    class Branching(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    with pytest.raises(UserError, match=r"torch\.export cannot follow Branching at the input 3x16x16"):
        graph_of(Branching())


class StacksNumbers(torch.nn.Module):
    """Single numbers stacked into a vector, as files in ONNX do it with what they compute of sizes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = self.a(x)
        two = torch.stack([torch.full((), 2.0), torch.full((), 3.0)])
        return self.b(y).mean((2, 3)) * two.sum()


def test_single_numbers_are_stacked():
    graph = graph_of(StacksNumbers().eval())
    assert group_of(graph, "a").prunable


class Words(torch.nn.Module):
    """Rows of a table for numbers that are computed of a picture, added to what a linear layer makes of them."""

    def __init__(self):
        super().__init__()
        self.words, self.sure, self.alone = (
            torch.nn.Embedding(9, 12),
            torch.nn.Linear(1, 12),
            torch.nn.Embedding(9, 6, padding_idx=0),
        )
        self.back, self.fc = torch.nn.Linear(12, 8), torch.nn.Linear(6, 8)
        self.places, self.order = torch.nn.Embedding(5, 12), torch.nn.Buffer(torch.arange(5)[None])

    def forward(self, x):
        level = x.mean((2, 3))
        index = (level.abs() * 4).clamp(0, 8).long()
        joined = self.words(index) + self.sure(level[..., None]) + self.places(self.order[:, :3])
        return self.back(joined.mean(1)) + self.fc(self.alone(index).mean(1))


def test_an_embedding_makes_channels_that_can_be_pruned():
    model = nets.model_of(Words())
    graph = trace(model.network, model.signature)
    assert graph.findings == ()
    assert group_of(graph, "words").members == {
        ("words.weight", 1): 1, ("sure.weight", 0): 1, ("sure.bias", 0): 1, ("back.weight", 1): 1,
        ("places.weight", 1): 1,
    }  # fmt: skip
    assert group_of(graph, "alone").members == {("alone.weight", 1): 1, ("fc.weight", 1): 1}
    pruned = prune_channels.apply(model, Prune(0.0, keep=(("words", 8), ("alone", 4))), graph=graph).network
    assert (pruned.words.embedding_dim, pruned.alone.embedding_dim, pruned.sure.out_features) == (8, 4, 8)
    assert pruned.words.num_embeddings == 9 and pruned(torch.randn(2, 3, 16, 16)).shape == (2, 8)
