"""What has been pruned is exported, reloaded and equal to the torch network; what can't be pruned is refused by name.

The zoo at 30 and 50 % through both runtimes is in benchmarks/pruning/zoo_exports.py; a part of it is here.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from pocketfit import zoo
from pocketfit.core.errors import UserError
from pocketfit.core.model import Origin
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Prune
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.runtime import answer
from pocketfit.passes.graph.channel_graph import trace
from pocketfit.passes.prune import prune_channels
from pocketfit.runtimes import get
from pocketfit.sources.models.open_model import load_model, model_from_module, save_model
from tests.passes import small_networks as nets

RUNTIMES = ("litert", "onnxruntime")
TOLERANCE = 1e-4
QUICK = ("shufflenet_v2",)
SLOW = tuple(sorted(set(zoo.ARCHITECTURES) - set(QUICK)))


def zoo_model(name):
    torch.manual_seed(0)
    network = nets.with_statistics(zoo.build(name, width=0.5, classes=10))
    origin = Origin("zoo", name, {"width": 0.5, "classes": 10})
    return model_from_module(network, preprocess=Preprocess(height=32, width=32), origin=origin)


def widths_of(model, pruned):
    return {row.layer: (row.before, row.after) for row in prune_channels.kept(model, pruned)}


def assert_legal(pruned, folder: Path, runtimes=RUNTIMES, unpruned=None):
    """Saved, loaded, exported and run: the same answers everywhere."""
    save_model(pruned, folder / "model")
    loaded = load_model(folder / "model", unpruned=unpruned)
    images = nets.pictures(pruned, 4)
    with torch.no_grad():
        wanted = pruned.network(images).numpy()
        np.testing.assert_array_equal(loaded.network(images).numpy(), wanted)
    scale = max(1.0, float(np.abs(wanted).max()))
    for name in runtimes:
        runtime = get(name)
        plan = Plan((), ExportSettings(name))
        artifact = runtime.export(loaded, plan, None, folder / f"pruned{runtime.EXTENSION}", work=folder)
        session = runtime.load(Path(artifact.path))
        nhwc = session.signature.inputs[0].layout == "NHWC"
        values = images.numpy().transpose(0, 2, 3, 1) if nhwc else images.numpy()
        got = answer(session, np.ascontiguousarray(values))
        session.close()
        np.testing.assert_allclose(got / scale, wanted / scale, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("ratio", [0.3, pytest.param(0.5, marks=pytest.mark.slow)])
def test_every_structure_together(ratio, tmp_path):
    model = nets.model_of(nets.Everything())
    graph = trace(model.network, model.signature)
    pruned = prune_channels.apply(model, Prune(ratio, multiple=4), graph=graph)
    widths = widths_of(model, pruned)
    whole = {name for name, (before, after) in widths.items() if before == after}
    assert whole == {"stem.0", "hidden.0", "fc"}
    assert [f for f in pruned.findings if "The channels of hidden.0 can't be pruned" in f]
    kept = prune_channels.apply(model, Prune(ratio, multiple=4, keep=(("hidden.0", 16),)), graph=graph)
    assert widths_of(model, kept) == widths
    assert_legal(pruned, tmp_path, unpruned=model.network)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_zoo_at_half(name, tmp_path):
    model = zoo_model(name)
    pruned = prune_channels.apply(model, Prune(0.5))
    assert any(after < before for before, after in widths_of(model, pruned).values())
    assert_legal(pruned, tmp_path)


def test_channels_that_a_shuffle_mixes_are_refused_by_name_and_the_branches_are_pruned():
    """Torch-Pruning fails on this network altogether."""
    model = zoo_model("shufflenet_v2")
    pruned = prune_channels.apply(model, Prune(0.3))
    refused = [sentence for sentence in pruned.findings if "tied to all others" in sentence]
    assert len(refused) == 1 and "stage3.0.branch1.2" in refused[0]
    widths = widths_of(model, pruned)
    assert widths["stage3.0.branch1.2"] == (48, 48) and widths["stage3.1.branch2.0"] == (48, 32)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch.export itself, where it traces torch.cond
def test_control_flow_is_refused_by_name_and_the_rest_is_pruned():
    model = nets.model_of(nets.Branching())
    pruned = prune_channels.apply(model, Prune(0.5))
    assert widths_of(model, pruned) == {
        "stem.0": (8, 8),
        "free.0": (16, 8),
        "before.0": (16, 16),
        "behind.0": (16, 8),
        "fc": (5, 5),
    }
    assert any("before.0 can't be pruned, because cond in the network's own forward" in f for f in pruned.findings)
    assert pruned.network(nets.pictures(model)).shape == (3, 5)


def test_python_branch_that_depends_on_values_is_a_sentence_with_the_layer():
    class Gate(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.gate, self.fc = nets.cbr(3, 8), Gate(), torch.nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(self.gate(self.stem(x)).mean((2, 3)))

    with pytest.raises(UserError, match=r"torch\.export cannot follow layer 'gate' of Net at the input 3x16x16"):
        prune_channels.apply(nets.model_of(Net()), Prune(0.5))
