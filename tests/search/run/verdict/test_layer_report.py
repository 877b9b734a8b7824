"""What each layer of a deployed file takes, by the name that the network gives it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.quantize import Equalize, Round
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.progress import Silent
from pocketfit.core.trial import Trial
from pocketfit.search.run.job import Job
from pocketfit.search.run.run_trial import export
from pocketfit.search.run.verdict.layer_report import layer_times
from pocketfit.sources.data.dataset import from_arrays
from pocketfit.sources.models.open_model import model_from_module
from tests.search import builders


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "activations"), [("litert", "int8"), ("onnxruntime", "uint8")])
def test_all_layers_of_a_repaired_file_can_be_timed(tmp_path: Path, runtime: str, activations: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 8, 1))
    net.extend([nn.Conv2d(8, 32, 1), nn.ReLU6(), nn.Conv2d(32, 32, 3, groups=32), nn.Flatten(), nn.Linear(4608, 2)])
    model = model_from_module(net, preprocess=Preprocess(height=16, width=16, resize_px=16), labels=("a", "b"))
    rng = np.random.default_rng(0)
    data = from_arrays(rng.integers(0, 256, (200, 16, 16, 3), np.uint8), np.arange(200) % 2, class_names=("a", "b"))
    job = Job(model=model, data=data, out=tmp_path / "out", runtimes=(runtime,), budget=builders.budget())
    settings = ExportSettings(runtime, "int8", activations=activations, ranges="mse", calibration=8)  # type: ignore[arg-type]
    passes = (Equalize(samples=8), Round(samples=8, sweeps=1))
    for plan in (Plan((), ExportSettings(runtime)), Plan(passes, settings)):
        artifact = export(job, plan, Silent()).artifact
        made_file = replace(artifact, path=f"models/{Path(artifact.path).name}")
        times, reason = layer_times(job, Trial(number=0, stage="ladder", plan=plan, status="ok", artifact=made_file))
        assert reason == "" and set(times) == {"0", "3", "4", "6", "8"}
        assert min(times.values()) >= 0 < sum(times.values()), "a layer this small may take less than the clock shows"
