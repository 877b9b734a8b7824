"""`fit` climbs the ladder by itself: a network that plain int8 ruins, from end to end in LiteRT.

Timing is kept short here (its figures decide nothing: sizes and drops do), everything else is as users get it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from torch import nn

import pocketfit
from pocketfit.core.budget import Budget
from pocketfit.core.learned import Learned
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.quantize import Equalize, QuantTrain, Round
from pocketfit.core.preprocess import Preprocess
from pocketfit.measurement import latency
from pocketfit.passes.train import fine_tune
from pocketfit.search import journal
from pocketfit.search.run import apply_passes
from pocketfit.sources.data.dataset import Dataset, from_arrays
from pocketfit.sources.models.fingerprint import fingerprint
from pocketfit.sources.models.open_model import model_from_module

pytestmark = pytest.mark.slow
BRIEFLY = latency.Effort(sessions=2, seconds=0.05, min_rounds=5, max_rounds=10)


def discs(count: int = 600, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs and rings, red and blue, on dark noise."""
    rng, labels = np.random.default_rng(0), np.arange(count) % 4
    pixels = rng.integers(0, 60, (count, side, side, 3))
    rows, columns = np.mgrid[0:side, 0:side]
    for picture, label in zip(pixels, labels, strict=True):
        y, x, radius = *rng.integers(10, 22, 2), rng.integers(6, 9)
        distance = np.hypot(rows - y, columns - x)
        inside = (distance < radius) & (distance > (4 if label % 2 else -1))
        picture[inside] += (170, 30, 30) if label < 2 else (30, 30, 170)
    return pixels.clip(0, 255).astype(np.uint8), labels


def net() -> nn.Sequential:
    def block(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())

    layers = block(3, 16, 2), block(16, 16, 2, 16), nn.Conv2d(16, 24, 1), nn.Conv2d(24, 256, 1), nn.ReLU6()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 4))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return from_arrays(*discs(), class_names=("red disc", "red ring", "blue disc", "blue ring"))


@pytest.fixture(scope="module")
def model(data: Dataset) -> Model:
    """Trained; then one channel of the linear bottleneck is made 3000 times as large, and undone by its reader: the
    float network computes what it did, and the range of one channel leaves all others few steps."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fresh = model_from_module(
        net(), preprocess=Preprocess(height=32, width=32, resize="exact"), labels=data.class_names
    )
    samples = data.split("train", fresh.preprocess, split_seed=0)
    trained = fine_tune.transfer(fresh, samples, epochs=30, batch_size=32, learning_rate=0.05)
    with torch.no_grad():
        for parameter in (trained.network[2].weight, trained.network[2].bias):
            parameter[3] *= 3000
        trained.network[3].weight[:, 3] /= 3000
    return replace(trained, sha256=fingerprint(trained.network))


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "QUICK", BRIEFLY)
    monkeypatch.setattr(latency, "CAREFUL", BRIEFLY)


def trials(out: Path) -> list[dict[str, Any]]:
    return [line for line in journal.read_lines(out / "journal.jsonl") if line["kind"] == "trial"]


def test_the_ladder_rescues_what_plain_int8_ruins(
    model: Model, data: Dataset, tmp_path: Path, briefly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget.parse(max_drop="5pt", max_trials=6, prefer="size")
    result = pocketfit.fit(model, data, budget, out=tmp_path / "out")
    done = trials(tmp_path / "out")
    assert [t["status"] for t in done[:4]] == ["ok"] * 4, [t["error"] for t in done]
    assert [t["stage"] for t in done[:5]] == ["baseline", *["recipe"] * 2, "ladder", "pruned"]
    drops = [t["measurements"]["drop_points"]["value"] for t in done[:4]]
    assert drops[1] > 20, "plain int8 sees one channel only"
    assert drops[3] <= 5, "equalized and rounded it is as good as float"
    passes = [[p["pass"] for p in t["plan"]["passes"]] for t in done]
    assert passes[3:5] == [["equalize", "round"], ["prune", "train", "equalize", "round"]]
    assert result.status == "met" and "equalize" in [p["pass"] for p in result.data["chosen"]["plan"]["passes"]]
    schema = json.loads(files("pocketfit.search.decide").joinpath("result.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(result.data)

    monkeypatch.setattr(apply_passes, "_RECENT", {})
    again = pocketfit.apply(Plan.from_json(done[3]["plan"]), model, data, tmp_path / "again")
    assert again.artifact.sha256 == done[3]["artifact"]["sha256"], "made again from the plan alone, to the last bit"


@pytest.mark.parametrize(("runtime", "activations"), [("litert", "int8"), ("onnxruntime", "uint8")])
def test_a_plan_that_trains_on_the_grid_gives_the_same_file_from_the_cache(
    model: Model,
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
    activations: Any,
) -> None:
    """As after a kill: the learned ranges come back from the disk, and they are in the file."""
    passes = (Equalize(samples=50), Round(samples=50, sweeps=5), QuantTrain(10, batch_size=16))
    plan = Plan(passes, ExportSettings(runtime, "int8", activations=activations, ranges="mse", calibration=50))
    monkeypatch.setattr(apply_passes, "_RECENT", {})  # what another runtime has asked for is not on this disk
    first = pocketfit.apply(plan, model, data, tmp_path)
    assert first.model.learned.ranges
    monkeypatch.setattr(apply_passes, "_RECENT", {})
    monkeypatch.setattr(apply_passes, "_carry_out", None)
    again = pocketfit.apply(plan, model, data, tmp_path)
    assert again.model.learned == first.model.learned
    assert again.artifact.sha256 == first.artifact.sha256
    monkeypatch.setattr(apply_passes, "_RECENT", {})
    forgotten = replace(again.model, learned=Learned())
    monkeypatch.setattr("pocketfit.search.run.run_trial.carried_out", lambda *arguments: forgotten)
    without = pocketfit.apply(plan, model, data, tmp_path)
    assert without.artifact.sha256 != first.artifact.sha256, "the learned ranges decide about the file"
