"""A prefix that was trained once is never trained again, and comes back bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.core.model import Model
from pocketfit.core.plan import PassSettings, Prune, Resolution, Train
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.watch import Silent
from pocketfit.passes import train
from pocketfit.search.carry import carried_out, prefix_hash
from pocketfit.search.task import Task
from pocketfit.sources.data import from_arrays
from pocketfit.sources.models import model_from_module

from . import made

BRIEF, LONGER = Train(3, batch_size=8), Train(4, batch_size=8, seed=1)
PRUNE = Prune(0.5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(image)).mean((2, 3)))


@pytest.fixture
def task(tmp_path: Path) -> Task:
    torch.manual_seed(0)
    model = model_from_module(Net(), preprocess=Preprocess(height=8, width=8, resize_px=8), labels=("a", "b"))
    rng = np.random.default_rng(0)
    data = from_arrays(rng.integers(0, 256, (200, 8, 8, 3), np.uint8), np.arange(200) % 2, class_names=("a", "b"))
    return Task(model, data, tmp_path / "out", ("litert",), made.budget())


def same_weights(a: Model, b: Model) -> bool:
    one, two = a.network.state_dict(), b.network.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of every training that takes place."""
    steps: list[int] = []
    original = train.apply

    def apply(model: Model, settings: Train, *args: object, **kwargs: object) -> Model:
        steps.append(settings.steps)
        return original(model, settings, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "apply", apply)
    return steps


def test_trained_once_and_restored_bit_for_bit(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = counted(monkeypatch)
    first = carried_out(task, (PRUNE, BRIEF), Silent())
    assert steps == [3]
    again = carried_out(replace(task), (PRUNE, BRIEF), Silent())
    assert steps == [3]
    assert same_weights(first, again) and first.sha256 == again.sha256 and first.key == again.key
    assert not again.network.training
    assert sum(p.numel() for p in again.network.parameters()) < sum(p.numel() for p in task.model.network.parameters())
    longer = carried_out(task, (PRUNE, BRIEF, LONGER), Silent())
    assert steps == [3, 4], "the finalist goes on from the brief training's weights"
    assert not same_weights(longer, first)


def test_an_interrupted_run_gives_the_same_weights_as_one_go(task: Task, tmp_path: Path) -> None:
    whole = carried_out(replace(task, out=tmp_path / "one go"), (PRUNE, BRIEF, LONGER), Silent())
    carried_out(task, (PRUNE, BRIEF), Silent())
    assert same_weights(carried_out(task, (PRUNE, BRIEF, LONGER), Silent()), whole)


def test_the_unpruned_network_is_left_alone(task: Task) -> None:
    before = {name: value.clone() for name, value in task.model.network.state_dict().items()}
    carried_out(task, (PRUNE, Resolution(4, 4), BRIEF), Silent())
    assert all(torch.equal(value, before[name]) for name, value in task.model.network.state_dict().items())
    assert carried_out(task, (), Silent()) is task.model


def test_a_kill_while_the_weights_are_stored_costs_that_training_only(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            carried_out(task, (PRUNE, BRIEF), Silent())
    assert not list(task.cache.glob("*.safetensors")), "half a file must not pass for a whole one"
    steps = counted(monkeypatch)
    carried_out(task, (PRUNE, BRIEF), Silent())
    assert steps == [3]


def test_the_hash_tells_apart_what_trains_differently(task: Task) -> None:
    different: list[tuple[PassSettings, ...]] = [
        (PRUNE, BRIEF),
        (Prune(0.25), BRIEF),
        (PRUNE, Train(4, batch_size=8)),
        (PRUNE, replace(BRIEF, seed=1)),
        (PRUNE, replace(BRIEF, alpha=0.5)),
        (PRUNE, Resolution(4, 4), BRIEF),
        (BRIEF, PRUNE),
        (PRUNE, BRIEF, BRIEF),
    ]
    hashes = [prefix_hash(task, passes) for passes in different]
    assert len(set(hashes)) == len(hashes)
    assert prefix_hash(task, different[0]) == hashes[0]
    assert prefix_hash(replace(task, out=task.out / "elsewhere", seed=9), different[0]) == hashes[0]
    preprocess = replace(task.model.preprocess, mean=(0.5, 0.5, 0.5))
    for other in (
        replace(task, model=replace(task.model, sha256="other weights")),
        replace(task, model=replace(task.model, split_seed=1)),
        replace(task, model=replace(task.model, preprocess=preprocess)),
        replace(task, model=replace(task.model, labels=("b", "a"))),
        replace(task, data=replace(task.data, sha256="other pictures")),
    ):
        assert prefix_hash(other, different[0]) != hashes[0]
