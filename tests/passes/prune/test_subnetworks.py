"""The skeleton says what the narrowed network really is: against the layer table and the parameters of that network."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pocketfit import zoo
from pocketfit.analysis.layer_table import layer_table, totals
from pocketfit.numerics import channel_shapes as words
from pocketfit.passes.graph.channel_graph import trace
from pocketfit.passes.prune import subnetworks as forms
from pocketfit.sources.models.open_model import model_from_module
from tests.passes.small_networks import Concat, Residual, Squeeze

SHAPE = (3, 32, 32)


def opened(network):
    model = model_from_module(network.eval(), input_shape=SHAPE)
    return model, trace(model.network, model.signature)


@pytest.mark.parametrize(
    "make",
    [
        Residual,
        Squeeze,
        Concat,
        pytest.param(lambda: zoo.build("shufflenet_v2", classes=4), id="shufflenet_v2", marks=pytest.mark.slow),
    ],
)
def test_shapes_and_macs_are_those_of_the_narrowed_network(make):
    model, graph = opened(make())
    known = forms.skeleton(model.network, graph)
    random = np.random.default_rng(0)
    widths = {
        name: max(1, int(full // known.per_id[name] * random.uniform(0.3, 0.9))) * known.per_id[name]
        for name, full in known.full.items()
    }
    narrow = forms.narrowed(model.network, graph, widths)
    state = narrow.state_dict()
    for layer in known.layers:
        inputs, outputs = known.shape(layer, widths)
        assert tuple(state[f"{layer.name}.weight"].shape[:2]) == (outputs, inputs)
    for name, width in widths.items():
        assert len(state[f"{name}.weight"]) == width < known.full[name]
    smaller = replace(model, network=narrow)
    assert known.macs(widths) == totals(layer_table(smaller)).macs
    assert known.macs({}) == totals(layer_table(model)).macs
    assert sum(term.of(tuple(widths[g] for g in term.groups)) for term in words.mac_terms(known)) == known.macs(widths)
    with torch.no_grad():
        assert narrow(torch.zeros(2, *SHAPE)).shape == model.network(torch.zeros(2, *SHAPE)).shape


def test_a_skeleton_travels_as_json():
    model, graph = opened(Squeeze())
    known = forms.skeleton(model.network, graph)
    assert words.from_json(json.loads(json.dumps(known.to_json()))) == known
    assert {layer.kind for layer in known.layers} == {"convolution", "pointwise", "depthwise", "linear"}
