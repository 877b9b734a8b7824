"""Steps that fit the time; with a number of trials they follow from the data alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.quantize import Equalize, QuantTrain, Round
from pocketfit.core.plan.train import Train
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.progress import Silent
from pocketfit.passes.train.guarded import find_learning_rate
from pocketfit.search.run import training_steps as pace
from pocketfit.search.run.job import Job
from pocketfit.search.run.training_steps import LONG_SHARE, SHORT_SHARE, Pace, grid_seconds, pace_line, steps_for
from pocketfit.sources.data.dataset import from_arrays
from pocketfit.sources.models.open_model import model_from_module
from tests.search import builders

PACE = Pace(steps_per_s=4.0, verdict_s=60.0)


def test_without_a_clock_the_data_decides() -> None:
    assert steps_for(builders.budget(), 64_000, 64, 1, None) == (300, 1500)
    assert steps_for(builders.budget(), 100, 64, 1, None) == (30, 100)
    assert steps_for(builders.budget(), 10**7, 64, 2, None) == (400, 2500)


@given(st.sampled_from(["1min", "10min", "3h"]), st.floats(0.01, 1000))
def test_a_number_of_trials_makes_steps_independent_of_the_machine(time: str, speed: float) -> None:
    """The same plans whatever the machine's speed: what a repeated run is compared with."""
    fixed = steps_for(builders.budget(max_trials=8), 5000, 64, 2, None)
    assert steps_for(builders.budget(max_trials=8, max_time=time), 5000, 64, 2, Pace(speed, 60.0)) == fixed


def test_with_a_time_limit_the_steps_are_what_fits() -> None:
    short, long = steps_for(builders.budget(max_time="15min"), 50_000, 64, 1, PACE)
    training_s = 900 - 60 - 60 - 25 * (3 + 2)
    assert (short, long) == (round(SHORT_SHARE * training_s * 4), round(LONG_SHARE * training_s * 4))
    pruned = 0.8  # of the unpruned network's time a step, by which the pace was measured: they have fewer channels
    assert (pruned * (3 * short + 2 * long) + short + long) / 4.0 <= training_s, "all trainings and the control fit"


@given(st.integers(1, 24 * 60), st.integers(1, 10**6), st.integers(1, 2), st.floats(1e-3, 1e3), st.floats(0, 1e4))
def test_steps_grow_with_the_time_and_stay_in_their_range(
    minutes: int, samples: int, runtimes: int, speed: float, verdict_s: float
) -> None:
    pace = Pace(speed, verdict_s)
    short, long = steps_for(builders.budget(max_time=f"{minutes}min"), samples, 64, runtimes, pace)
    more = steps_for(builders.budget(max_time=f"{minutes + 10}min"), samples, 64, runtimes, pace)
    epoch = max(1, samples // 64)
    assert 10 <= short <= 4 * epoch + 10 and 20 <= long <= 40 * epoch + 20
    assert more[0] >= short and more[1] >= long


def test_passes_for_the_grid_take_what_they_took_before_else_what_their_samples_take() -> None:
    int8 = ExportSettings("litert", "int8")
    passes = (Equalize(samples=10), Round(samples=100), QuantTrain(5, batch_size=4))
    assert grid_seconds(Plan((Train(10),), int8), [], 0.1) == 0.0
    by_samples = 0.1 * (10 * Equalize.FACTS.steps_a_sample + 100 * Round.FACTS.steps_a_sample)
    assert abs(grid_seconds(Plan((Train(10), *passes[:2]), int8), [], 0.1) - by_samples) < 1e-9
    repaired = builders.trial(1, stage="ladder", passes=passes[:2], precision="int8")  # which took 1.5 s
    known = 0.1 * 10 * Equalize.FACTS.steps_a_sample + 1.5 + 0.1 * 20 * QuantTrain.FACTS.steps_a_sample
    assert abs(grid_seconds(Plan(passes, int8), [repaired], 0.1) - known) < 1e-9
    elsewhere = builders.trial(1, stage="pruned", passes=passes[:2], precision="int8")
    assert grid_seconds(Plan(passes[:2], int8), [elsewhere], 0.1) == grid_seconds(Plan(passes[:2], int8), [], 0.1)


class Net(nn.Module):
    """`trains`: whether its forward stands training mode."""

    def __init__(self, *, trains: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
        self.trains = trains

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and not self.trains:
            raise RuntimeError("targets should not be none in training mode")
        return self.body(x)


def job(out: Path, network: nn.Module, **settings: Any) -> Job:
    contract = Preprocess(height=8, width=8, resize="exact")
    rng = np.random.default_rng(0)
    data = from_arrays(rng.integers(0, 256, (300, 8, 8, 3), np.uint8), np.arange(300) % 2, class_names=("a", "b"))
    model = model_from_module(network, preprocess=contract, labels=("a", "b"))
    return Job(
        model=model,
        data=data,
        out=out,
        runtimes=("litert",),
        budget=builders.budget(**settings.pop("limits", {})),
        **settings,
    )


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


def test_the_rate_is_found_without_a_time_limit_and_the_machine_does_not_show(tmp_path: Path) -> None:
    """Two runs have the same line."""
    lines = [pace_line(job(tmp_path, net()), Silent()) for _ in range(2)]
    assert lines[0] == lines[1] == {"kind": "pace", "learning_rate": 0.02, "short_steps": 30, "long_steps": 100}


def test_with_a_time_limit_the_pace_is_noted_with_whoever_teaches(tmp_path: Path) -> None:
    limits = {"max_time": "10min"}
    line = pace_line(job(tmp_path, net(), limits=limits), Silent())
    assert line["steps_per_s"] > 0 and line["verdict_s"] > 0 and line["learning_rate"] == 0.02
    asked: list[int] = []
    teacher = model_from_module(net(), preprocess=Preprocess(height=8, width=8, resize="exact"), labels=("a", "b"))
    teacher.network.register_forward_hook(lambda _l, _i, out: asked.append(len(out)))
    line = pace_line(job(tmp_path, net(), limits=limits, teacher=teacher), Silent())
    assert sum(count == 64 for count in asked) == pace.PROBE_STEPS and line["steps_per_s"] > 0


def test_a_rate_that_is_not_the_usual_one_is_said_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_learning_rate.Rate(
        0.005, 0.1, 0.25, "At the usual learning rate of 0.02 this network forgets what it knows"
    )
    monkeypatch.setattr(find_learning_rate, "found_rate", lambda *given, **more: found)
    heard = Heard()
    line = pace_line(job(tmp_path, net()), heard)
    assert line["learning_rate"] == 0.005 and [line["finding"]] == heard.said == [found.finding]


def test_a_network_that_cannot_be_trained_is_a_finding_and_no_end(tmp_path: Path) -> None:
    heard = Heard()
    line = pace_line(job(tmp_path, Net(trains=False), limits={"max_time": "10min"}), heard)
    assert heard.said[0].startswith("The network cannot be trained") and line["finding"] == heard.said[0]
    assert line.keys() == {"kind", "finding", "short_steps", "long_steps"}


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net()
