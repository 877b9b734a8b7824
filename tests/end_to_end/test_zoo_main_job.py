"""`train` and `fit` over every network of the zoo, in every runtime: few trials, small pictures, narrow networks.

Each network is asked for something else, so that all together every rung of the ladder and every kind of pass is tried;
a network that joins the zoo joins here, and a pass that joins the plans is missed by name. Timing is kept short: what
is asked here is that every trial of every network comes through, not how fast it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import pocketfit
from pocketfit import runtimes
from pocketfit.cli import main
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.passes import KINDS, PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Prune, Sparsify
from pocketfit.core.plan.quantize import CorrectBias, Equalize, QuantTrain, Round
from pocketfit.core.plan.rewrite import Fold, Piecewise, Resolution
from pocketfit.core.plan.runtime_list import for_apps
from pocketfit.core.plan.train import Recalibrate, Train
from pocketfit.measurement import latency
from pocketfit.passes.rewrite import hardswish
from pocketfit.search import journal
from pocketfit.sources.data.dataset import open_data
from pocketfit.sources.models.open_model import load_model
from pocketfit.zoo import ARCHITECTURES

pytestmark = pytest.mark.slow

SIDE, CLASSES, PICTURES = 32, 3, 260
NARROW = {"efficientnet_lite0": 0.25, "resnet18": 0.125, "resnet50": 0.125, "shufflenet_v2": 0.5}
RUNTIMES = for_apps()
# What can't be met is climbed for: all rungs in float and on the grid, 4-bit weights, pruned networks and their forms.
# The others are asked for what plain int8 files have.
CLIMBED = {
    "mobilenet_v3_small": ("--max-size", "0.29x", "--max-drop", "0.001pt", "--max-trials", "11"),
    "efficientnet_lite0": ("--max-size", "0.14x", "--max-drop", "2pt", "--max-trials", "9"),
    "mobilenet_v1": ("--max-latency", "0.01x", "--max-trials", "10", "--prefer", "speed"),
    "resnet18": ("--max-size", "0.1x", "--max-trials", "9", "--rounds", "2", "--allocation", "uniform"),
}
MET = ("--max-size", "0.6x", "--max-trials", "4")
EVERY_PASS: tuple[PassSettings, ...] = (
    Fold(),
    Prune(0.3),
    Sparsify(0.3),
    Train(2, batch_size=8),
    Recalibrate(32),
    Resolution(SIDE, SIDE),
    Piecewise(),
    Equalize(samples=8),
    CorrectBias(samples=8),
    Round(samples=8, sweeps=1),
    QuantTrain(2, batch_size=4, inner=1.0, layerwise=0.1),
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of three classes: a bright bar at the top, in the middle, or at the bottom."""
    folder, rng = tmp_path_factory.mktemp("zoo"), np.random.default_rng(0)
    labels = np.arange(PICTURES) % CLASSES
    pixels = rng.integers(0, 90, (PICTURES, SIDE, SIDE, 3))
    for picture, label in zip(pixels, labels, strict=True):
        picture[4 + 10 * label : 9 + 10 * label] += 120
    np.savez(folder / "bars.npz", x=pixels.astype(np.uint8), y=labels)
    return folder


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch, here: Path) -> Iterator[None]:
    monkeypatch.chdir(here)
    for effort in ("QUICK", "CAREFUL"):
        monkeypatch.setattr(latency, effort, latency.Effort(sessions=2, seconds=0.02, min_rounds=2, max_rounds=3))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(*words: object) -> str:
    done = CliRunner().invoke(main.main, [str(word) for word in words])
    assert done.exit_code in (0, 1), done.output
    return done.stdout


def trained(name: str, here: Path) -> Path:
    """The model folder of this network, narrow and trained for a moment; made when it is first asked for."""
    if not (here / name).exists():
        width = ("--width", NARROW.get(name, 0.25))
        run("train", name, "--data", "bars.npz", "--image-size", SIDE, *width, "--epochs", 2, "-o", name)
    return here / name


@pytest.fixture(scope="module")
def tried() -> dict[str, set[object]]:
    """What all runs together have tried; filled by the tests."""
    return {"passes": set(), "stages": set(), "exports": set()}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_trial_of_every_network_comes_through(name: str, here: Path, tried: dict[str, set[object]]) -> None:
    asked = CLIMBED.get(name, MET)
    trained(name, here)
    out = f"{name}-out"
    result = json.loads(
        run("fit", name, "--data", "bars.npz", "--runtime", ",".join(RUNTIMES), *asked, "-o", out, "--json")
    )
    record = journal.read(here / out / "journal.jsonl")
    assert [(t.plan.code, t.runtime, t.error) for t in record.trials if t.status != "ok"] == []
    assert {t.runtime for t in record.trials} == set(RUNTIMES) and result["status"] in ("met", "infeasible")
    assert all((here / out / t.artifact.path).is_file() for t in record.trials if t.artifact is not None)
    assert (here / out / "report.html").is_file() and (here / out / "bundle/run.py").is_file()
    tried["passes"] |= {type(settings) for t in record.trials for settings in t.plan.passes}
    tried["stages"] |= {t.stage for t in record.trials}
    tried["exports"] |= {(t.runtime, t.plan.export.precision, t.plan.export.weights) for t in record.trials}


def test_all_that_the_search_can_try_was_tried(tried: dict[str, set[object]]) -> None:
    # The zoo's networks have nothing to fold. Smaller inputs are tried from 128 pixels on, and training on the grid
    # where all before it lost too much; that networks can be trained so is asked below.
    proposed = {Prune, Train, Piecewise, Equalize, Round}
    assert tried["passes"] - {QuantTrain} == proposed
    assert tried["stages"] == {"baseline", "recipe", "ladder", "pruned", "finalist", "control"}
    assert ("litert", "int8", "int4") in tried["exports"]


def test_every_kind_of_pass_is_in_the_plan_that_is_applied() -> None:
    assert {type(settings) for settings in EVERY_PASS} == set(KINDS.values())


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_plan_with_every_pass_is_carried_out_on_every_network(name: str, here: Path) -> None:
    runtime = RUNTIMES[sorted(ARCHITECTURES).index(name) % len(RUNTIMES)]
    model = load_model(trained(name, here))
    passes = (
        EVERY_PASS
        if hardswish.replaceable(model.network, model.signature)
        else tuple(p for p in EVERY_PASS if p != Piecewise())
    )
    activations = "uint8" if runtime == "openvino" else "int8"
    plan = Plan(passes, ExportSettings(runtime, "int8", activations=activations, calibration=16))
    made = pocketfit.apply(plan, model, open_data("bars.npz"), here / f"{name}-applied")
    assert Path(made.artifact.path).is_file()
    file = runtimes.get(runtime).load(Path(made.artifact.path))
    answers = file.run(latency.random_inputs(file.signature, 0))
    assert all(np.isfinite(values).all() for values in answers.values())
