"""Batches to train on: shuffled, moved a little, and made in a thread of their own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pocketfit.core.samples import Samples
from pocketfit.passes.graph.feed import Fed, fed

T = TypeVar("T")
SHIFT_SHARE = 1 / 16  # images are shifted by up to this share of their shorter side


def shuffled(
    samples: Samples, batch_size: int, steps: int, *, seed: int, freely: bool = False, part: slice = slice(None)
) -> Iterator[tuple[Fed, torch.Tensor]]:
    """`steps` batches: each epoch in a new order, images shifted by a few pixels.

    freely  also mirror and blend images: labels are then wrong, a teacher's logits are not
    part    only these rows of each batch; an image's step and shift do not depend on the part
    """
    rng = np.random.default_rng(seed)
    for rows, _ in drawn(len(samples), batch_size, steps, rng):
        mine = rows[part]
        labels = torch.from_numpy(samples.labels[mine])
        if not samples.are_pictures:
            yield fed(samples, mine), labels
            continue
        batch = samples.inputs(mine)
        dy, dx = shifts(len(rows), batch.shape[2], batch.shape[3], rng)
        batch = moved(batch, dy[part], dx[part])
        yield as_tensor(blended(batch, rng) if freely else batch), labels


def drawn(
    count: int, batch_size: int, steps: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """`steps` times (the rows in a batch, out of `count`, in their order; the epoch in which each of them is shown).

    >>> [(rows.tolist(), epochs.tolist()) for rows, epochs in drawn(3, 2, 3, np.random.default_rng(0))]
    [([0, 2], [0, 0]), ([1, 2], [0, 1]), ([0, 1], [1, 1])]
    """
    size = min(batch_size, count)
    order: NDArray[np.int64] = np.empty(0, np.int64)
    for step in range(steps):
        if len(order) < size:
            order = np.concatenate([order, rng.permutation(count)])
        rows, order = order[:size], order[size:]
        epochs = np.arange(step * size, (step + 1) * size) // count
        sorting = np.argsort(rows, kind="stable")
        yield rows[sorting], epochs[sorting]


def as_tensor(batch: NDArray[np.float32]) -> torch.Tensor:
    """A batch as a tensor; images [n, C, H, W] lie channels last in memory, so that convolutions train faster."""
    inputs = torch.from_numpy(batch)
    if inputs.ndim == 4 and inputs.shape[1] == 1:  # one channel has both layouts; the strides decide for feature maps
        return inputs[:, 0].contiguous()[:, None]
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


def shifts(
    count: int, height: int, width: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many pixels each image is moved, down and to the right, up to SHIFT_SHARE of its shorter side."""
    reach = round(min(height, width) * SHIFT_SHARE)
    return rng.integers(-reach, reach + 1, count), rng.integers(-reach, reach + 1, count)


def moved(batch: NDArray[np.float32], dy: NDArray[np.int64], dx: NDArray[np.int64]) -> NDArray[np.float32]:
    """Every image [n, C, H, W] moved by its dy and dx pixels; the result lies channels last in memory."""
    height, width = batch.shape[2:]
    rows = np.clip(np.arange(height)[None] + dy[:, None], 0, height - 1)
    columns = np.clip(np.arange(width)[None] + dx[:, None], 0, width - 1)
    picture = np.arange(len(batch))
    channels_last = batch.transpose(0, 2, 3, 1)
    shifted: NDArray[np.float32] = channels_last[picture[:, None, None], rows[:, :, None], columns[:, None, :]]
    return shifted.transpose(0, 3, 1, 2)


def blended(batch: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Images [n, C, H, W], half of them mirrored, and half of them blended with another one (Zhang et al. 2018)."""
    mirrored = np.where(rng.random(len(batch))[:, None, None, None] < 0.5, batch[..., ::-1], batch)
    share = np.where(rng.random(len(batch)) < 0.5, rng.random(len(batch)) / 2, 0).astype(np.float32)
    share = share[:, None, None, None]
    mixed: NDArray[np.float32] = (1 - share) * mirrored + share * mirrored[rng.permutation(len(batch))]
    return mixed


def prefetched(batches: Iterator[T]) -> Iterator[T]:
    """The same batches; the next one is made in a thread while the caller trains on this one."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch
