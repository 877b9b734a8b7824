"""Sensitivity is asked for once a runtime, and a resumed run reads the same layers from the journal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.plan import ExportSettings, Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.watch import Silent
from pocketfit.search import journal
from pocketfit.search.sensitive import sensitive_layers, sensitivity_line
from pocketfit.search.task import Task
from pocketfit.sources.data import from_arrays
from pocketfit.sources.models import model_from_module

from . import made

PLAN = Plan((), ExportSettings("litert", "int8", weights="int4", ranges="mse", calibration=40))


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """A linear layer in the middle whose one output channel is far wider than the others."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten())
    net.append(nn.Linear(288, 2))
    with torch.no_grad():
        net[1].weight[0] *= 1000
        net[2].weight[:, 0] /= 1000
    model = model_from_module(net, preprocess=Preprocess(height=8, width=8, resize_px=8), labels=("a", "b"))
    rng = np.random.default_rng(0)
    data = from_arrays(rng.integers(0, 256, (200, 8, 8, 3), np.uint8), np.arange(200) % 2, class_names=("a", "b"))
    return Task(model, data, tmp_path / "out", ("litert",), made.budget())


def test_the_guilty_layers_come_from_the_journal(task: Task) -> None:
    line = sensitivity_line(task, PLAN, Silent())
    assert line == sensitivity_line(task, PLAN, Silent()), "asked again it is the same"
    assert {row["layer"] for row in line["rows"]} == {"0", "1", "2", "5"}
    first = line["plain"]["rows"]
    assert (line["plain"]["plan"], line["judged"], line["plain"]["judged"]) == ("wi4ai8", 2, 2)
    worst = max(first, key=lambda row: row["share"])
    assert worst["widest"] > 100 and " times the median" in worst["cause"] and worst["weights_db"] > 0
    assert all("cause" in row for row in line["rows"]), "there are fewer than are named"
    record = journal.digest([json.loads(json.dumps(line, allow_nan=False))])
    layers = sensitive_layers(record, {row.name: row.macs for row in task.layers})["litert"]
    assert layers[0] in ("1", "2") and len(layers) <= 2, "the wide channel's tensor, or the layer that reads it"
    assert sensitive_layers(journal.digest([]), {}) == {}


def test_what_cannot_be_known_is_said_and_costs_mixed_precision_only(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise UserError("torch.export cannot follow Net")

    monkeypatch.setattr("pocketfit.analysis.sensitivity.sensitivity", refuse)
    line = sensitivity_line(task, PLAN, Silent())
    assert line["error"] == "torch.export cannot follow Net" and line["rows"] == []
    assert sensitive_layers(journal.digest([line]), {}) == {"litert": ()}
