"""A teacher's logits, computed once and kept, so that a CPU can afford a teacher.

A view of an image is one fixed shift of it; within a view the shifts differ from image to image. All images of an epoch
are shown in one view, those of the next epoch in the next view, and so on in turns. So a training that shows every
image k times needs the teacher's logits for min(k, views) whole views, and any later trial, with more steps or another
student, finds them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pocketfit.core.samples import Samples
from pocketfit.core.support.array_file import stored_array
from pocketfit.passes.graph.feed import Fed, each, fed
from pocketfit.passes.train.batches import as_tensor, drawn, moved, shifts
from pocketfit.passes.train.distillation import Teacher

BATCH_SIZE = 64  # samples that the teacher gets at once
Taught = tuple[Fed, torch.Tensor, torch.Tensor | None]


def taught(
    teacher: Teacher,
    samples: Samples,
    batch_size: int,
    steps: int,
    *,
    seed: int,
    views: int,
    cache: Path | None,
    part: slice = slice(None),
) -> Iterator[Taught]:
    """`steps` batches of inputs, labels and the teacher's logits, in the order of `batches.shuffled`.

    Logits that are not in the folder `cache` yet are computed before the first batch; without a folder they are kept in
    memory. Raises UserError where the folder cannot be written.

    part  only these rows of each batch, for one of several processes. The logits are then None, and each process asks
          its teacher at every step, about the same views: a cache would make every process compute all logits
    """
    epochs = math.ceil(steps * min(batch_size, len(samples)) / len(samples))
    needed = min(views, epochs) if samples.are_pictures else 1  # only images can be shifted
    moves = np.stack([view_shifts(samples, view, seed) for view in range(needed)])
    if part != slice(None):
        return _batches(samples, moves, None, batch_size, steps, seed, part)
    answers = [view_answers(teacher, samples, view, seed=seed, cache=cache) for view in range(needed)]
    return _batches(samples, moves, answers, batch_size, steps, seed, part)


def view_shifts(samples: Samples, view: int, seed: int) -> NDArray[np.int64]:
    """[2, samples]: how many pixels each image is moved down, and to the right, in this view."""
    if not samples.are_pictures:
        return np.zeros((2, len(samples)), np.int64)
    height, width = samples.inputs(slice(0, 1)).shape[2:]
    return np.stack(shifts(len(samples), height, width, np.random.default_rng([seed, view])))


def view_answers(
    teacher: Teacher, samples: Samples, view: int, *, seed: int, cache: Path | None
) -> NDArray[np.float32]:
    """The teacher's outputs [samples, width]: a memory map of a file in `cache`, which appears whole or not at all."""
    place, moves = next(teacher.network.parameters()).device, view_shifts(samples, view, seed)

    def chunks() -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(samples), BATCH_SIZE):
            rows = np.arange(start, min(start + BATCH_SIZE, len(samples)))
            inputs = seen(samples, rows, moves[:, rows])
            yield teacher(each(inputs, lambda tensor: tensor.to(place))).cpu().numpy()

    if cache is None:
        return np.concatenate(list(chunks()))
    one = seen(samples, np.arange(1), moves[:, :1])
    width = teacher(each(one, lambda tensor: tensor.to(place))).shape[1]
    facts = f"{teacher.key} {samples.sha256} {samples.preprocess} {samples.array.shape} {seed} {view}"
    facts += f" {torch.__version__} {torch.get_num_threads()} {place.type}"
    path = Path(cache) / f"answers-{hashlib.sha256(facts.encode()).hexdigest()[:32]}.npy"
    return stored_array(path, (len(samples), width), np.float32, chunks)


def seen(samples: Samples, rows: NDArray[np.int64], moves: NDArray[np.int64]) -> Fed:
    """The inputs of these rows, images moved by moves [2, rows]."""
    return as_tensor(moved(samples.inputs(rows), *moves)) if samples.are_pictures else fed(samples, rows)


def _batches(
    samples: Samples,
    moves: NDArray[np.int64],
    answers: list[NDArray[np.float32]] | None,
    batch_size: int,
    steps: int,
    seed: int,
    part: slice,
) -> Iterator[Taught]:
    for whole, epochs in drawn(len(samples), batch_size, steps, np.random.default_rng(seed)):
        rows, views = whole[part], epochs[part] % len(moves)
        inputs, labels = seen(samples, rows, moves[views, :, rows].T), torch.from_numpy(samples.labels[rows])
        if answers is None:
            yield inputs, labels, None
            continue
        wanted = np.stack([answers[view][row] for row, view in zip(rows.tolist(), views.tolist(), strict=True)])
        yield inputs, labels, torch.from_numpy(wanted)
