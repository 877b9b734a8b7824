"""Sensitivity is asked for once a runtime, and a resumed run reads the same layers from the journal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.progress import Silent
from pocketfit.search import journal
from pocketfit.search.run.job import Job
from pocketfit.search.run.layer_sensitivity import (
    sensitive_layers,
    sensitive_to_four_bits,
    sensitivity_line,
    sets_in_float,
)
from pocketfit.sources.data.dataset import from_arrays
from pocketfit.sources.models.open_model import model_from_module
from tests.search import builders

PLAN = Plan((), ExportSettings("litert", "int8", ranges="mse", calibration=40))
FOUR = replace(PLAN, export=replace(PLAN.export, weights="int4"))


@pytest.fixture
def job(tmp_path: Path) -> Job:
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
    return Job(model=model, data=data, out=tmp_path / "out", runtimes=("litert",), budget=builders.budget())


def test_the_guilty_layers_come_from_the_journal(job: Job) -> None:
    line = sensitivity_line(job, PLAN, Silent())
    assert line == sensitivity_line(job, PLAN, Silent()), "asked again it is the same"
    assert {row["layer"] for row in line["rows"]} == {"0", "1", "2", "5"}
    first = line["plain"]["rows"]
    assert (line["plain"]["plan"], line["judged"], line["plain"]["judged"]) == ("wi8ai8", 2, 2)
    worst = max(first, key=lambda row: row["share"])
    assert worst["widest"] > 100 and " times the median" in worst["cause"] and worst["weights_db"] > 0
    assert all("cause" in row for row in line["rows"]), "there are fewer than are named"
    record = journal.digest([json.loads(json.dumps(line, allow_nan=False))])
    sets = sensitive_layers(record, {row.name: row.macs for row in job.layers})["litert"]
    assert sets[0][0] in ("1", "2") and len(sets[0]) <= 2, "the wide channel's tensor, or the layer that reads it"
    assert [len(layers) for layers in sets] == sorted({len(layers) for layers in sets})
    assert sensitive_layers(journal.digest([]), {}) == {}


def test_what_cannot_be_known_is_said_and_costs_mixed_precision_only(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise UserError("torch.export cannot follow Net")

    monkeypatch.setattr("pocketfit.analysis.quantization.sensitivity.sensitivity", refuse)
    line = sensitivity_line(job, PLAN, Silent())
    assert line["error"] == "torch.export cannot follow Net" and line["rows"] == []
    assert sensitive_layers(journal.digest([line]), {}) == {"litert": ()}


def test_four_bits_have_a_line_of_their_own(job: Job) -> None:
    line = sensitivity_line(job, FOUR, Silent())
    record = journal.digest([json.loads(json.dumps(line, allow_nan=False))])
    assert "plain" not in line and sensitive_layers(record, {}) == {}
    params = {row.name: row.params for row in job.layers}
    found = sensitive_to_four_bits(record, params)["litert"]
    assert found.keys() == {"0", "1", "2", "5"} and found["1"][1] == params["1"] / 2
    assert sum(share for share, _ in found.values()) <= 1


def test_what_a_layer_costs_in_float_is_its_time_where_the_runtime_tells_it(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = builders.baseline(), builders.trial(1, stage="ladder", precision="int8", ranges="mse")
    given = {0: {"0": 40.0, "1": 50.0, "2": 60.0, "5": 5.0}, 1: {"0": 10.0, "1": 55.0, "2": 20.0, "5": 4.0}}
    monkeypatch.setattr(
        "pocketfit.search.run.verdict.layer_report.layer_times", lambda job, trial: (given[trial.number], "")
    )
    line = sensitivity_line(job, PLAN, Silent(), files)
    assert {row["layer"]: row["more_us"] for row in line["rows"]} == {"0": 30.0, "1": -5.0, "2": 40.0, "5": 1.0}
    assert line["untimed"] == ""
    del given[1]["5"]
    untimed = sensitivity_line(job, PLAN, Silent(), files)
    assert untimed["untimed"] == "1 of 4 layers have no operator of their own in wi8ai8-mse"
    assert not any("more_us" in row for row in untimed["rows"])
    monkeypatch.setattr(
        "pocketfit.search.run.verdict.layer_report.layer_times", lambda job, trial: ({}, "it cannot tell")
    )
    assert sensitivity_line(job, PLAN, Silent(), files)["untimed"] == "it cannot tell"


def test_sets_follow_the_times_in_the_journal_and_else_the_multiply_accumulates() -> None:
    rows = [{"layer": "a", "share": 0.4}, {"layer": "b", "share": 0.35}, {"layer": "c", "share": 0.25}]
    macs = {"a": 90, "b": 5, "c": 5}
    assert sets_in_float({"rows": rows}, macs)[0] == ("b", "c")
    timed = [{**row, "more_us": more} for row, more in zip(rows, (-2.0, 3.0, 90.0), strict=True)]
    assert sets_in_float({"rows": timed}, macs)[0] == ("a", "b")
