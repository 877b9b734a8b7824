"""`pocketfit export`: a network, and what a fit's plan makes of it, as files for torch alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from pocketfit.cli import main
from pocketfit.search.run import apply_passes
from tests.cli.helpers import folder, refused

FACTORY = """
import torch
from torch import nn
def net(classes: int = 2):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))
"""
PLAN = {
    "plan_version": 1,
    "passes": [
        {"pass": "prune", "ratio": 0.5, "multiple": 4},
        {"pass": "train", "steps": 2, "batch_size": 8},
        {"pass": "equalize", "samples": 8},
        {"pass": "round", "samples": 8, "sweeps": 1},
    ],
    "export": {"runtime": "onnxruntime", "precision": "int8", "activations": "uint8"},
}
NETWORK = (
    "nets_of_export_test:net",
    "--weights",
    "good.pth",
    "--preprocess",
    "preprocess.json",
    "--input-shape",
    "3x16x16",
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    return folder(tmp_path, monkeypatch, "nets_of_export_test", FACTORY, 200)


def export(*more: str) -> Result:
    return CliRunner().invoke(main.main, ["export", *NETWORK, "-o", "out", *more])


def loaded(path: Path) -> torch.nn.Module:
    space: dict[str, object] = {"__name__": "network", "__file__": str(path / "network.py")}
    exec((path / "network.py").read_text(), space)
    network = space["load"]()  # type: ignore[operator]
    assert isinstance(network, torch.nn.Module)
    return network


def test_a_network_as_it_is(here: Path) -> None:
    done = export("--quiet", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert set(told["files"]) == {file.name for file in (here / "out").iterdir()}
    own = sys.modules["nets_of_export_test"].net().eval()
    own.load_state_dict(torch.load("good.pth", weights_only=True))
    x = torch.rand(3, 3, 16, 16)
    assert torch.allclose(loaded(here / "out")(x), own(x), atol=1e-6)
    assert export("--quiet").exit_code == 0, "again into the same folder"


def test_what_a_plan_makes_of_it_in_float(here: Path) -> None:
    Path("plan.json").write_text(json.dumps(PLAN))
    done = export("--plan", "plan.json", "--data", "data.npz", "--quiet")
    assert done.exit_code == 0, done.output
    layers = json.loads(Path("out/layers.json").read_text())["layers"]
    assert {"tensor": "3.weight", "layer": "Conv2d", "shape": [8, 8, 3, 3], "was": [16, 8, 3, 3]} in layers
    assert "3.weight" in done.stdout and "16x8x3x3" in done.stdout
    weight = loaded(here / "out").get_parameter("3.weight")
    assert len(torch.unique(weight)) > 500, "the weights are not on the grid of the quantized file"


def test_a_fits_folder_is_not_trained_again(here: Path) -> None:
    """Its plan.json, with what lies in its cache."""
    Path("run").mkdir()
    Path("run/plan.json").write_text(json.dumps(PLAN))
    for out in ("out", "again"):
        apply_passes._RECENT.clear()  # another process
        done = CliRunner().invoke(
            main.main, ["export", *NETWORK, "-o", out, "--plan", "run", "--data", "data.npz", "--quiet"]
        )
        assert done.exit_code == 0, done.output
        if out == "out":
            (stored,) = Path("run/cache").glob("trained-*.safetensors")
            written = stored.stat().st_mtime_ns
    assert stored.stat().st_mtime_ns == written
    assert Path("out/weights.safetensors").read_bytes() == Path("again/weights.safetensors").read_bytes()


def test_refusals(here: Path) -> None:
    refused(export("--plan", "nowhere.json"), "nowhere.json")
    Path("plan.json").write_text(json.dumps(PLAN))
    refused(export("--plan", "plan.json", "--quiet"), "data")
    Path("out").mkdir()
    Path("out/letter.txt").write_text("dear")
    done = export()
    assert done.exit_code == 2 and "letter.txt" in done.stderr
