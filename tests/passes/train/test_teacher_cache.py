"""Kept answers are the teacher's to exactly the pictures that are shown, and a damaged file is made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.passes.train.distillation import Teacher
from pocketfit.passes.train.teacher_cache import taught, view_answers

PREPROCESS = Preprocess(height=32, width=32, resize_px=32)


def samples(count: int = 20) -> Samples:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return Samples(
        array=pixels,
        labels=np.arange(count),
        names=[f"{i}" for i in range(count)],
        split="train",
        sha256="00",
        preprocess=PREPROCESS,
    )


def teacher(key: str = "a") -> Teacher:
    torch.manual_seed(0)
    return Teacher(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(900, 5)).eval(), key=key)


def test_the_answers_are_to_the_pictures_that_are_shown(tmp_path: Path) -> None:
    """Shifted ones: of each picture there are as many as there are views, and they come in turns."""
    teaches, shown = teacher(), []
    for inputs, labels, answers in taught(teaches, samples(), 8, 10, seed=3, views=2, cache=tmp_path):
        torch.testing.assert_close(answers, teaches(inputs))
        assert inputs.is_contiguous(memory_format=torch.channels_last)
        shown += [(int(label), picture.numpy().tobytes()) for label, picture in zip(labels, inputs, strict=True)]
    assert len(shown) == 80 and len(set(shown)) == 40, "four epochs, two views"
    of_nine = [picture for label, picture in shown if label == 9]
    assert of_nine[0] == of_nine[2] != of_nine[1] == of_nine[3]


def test_answers_that_were_kept_for_something_else_are_not_taken(tmp_path: Path) -> None:
    data = samples()
    changed = replace(data, preprocess=replace(PREPROCESS, mean=(0.5, 0.5, 0.5)))
    for teaches, given, view, seed in (
        (teacher(), data, 0, 0),
        (teacher("b"), data, 0, 0),
        (teacher(), replace(data, sha256="01"), 0, 0),
        (teacher(), changed, 0, 0),
        (teacher(), data, 1, 0),
        (teacher(), data, 0, 1),
    ):
        before = len(list(tmp_path.iterdir()))
        view_answers(teaches, given, view, seed=seed, cache=tmp_path)
        assert len(list(tmp_path.iterdir())) == before + 1
    view_answers(teacher(), data, 0, seed=0, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    first = np.array(view_answers(teacher(), samples(), 0, seed=0, cache=tmp_path))
    (path,) = tmp_path.iterdir()
    assert first.dtype == np.float32 and first.shape == (20, 5)
    path.write_bytes(path.read_bytes()[:-9])
    again = view_answers(teacher(), samples(), 0, seed=0, cache=tmp_path)
    assert np.array_equal(again, first) and isinstance(again, np.memmap)


def test_a_kill_leaves_no_half_file(tmp_path: Path) -> None:
    class Killed(nn.Module):
        calls = 0

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return image.mean((2, 3)) * self.weight

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

    with pytest.raises(KeyboardInterrupt):
        view_answers(Teacher(Killed()), samples(130), 0, seed=0, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        view_answers(teacher(), samples(), 0, seed=0, cache=tmp_path / "file")


def test_what_is_no_picture_has_one_view(tmp_path: Path) -> None:
    vectors = replace(samples(), array=np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32))
    torch.manual_seed(0)
    linear = Teacher(nn.Linear(6, 3).eval())
    for inputs, labels, answers in taught(linear, vectors, 8, 8, seed=0, views=5, cache=tmp_path):
        assert np.array_equal(inputs.numpy(), vectors.array[labels.numpy()])
        torch.testing.assert_close(answers, linear(inputs))
    assert len(list(tmp_path.iterdir())) == 1
