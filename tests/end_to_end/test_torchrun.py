"""pocketfit under torchrun: apply and train share their training, everything else is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from pocketfit.cli import exit_codes, main
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Prune
from pocketfit.core.plan.train import Recalibrate, Train
from tests.cli.helpers import folder

FACTORY = """
import torch
def net(classes: int = 2):
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
                               torch.nn.Conv2d(8, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 1), torch.nn.ReLU(),
                               torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, classes))
"""
GIVEN = ("nets_of_torchrun_test:net", "--weights", "good.pth", "--preprocess", "preprocess.json")
DATA = ("--input-shape", "3x16x16", "--data", "data.npz")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a factory, its weights, data and a plan, which is the current one."""
    folder(tmp_path, monkeypatch, "nets_of_torchrun_test", FACTORY, 240)
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 2
    pixels = rng.integers(0, 150, (240, 16, 16, 3)) + 100 * labels[:, None, None, None]
    np.savez("data.npz", x=pixels.astype(np.uint8), y=labels)
    plan = Plan((Prune(0.5), Train(15, batch_size=16), Recalibrate(32)), ExportSettings("onnxruntime"))
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    return tmp_path


def run(*arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(launcher if processes > 1 else []), "-m", "pocketfit", *arguments]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    environment["PYTHONPATH"] = os.pathsep.join([".", *filter(None, [environment.get("PYTHONPATH")])])
    return subprocess.run(start, env=environment, capture_output=True, text=True, timeout=550, check=False)


@pytest.mark.slow
def test_a_plan_is_applied_by_two(here: Path) -> None:
    """Weights near those of one process: batch norms see half of the rows, and are those of the first process."""
    for out, processes in (("one", 1), ("two", 2)):
        done = run("apply", "plan.json", *GIVEN, *DATA, "-o", out, "--json", processes=processes)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)  # one object: the first process alone prints
        assert Path(told["path"]).is_file() and Path(told["path"]).parent.name == out
    assert sorted(path.suffix for path in Path("one").iterdir()) == sorted(
        path.suffix for path in Path("two").iterdir()
    )
    one, two = (
        sorted(Path(out, "cache").glob("trained-*.safetensors"), key=lambda p: p.stat().st_mtime_ns)
        for out in ("one", "two")
    )
    assert len(one) == len(two) == 2 and {p.name for p in one}.isdisjoint(p.name for p in two), "kept apart"
    trained = [load_file(paths[0]) for paths in (one, two)]
    assert trained[0]["0.weight"].shape == trained[1]["0.weight"].shape
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=0.2, atol=0.1, msg=name)


@pytest.mark.slow
def test_two_train_one_model_and_an_error_is_said_once(here: Path) -> None:
    brief = ("--image-size", "32", "--epochs", "0.3", "--data", "data.npz", "-o", "model", "--json")
    done = run("train", GIVEN[0], "--weights", "good.pth", *brief, processes=2)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["model"] == "model" and Path("model").is_dir()
    assert not [path for path in Path().iterdir() if path.name.startswith(".")], "no cache is left"
    done = run("apply", "plan.json", *GIVEN, *DATA, "-o", "plan.json", "--json", processes=2)
    assert done.returncode != 0
    assert done.stderr.count("plan.json is a file; nothing was changed") == 1, done.stderr


def test_what_searches_and_measures_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(main.main, ["fit", *GIVEN, *DATA, "-o", "out"])
    assert done.exit_code == 2 and not Path("out").exists()
    assert done.stderr.splitlines()[-1].startswith("pocketfit fit runs in one process, and 2 were started")
    assert CliRunner().invoke(main.main, ["doctor"]).exit_code == 2
    slept: list[float] = []
    monkeypatch.setattr(exit_codes.time, "sleep", slept.append)
    monkeypatch.setenv("RANK", "1")
    assert CliRunner().invoke(main.main, ["fit", *GIVEN, *DATA, "-o", "out"]).exit_code == 2
    assert slept == [exit_codes.GRACE_S], "the others let the first one say it"
