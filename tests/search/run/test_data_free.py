"""`fit --no-data`, from end to end in a runtime: a real file, measured, and an accuracy that nobody claims to know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pocketfit
from pocketfit import runtimes
from pocketfit.api.fit import run_without_data
from pocketfit.core.budget import Budget
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.quantize import Equalize
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.runtime import answer
from pocketfit.core.support.progress import Silent
from pocketfit.measurement import latency
from pocketfit.numerics.sqnr import sqnr_db
from pocketfit.search.run.apply_passes import carried_out
from pocketfit.search.run.job import Job
from pocketfit.sources.data.dataset import no_data
from pocketfit.sources.data.random_inputs import noise
from pocketfit.sources.models.open_model import model_from_module


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "QUICK", latency.Effort(sessions=2, seconds=0.05, min_rounds=5, max_rounds=10))


@pytest.fixture(scope="module")
def model() -> Model:
    """Its batch norms remember noise: that is what it was made for."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 16, 3, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip
    preprocess = Preprocess(height=24, width=24)
    given = model_from_module(net.eval(), preprocess=preprocess, labels=tuple("abcde"))
    pictures = torch.from_numpy(noise(given.signature.inputs, preprocess, 64, seed=1).inputs(slice(None)))
    net.train()
    for _ in range(60):
        net(pictures)
    return model_from_module(net.eval(), preprocess=preprocess, labels=tuple("abcde"))


def job(model: Model, out: Path, **limits: str) -> Job:
    return Job(
        model=model, data=no_data(model.labels), out=out, runtimes=("onnxruntime",), budget=Budget.parse(**limits)
    )


def test_a_file_a_bundle_and_no_claim(model: Model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = run_without_data(job(model, out, max_size="9x"))
    assert json.loads(json.dumps(data)) == json.loads((out / "result.json").read_text())
    assert "accuracy was lost is NOT known" in data["warning"]
    assert data["accuracy"]["value"] is None and data["accuracy"]["how"] == "not_possible_here"
    base, chosen = data["trials"]
    assert data["chosen"] == 1 and chosen["code"].startswith("eqbn-biasbn-") and chosen["code"].endswith("-bn")
    assert base["measurements"]["latency_ratio"]["value"] == 1.0
    disturbed = "disturbed" in chosen["measurements"]["latency_ratio"]["environment"]
    assert any("The latency is not certified" in sentence for sentence in data["doubts"]) == disturbed
    assert {"size_bytes", "latency_ratio", "memory_bytes"} <= set(chosen["measurements"])
    assert not {"accuracy", "drop_points"} & set(chosen["measurements"])
    assert Plan.from_json(json.loads((out / "plan.json").read_text())).code == chosen["code"]
    assert (out / "bundle" / "manifest.json").is_file()

    pictures = noise(model.signature.inputs, model.preprocess, 40, seed=9)
    with torch.inference_mode():
        exact = model.network(torch.from_numpy(pictures.inputs(slice(None)))).numpy()
    session = runtimes.get("onnxruntime").load(out / chosen["artifact"]["path"], threads=1)
    layout = session.signature.inputs[0].layout
    found = np.concatenate([answer(session, pictures.inputs(slice(i, i + 1), layout))[0] for i in range(40)])
    session.close()
    assert sqnr_db(exact, found.reshape(exact.shape)) > 15


def test_the_plan_makes_the_same_file_again(model: Model, tmp_path: Path) -> None:
    data = run_without_data(job(model, tmp_path / "out"))
    plan = Plan.from_json(data["trials"][1]["plan"])
    made = pocketfit.apply(plan, model, no_data(), tmp_path / "again")
    assert made.artifact.sha256 == data["trials"][1]["artifact"]["sha256"]


def test_refusals(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'1pt' on drop cannot be checked without data"):
        run_without_data(job(model, tmp_path / "out", max_drop="1pt"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(UserError, match=r"something else .* \(thesis.txt\); nothing was changed"):
        run_without_data(job(model, tmp_path / "mine"))
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
    bare = model_from_module(plain, preprocess=Preprocess(height=24, width=24), labels=("a", "b"))
    with pytest.raises(UserError, match="has no batch norm"):
        run_without_data(job(bare, tmp_path / "bare"))
    with pytest.raises(UserError, match="asks for the calibration split of the data, and no data were given"):
        carried_out(job(model, tmp_path / "needs"), Plan((Equalize(),), ExportSettings("litert")), Silent())
