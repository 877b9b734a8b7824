"""Several processes train one network: the same steps as one process takes, and the same weights on all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.passes.train import batches, data_parallel, distillation, teacher_cache

TRAINED = """
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pocketfit.core.support.processes import rank
from pocketfit.core.plan.prune import Sparsify
from pocketfit.core.plan.train import Train
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.passes.prune import sparsify
from pocketfit.passes.train import fine_tune
from pocketfit.sources.models.open_model import model_from_module

PREPROCESS = Preprocess(height=12, width=12, resize_px=12)


def net(norm):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8) if norm else nn.ReLU(), nn.ReLU(), nn.Conv2d(8, 16, 3),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))


rng = np.random.default_rng(0)
labels = np.arange(60) % 3
pixels = rng.integers(0, 90, (60, 12, 12, 3)) + 60 * labels[:, None, None, None]
samples = Samples(
    array=pixels.astype(np.uint8), labels=labels, names=[""] * 60, split="train", sha256="00", preprocess=PREPROCESS
)
KINDS = {
    "plain": (False, Train(12, batch_size=9, learning_rate=0.05, alpha=0.5, ema=0.9)),
    "views": (False, Train(12, batch_size=9, learning_rate=0.05, alpha=0.5, views=2)),
    "norm": (True, Train(12, batch_size=20, learning_rate=0.05, alpha=0.0)),
}
for name, (norm, settings) in KINDS.items():
    torch.manual_seed(1)
    student, teacher = (model_from_module(net(norm), preprocess=PREPROCESS, labels=("a", "b", "c")) for _ in range(2))
    student = sparsify.apply(student, Sparsify(0.5), None)
    found = fine_tune.apply(student, settings, samples, teacher=teacher)
    torch.save(found.network.state_dict(), Path(sys.argv[1]) / f"{name}-{rank().count}-{rank().number}.pt")
"""


def alone() -> dict[str, str]:
    """The environment without what a launcher says."""
    return {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """Gradients are means over the batch, of 5 and 4 rows here, so that weights are those of one process but for the
    last digits. Batch norms see the rows of their process: their weights and statistics are only near, by design."""
    script = tmp_path / "trained.py"
    script.write_text(TRAINED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for start in ([sys.executable], launcher):
        done = subprocess.run(
            [*start, str(script), str(tmp_path)], env=alone(), capture_output=True, text=True, timeout=550, check=False
        )
        assert done.returncode == 0, done.stderr
    for name, nearness in (("plain", 1e-5), ("views", 1e-5), ("norm", 0.03)):
        one, first, second = (torch.load(tmp_path / f"{name}-{which}.pt") for which in ("1-0", "2-0", "2-1"))
        assert all(torch.equal(first[key], second[key]) for key in first), f"{name}: both end with the same, to the bit"
        assert one.keys() == first.keys()
        for key, value in one.items():
            near = 0.3 if "running" in key else nearness
            torch.testing.assert_close(first[key], value, rtol=near, atol=near, msg=f"{name}: {key}")
    assert int((first["3.weight"] == 0).sum()) >= first["3.weight"].numel() // 2, "zeros stay"


def pictures(count: int = 23) -> Samples:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)
    return Samples(
        array=pixels,
        labels=np.arange(count),
        names=[""] * count,
        split="train",
        sha256="00",
        preprocess=Preprocess(height=16, width=16, resize_px=16),
    )


def test_the_parts_of_a_batch_are_the_batch() -> None:
    """Whoever has a row: it comes in the same step, and is moved by as much."""
    whole = list(batches.shuffled(pictures(), 7, 9, seed=3))
    parts = [list(batches.shuffled(pictures(), 7, 9, seed=3, part=slice(n, None, 2))) for n in (0, 1)]
    for step, (inputs, labels) in enumerate(whole):
        for number, part in enumerate(parts):
            assert torch.equal(part[step][0], inputs[number::2]) and torch.equal(part[step][1], labels[number::2])


def test_a_part_is_shown_in_the_same_views_and_asks_its_own_teacher() -> None:
    torch.manual_seed(0)
    teacher = distillation.Teacher(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).eval())
    asked = {"seed": 3, "views": 2, "cache": None}
    whole = list(teacher_cache.taught(teacher, pictures(), 7, 9, **asked))  # type: ignore[arg-type]
    part = list(teacher_cache.taught(teacher, pictures(), 7, 9, part=slice(1, None, 2), **asked))  # type: ignore[arg-type]
    for (inputs, labels, answers), (mine, named, none) in zip(whole, part, strict=True):
        assert torch.equal(mine, inputs[1::2]) and torch.equal(named, labels[1::2]) and none is None
        assert answers is not None
        torch.testing.assert_close(teacher(mine), answers[1::2])


def test_alone_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    assert data_parallel.average_gradients([parameter], 0.5, torch.tensor(2.0)) == 2.0
    assert data_parallel.from_first("mine") == "mine" and parameter.grad.tolist() == [1, 1]
    data_parallel.file_from_first(tmp_path / "is not there")
    data_parallel.check_rows(1)
    assert not torch.distributed.is_initialized()


def test_batches_that_leave_a_process_next_to_nothing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    data_parallel.check_rows(8)
    with pytest.raises(UserError, match="Batches of 7 cannot be shared by 4 processes"):
        data_parallel.check_rows(7)
