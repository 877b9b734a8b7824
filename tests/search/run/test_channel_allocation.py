"""Widths for a ratio: never dearer than the uniform cut, never worth less; and the journal's line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pocketfit.core.budget import Budget
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.prune import Prune
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.progress import Silent
from pocketfit.numerics.channel_shapes import Term, mac_terms, parameter_terms
from pocketfit.passes.graph.channel_graph import trace
from pocketfit.passes.prune import prune_channels, subnetworks
from pocketfit.search import journal
from pocketfit.search.propose import allocate_widths
from pocketfit.search.propose.allocate_widths import Choice
from pocketfit.search.run import channel_allocation
from pocketfit.search.run.channel_allocation import EXCESS, allocated, allocation_line, allocations
from pocketfit.search.run.job import Job
from pocketfit.sources.data.dataset import from_arrays
from pocketfit.sources.models.open_model import model_from_module


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 32, 3)
        self.b, self.c = nn.Conv2d(32, 48, 1), nn.Conv2d(48, 24, 3)
        self.fc = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(torch.relu(self.stem(x))))
        return self.fc(torch.relu(self.c(torch.relu(self.b(x)))).mean((2, 3)))


def model() -> Model:
    torch.manual_seed(0)
    return model_from_module(Net().eval(), preprocess=Preprocess(height=16, width=16), labels=tuple("abcd"))


given_model = model()


def job(tmp_path: Path, **settings: object) -> Job:
    rng = np.random.default_rng(0)
    data = from_arrays(rng.integers(0, 256, (400, 16, 16, 3), np.uint8), np.arange(400) % 4, class_names=tuple("abcd"))
    budget = settings.pop("budget", Budget())
    return Job(model=model(), data=data, out=tmp_path / "out", runtimes=("onnxruntime",), budget=budget, **settings)  # type: ignore[arg-type]


@given(st.integers(0, 10**6), st.floats(0.05, 0.9), st.booleans())
def test_no_dearer_than_uniform_and_worth_no_less(seed: int, ratio: float, both: bool) -> None:
    graph = trace(given_model.network, given_model.signature)
    known = subnetworks.skeleton(given_model.network, graph)
    rng = np.random.default_rng(seed)
    choices = [
        allocate_widths.from_scores(
            name, tuple(range(4, full + 1, 4)), rng.random(full) ** 4 * 10 ** rng.uniform(-2, 2)
        )
        for name, full in known.full.items()
    ]
    parts = [mac_terms(known), parameter_terms(known)][: 1 + both]
    found, uniform = allocated(choices, parts, ratio), allocate_widths.uniform(choices, ratio)
    assert allocate_widths.lost(choices, found) <= allocate_widths.lost(choices, uniform) + 1e-9
    for part in parts:
        assert allocate_widths.cost_of(part, found) <= allocate_widths.cost_of(part, uniform) * (1 + EXCESS + 1e-6)


def test_channels_that_count_are_kept() -> None:
    """Two groups cost alike; in one of them all channels but four are worth nothing."""
    a = Choice("a", (4, 8, 12, 16), (0.0, 0.0, 0.0, 0.0))
    b = Choice("b", (4, 8, 12, 16), (9.0, 5.0, 2.0, 0.0))
    terms = (Term(("a",), lambda w: float(w[0])), Term(("b",), lambda w: float(w[0])))
    assert allocated((a, b), [terms], 0.25)["b"] == 16


def test_the_line_is_what_plans_take(tmp_path: Path) -> None:
    given_task = job(tmp_path, criterion="l2", layer_ratios=(("^b$", 0.25),))
    line = allocation_line(given_task, ExportSettings("onnxruntime"), [0.25, 0.5], 8, Silent())
    assert line["by"] == "macs" and "error" not in line
    record = journal.digest([json.loads(json.dumps(line))])
    found = allocations(record)
    assert set(found) == {0.25, 0.5}
    assert "b" not in dict(found[0.5]), "the user has said how narrow it is to be"
    for ratio, keep in found.items():
        settings = Prune(ratio, "l2", keep=keep, layers=given_task.layer_ratios)
        smaller = prune_channels.apply(given_task.model, settings, None)
        kept = {row.layer: row.after for row in prune_channels.kept(given_task.model, smaller)}
        assert all(kept[layer] == channels for layer, channels in keep)
        assert kept["stem"] == 8 and {"a", "c"} <= set(dict(keep))
        assert kept["b"] == 40, "24 of 32 and 36 of 48, in multiples of 8"


def test_by_latency_the_table_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(channel_allocation, "NETWORKS", 9)
    given_task = job(
        tmp_path, criterion="l2", allocation="latency", budget=Budget.parse(max_latency="0.5x", prefer="speed")
    )
    line = allocation_line(given_task, ExportSettings("onnxruntime"), [0.5], 8, Silent())
    assert line["by"] == "latency" and line["held_out"]["n"] == 9
    assert line["keep"][0][1], "something is pruned"


def test_what_cannot_be_scored_is_said(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)).eval()
    bare = model_from_module(net, preprocess=Preprocess(height=16, width=16), labels=tuple("abcd"))
    given_task = replace(job(tmp_path, allocation="latency"), model=bare)
    line = allocation_line(given_task, ExportSettings("onnxruntime"), [0.5], 8, Silent())
    assert "No channel of this network can be pruned" in line["error"]
    assert allocations(journal.digest([line])) == {}
