"""Every network of networks_as_brought.py through opening, the channel graph, pruning and every kind of pass.

Each either works or is refused by one sentence where its row says so. A new network joins by a row there; a new kind of
pass fails `test_every_kind_of_pass_is_carried_out` until it is carried out here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pocketfit import tasks
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings, Grid
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.prune import Prune, Sparsify
from pocketfit.core.plan.quantize import CorrectBias, Equalize, QuantTrain, Round
from pocketfit.core.plan.rewrite import Fold, Piecewise, Resolution
from pocketfit.core.plan.train import Recalibrate, Train
from pocketfit.core.samples import Samples
from pocketfit.passes.graph import aten
from pocketfit.passes.graph.channel_graph import ChannelGraph, trace
from pocketfit.passes.graph.feed import Fed, as_fed, call, fed
from pocketfit.passes.graph.parameters import attribute
from pocketfit.passes.prune import constant_channels, criteria, prune_channels, sparsify
from pocketfit.passes.prune.by_layers import HEADS
from pocketfit.passes.quantize import bias_correction, qat, rounding
from pocketfit.passes.quantize.equalize import equalize
from pocketfit.passes.quantize.simulate.fake_quantize import fake_weight, widest_scale
from pocketfit.passes.quantize.simulate.simulation import WEIGHTED, layers_of, simulate
from pocketfit.passes.rewrite import hardswish, resolution
from pocketfit.passes.rewrite.fold import fold_model
from pocketfit.passes.train import recalibrate_batch_norm
from pocketfit.sources.data.dataset import from_arrays
from pocketfit.sources.models.open_model import load_model, model_from_module, save_model
from tests.brought.networks import CLASSIFIERS, NETWORKS, arrays, built, described, opened

TRACED = [name for name in CLASSIFIERS if "trace" not in NETWORKS[name].refused]
PLACES = ("open", "classes", "trace")
REFUSED = [(name, where) for name, row in NETWORKS.items() for where in row.refused if where in PLACES]
INT8 = Grid(8, 8)
EXPORTS = (
    ExportSettings("litert", "int8"),
    ExportSettings("litert", "int8", weights="int4"),
    ExportSettings("onnxruntime", "int8", activations="uint8"),
    ExportSettings("onnxruntime", "int8", activations="uint8", weights="int7"),
)
GRIDS = tuple(dict.fromkeys(settings.grid for settings in EXPORTS if settings.grid is not None))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@lru_cache(2)
def model_of(name: str) -> Model:
    return opened(name)


@lru_cache(2)
def graph_of(name: str) -> ChannelGraph:
    model = model_of(name)
    return trace(model.network, model.signature)


@lru_cache(2)
def samples_of(name: str) -> Samples:
    x, y = arrays(name, 60)
    model = model_of(name)
    inputs = model.signature.inputs
    return from_arrays(x, y).split("train", model.preprocess, split_seed=0, inputs=inputs).take(range(8))


def noise(model: Model, count: int = 3) -> Fed:
    return as_fed(aten.noise(model.signature, count))


def answers(network: nn.Module, given: Fed) -> Tensor:
    with torch.no_grad():
        found = call(network, given)
    assert isinstance(found, Tensor)
    return found


def assert_same(one: Tensor, other: Tensor, share: float = 1e-4) -> None:
    assert one.shape == other.shape
    assert float((one - other).abs().max()) <= share * max(float(other.abs().max()), 1e-3)


def says(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error)
    return "\n" not in text and all(word in text for word in words)


@pytest.mark.parametrize(("name", "where"), REFUSED)
def test_refused_in_one_sentence(name: str, where: str) -> None:
    with pytest.raises(UserError) as refusal:
        model = opened(name)
        assert where != "open", "it was opened"
        if reason := tasks.get("classification").why_not(model.signature.outputs, ()):
            raise UserError(reason)
        trace(model.network, model.signature)
    assert says(refusal.value, NETWORKS[name].refused[where]), refusal.value


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_opens_and_answers_as_it_did(name: str) -> None:
    model, original = model_of(name), built(name)
    given = noise(model)
    wanted = answers(original, given)
    assert_same(answers(model.network, given), wanted, 1e-5)
    again = model_from_module(original, preprocess=model.preprocess, input_shape=described(name))
    assert again.sha256 == model.sha256
    assert torch.equal(answers(original, given), wanted), "what was handed over still works"
    assert not model.network.training
    copied = copy.deepcopy(model.network)
    assert torch.equal(answers(copied, given), answers(model.network, given))
    computes = "norm" in name.split()[:2] and name.split(maxsplit=1)[0] in ("weight", "spectral")
    assert any("taken as they are in eval mode" in s for s in model.findings) == (computes or name == "masked weights")
    assert not any("parametrizations" in key or key.endswith(("_orig", "_g", "_v")) for key in copied.state_dict())


@pytest.mark.parametrize("name", TRACED)
def test_channels_are_pruned_and_what_is_left_answers_as_if_they_were_zero(name: str, tmp_path: Path) -> None:
    model, graph = model_of(name), graph_of(name)
    given = noise(model)
    untouched = prune_channels.apply(model, Prune(0.0), graph=graph)
    assert torch.equal(answers(untouched.network, given), answers(model.network, given))
    first = [row for row in prune_channels.widths(graph) if row.first]
    keep = tuple((row.group, row.per_id * math.ceil(row.channels / row.per_id / 2)) for row in first)
    settings = Prune(0.5, multiple=4, keep=keep)
    pruned = prune_channels.apply(model, settings, graph=graph)
    narrower = {row.layer for row in prune_channels.kept(model, pruned) if row.after < row.before}
    narrower |= {  # a table has a row for each token, whatever its width
        name
        for name, layer in model.network.named_modules()
        if isinstance(layer, nn.Embedding) and pruned.network.get_submodule(name).weight.shape != layer.weight.shape
    }
    assert bool(narrower) == any(group.prunable for group in graph.groups)
    assert narrower or any("can't be pruned" in sentence for sentence in pruned.findings)
    got = answers(pruned.network, given)
    assert got.shape == answers(model.network, given).shape and bool(got.isfinite().all())
    # what these give depends on how many channels there are
    if not any(isinstance(layer, nn.LayerNorm | nn.GroupNorm) for layer in model.network.modules()):
        assert_same(got, answers(without(model, graph, settings, narrower), given))
    if HEADS in pruned.findings:  # no class builds it
        with pytest.raises(UserError, match="another number of attention heads"):
            save_model(pruned, tmp_path / "folder")
        return
    save_model(pruned, tmp_path / "folder")
    loaded = load_model(tmp_path / "folder", unpruned=built(name))
    assert torch.equal(answers(loaded.network, given), got) and loaded.sha256 == pruned.sha256


def without(model: Model, graph: ChannelGraph, settings: Prune, narrower: set[str]) -> nn.Module:
    """The network at its full size; all that makes or reads the channels that are removed from the `narrower` layers is
    zero, and what they gave for every input is in the biases behind them."""
    counts, _ = prune_channels.counts_kept(graph, settings)
    chosen = prune_channels.removed_ids(graph, counts, criteria.group_scores(model, graph, settings))
    went = {group.name for group in graph.groups if narrower & set(group.layers)}
    removed = np.concatenate([np.empty(0, np.int64), *(ids for name, ids in chosen.items() if name in went)])
    network, _ = constant_channels.moved(model.network, constant_channels.readers(model), removed)
    state = network.state_dict()
    with torch.no_grad():
        for part in graph.slices:
            if not part.parameter.endswith("running_var"):
                entries = torch.from_numpy(np.isin(part.ids, removed))
                state[part.parameter].movedim(part.dim, 0)[entries] = 0
    return network


# Every kind of pass: what carries it out, and what has to hold of its result -----------------------------------------
def same_answers(before: Model, after: Model, name: str) -> None:
    given = fed(samples_of(name), slice(0, 4))
    assert_same(answers(after.network, given), answers(before.network, given), 1e-3)


def sound(before: Model, after: Model, name: str) -> None:
    got = answers(after.network, noise(after))
    assert got.shape == (3, before.signature.outputs[0].shape[-1]) and bool(got.isfinite().all())


def assert_on_the_grid(model: Model, found: Model, grid: Grid, kinds: tuple[str, ...]) -> None:
    """The weights of the layers of these kinds of operators lie where the runtime's quantizer puts them."""
    simulation = simulate(model, grid)
    layers = [
        layer
        for node, layer in layers_of(simulation.network, through_grids=True).items()
        if aten.operation(node) in kinds
    ]
    assert layers
    for layer in layers:
        weight, bits = attribute(found.network, layer.parameter).detach(), simulation.weights[layer.name].bits
        again = fake_weight(weight, widest_scale(weight, bits, layer.axis), bits)
        torch.testing.assert_close(again, weight, rtol=1e-4, atol=1e-4 * float(weight.abs().max()))


CARRIED_OUT: Mapping[type, Callable[[str, Any, Grid], Model]] = {
    Prune: lambda name, s, grid: prune_channels.apply(model_of(name), s, samples_of(name), graph=graph_of(name)),
    Recalibrate: lambda name, s, grid: recalibrate_batch_norm.apply(model_of(name), s, samples_of(name)),
    Sparsify: lambda name, s, grid: sparsify.apply(model_of(name), s, samples_of(name)),
    Resolution: lambda name, s, grid: resolution.apply(model_of(name), s),
    Piecewise: lambda name, s, grid: hardswish.apply(model_of(name)),
    Fold: lambda name, s, grid: fold_model.apply(model_of(name)),
    Equalize: lambda name, s, grid: equalize.apply(model_of(name), s, samples_of(name), grid),
    CorrectBias: lambda name, s, grid: bias_correction.apply(model_of(name), s, samples_of(name), grid),
    Round: lambda name, s, grid: rounding.apply(model_of(name), s, samples_of(name), grid),
    QuantTrain: lambda name, s, grid: qat.apply(model_of(name), s, samples_of(name), grid, own=model_of(name)),
}


def run(name: str, settings: PassSettings, grid: Grid = INT8) -> Model:
    """One pass on the network as it was opened."""
    return CARRIED_OUT[type(settings)](name, settings, grid)


# kind -> [(settings, what has to hold, words of the sentence that may refuse it)]
IN_FLOAT: Mapping[type, list[tuple[PassSettings, Callable[[Model, Model, str], None], str]]] = {
    Prune: [(Prune(0.5, criterion, multiple=4, samples=8), sound, "") for criterion in ("taylor", "activation")],
    Recalibrate: [(Recalibrate(8), sound, "")],
    Sparsify: [
        (Sparsify(0.5), sound, ""),
        (Sparsify(criterion="movement", samples=8), sound, ""),
        (Sparsify(pattern="2:4"), sound, ""),
    ],
    Resolution: [(Resolution(16, 24), sound, "keep its resolution|no image|torch.export")],
    Piecewise: [(Piecewise(), same_answers, "no hard-swish to replace")],
    Fold: [(Fold(), same_answers, "")],
    Equalize: [
        (Equalize(samples=8), same_answers, ""),
        (Equalize("batch-norm"), same_answers, "no batch norm"),
    ],
}
ON_GRID: Mapping[type, list[PassSettings]] = {
    CorrectBias: [CorrectBias(samples=8)],
    Round: [Round(sweeps=2, samples=8)],
    QuantTrain: [QuantTrain(2, batch_size=8), QuantTrain(1, batch_size=4, inner=1.0, layerwise=1.0)],
}
ELSEWHERE = {Train}  # recovery has a matrix of its own over the same table


def test_every_kind_of_pass_is_carried_out() -> None:
    missing = {kind.__name__ for kind in get_args(PassSettings)} - {
        kind.__name__ for kind in (*IN_FLOAT, *ON_GRID, *ELSEWHERE)
    }
    assert not missing, (
        f"no network as people bring them goes through {sorted(missing)}: add them to this file's tables"
    )


@pytest.mark.parametrize("name", TRACED)
def test_passes_in_float(name: str) -> None:
    for cases in IN_FLOAT.values():
        for settings, holds, refusal in cases:
            try:
                found = run(name, settings)
            except UserError as error:
                assert refusal and any(words in str(error) for words in refusal.split("|")), (settings, error)
                continue
            holds(model_of(name), found, name)
    coarse = run(name, Equalize(samples=8), Grid(4, 8))
    same_answers(model_of(name), coarse, name)


@pytest.mark.parametrize("name", TRACED)
def test_passes_on_the_grids_of_both_runtimes(name: str) -> None:
    model = model_of(name)
    before = {key: tensor.clone() for key, tensor in model.network.state_dict().items()}
    for grid in GRIDS:
        for cases in ON_GRID.values():
            for settings in cases if grid == INT8 else cases[:1]:
                found = run(name, settings, grid)
                sound(model, found, name)
                if isinstance(settings, Round):
                    assert_on_the_grid(model, found, grid, rounding.LEARNED)
                if isinstance(settings, QuantTrain):
                    assert_on_the_grid(model, found, grid, WEIGHTED)
                    assert all(math.isfinite(end) for ends in found.learned.ranges.values() for end in ends)
    after = model.network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before), "the given network stays as it is"


def test_no_trainable_parameter_is_needed_and_none_becomes_trainable() -> None:
    """Passes thaw their own copies; what comes back is as frozen as what went in."""
    model = model_of("all frozen")
    for settings in (
        Round(sweeps=2, samples=8),
        QuantTrain(2, batch_size=8),
        Sparsify(criterion="movement", samples=8),
    ):
        found = run("all frozen", settings)
        changed = [
            key
            for key, tensor in found.network.state_dict().items()
            if not torch.equal(tensor, model.network.state_dict().get(key, torch.zeros(())))
        ]
        assert changed
        kept = dict(found.network.named_parameters())
        assert not any(kept[key].requires_grad for key, _ in model.network.named_parameters())


def test_what_no_pass_touches_is_said() -> None:
    model = model_of("gru of two layers")
    for settings, words in ((Prune(0.5), "gru"), (Round(2, 8), "stay in float"), (QuantTrain(1, 4), "stay in float")):
        sentences = [s for s in run("gru of two layers", settings).findings if s not in model.findings]
        assert any("recurrent" in s and words in s for s in sentences), (settings, sentences)


def test_constants_that_channels_give_are_moved_or_the_channels_are_not_called_dead() -> None:
    for criterion in ("bn-scale", "l2"):
        model = model_of("dead scale live shift")
        dead = prune_channels.apply(model, Prune(0.0, "bn-scale", keep=(("0", 8),)))
        given = noise(model)
        assert_same(answers(dead.network, given), answers(model.network, given), 1e-5)
        assert any("8 of the removed channels gave the same for every input" in s for s in dead.findings)
        padded = model_of("dead scale live shift padded")
        graph = graph_of("dead scale live shift padded")
        scores = criteria.group_scores(padded, graph, Prune(0.5, criterion))["0"]
        assert scores[:8].min() >= scores[8:].min(), "the shift of these channels lives on, and can't be moved"
