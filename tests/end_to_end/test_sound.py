"""Keywords from .wav files and windows of sensors, from the data to the answers of the bundle's run.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pocketfit
from benchmarks.sound import words
from pocketfit.core.model import Model
from pocketfit.core.plan.runtime_list import for_apps
from pocketfit.core.preprocess import MFCC, Preprocess
from pocketfit.measurement import latency
from pocketfit.sources.data.dataset import open_data
from pocketfit.sources.models.open_model import model_from_module
from pocketfit.zoo.ds_cnn import ds_cnn_s

SPOKEN = ("iso", "otu", "tasi")


class Windows(nn.Module):
    """Three axes of an accelerometer, 64 samples -> what the wearer does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv1d(3, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2)),
            *(nn.Conv1d(16, 32, 5, padding=2), nn.BatchNorm1d(32), nn.ReLU()),
        )
        self.head = nn.Linear(32, 3)

    def forward(self, window: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(window).mean(2))
        return found


def motions(path: Path, labelled: bool) -> Path:
    """Standing (noise), walking (2 Hz) and running (3.5 Hz) at 32 samples a second."""
    rng = np.random.default_rng(0)
    y = np.arange(240) % 3
    hz, size = np.array([0, 2.0, 3.5])[y], np.array([0, 0.6, 1.0])[y]
    at = np.arange(64) / 32
    waves = np.sin(2 * np.pi * (hz[:, None] * at + rng.random((240, 1)))) * size[:, None]
    x = waves[:, None] * rng.uniform(0.5, 1, (240, 3, 1)) + 0.2 * rng.standard_normal((240, 3, 64))
    given = {"y": y, "class_names": np.array(["stand", "walk", "run"])} if labelled else {}
    np.savez(path / "motions.npz", x=x.astype(np.float32), **given)
    return path / "motions.npz"


def trained(network: nn.Module, x: np.ndarray, y: np.ndarray, epochs: int) -> nn.Module:
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(24):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(torch.tensor(x[rows])), torch.tensor(y[rows]))
            loss.backward()
            optimizer.step()
    return network.eval()


def keywords(folder: Path, labelled: bool) -> tuple[Model, Path, Path]:
    """(a trained DS-CNN, its data, a recording of "iso" that it has not seen)."""
    words.write(folder / "words", 50, words=SPOKEN)
    split = open_data(folder / "words").split("train", MFCC, split_seed=0)
    network = trained(ds_cnn_s(len(split.class_names)), split.array, split.labels, 10)
    model = model_from_module(network, preprocess=MFCC, labels=split.class_names)
    data = folder / "words"
    if not labelled:
        data = folder / "alone"
        data.mkdir()
        for row, path in enumerate(sorted((folder / "words").rglob("*.wav"))):
            path.rename(data / f"{row}.wav")
    words.save(folder / "new.wav", words.recording("iso", np.random.default_rng(9)))
    return model, data, folder / "new.wav"


def sensors(folder: Path, labelled: bool) -> tuple[Model, Path, Path]:
    data = motions(folder, labelled)
    split = open_data(motions(folder, True)).split("train", Preprocess(), split_seed=0)
    network = trained(Windows(), split.array, split.labels, 10)
    model = model_from_module(network, labels=split.class_names, input_shape=(3, 64))
    np.save(folder / "new.npy", split.array[split.labels == 1][:1])
    if not labelled:
        motions(folder, False)
    return model, data, folder / "new.npy"


@pytest.mark.slow
@pytest.mark.parametrize("runtime", for_apps())
@pytest.mark.parametrize(
    ("make", "labelled", "answer"), [(keywords, True, "iso"), (keywords, False, "iso"), (sensors, True, "walk")]
)
def test_fit_on_sounds_and_signals(make, labelled, answer, runtime, tmp_path, monkeypatch) -> None:
    for effort in ("QUICK", "CAREFUL"):  # no limit on the latency
        monkeypatch.setattr(latency, effort, latency.Effort(sessions=2, seconds=0.02, min_rounds=2, max_rounds=3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, data, new = make(tmp_path, labelled)
    out = tmp_path / "out"
    budget = pocketfit.Budget.parse(max_drop="50pt", max_trials=2)
    result = pocketfit.fit(model, data, budget, out=out, runtimes=(runtime,))
    assert result.status == "met"
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    assert [line["error"] for line in lines if line["kind"] == "trial" and line["status"] != "ok"] == []
    (verdict,) = [line for line in lines if line["kind"] == "verdict"]
    assert (verdict["task"], verdict["labelled"]) == ("classification", labelled)
    assert verdict["before"] >= 0.8 and verdict["after"] >= 0.7
    golden = sorted(path.name for path in (out / "bundle" / "golden").iterdir())
    assert ("chirp.wav" in golden) == (make is keywords) and "chart.png" not in golden
    for arguments in (["--selftest"], ["--json", str(new)]):
        run = subprocess.run(
            [sys.executable, "-W", "error", "run.py", *arguments],
            cwd=out / "bundle",
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout)["top"][0]["label"] == answer
    if make is keywords:
        assert "pillow" not in (out / "bundle" / "requirements.txt").read_text()
        (tmp_path / "odd.wav").write_bytes(b"RIFF")
        bad = subprocess.run(
            [sys.executable, "run.py", str(tmp_path / "odd.wav")],
            cwd=out / "bundle",
            capture_output=True,
            text=True,
            check=False,
        )
        assert bad.returncode == 1 and "odd.wav cannot be read as a recording" in bad.stderr
