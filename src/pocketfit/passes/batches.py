"""Batches to train on: shuffled, moved a little, and made in a thread of their own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from pocketfit.core.samples import Samples

SHIFT_SHARE = 1 / 16  # pictures are shifted by up to this share of their side


def shuffled(
    samples: Samples, batch_size: int, steps: int, *, seed: int, freely: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`steps` batches: epochs in ever new order, pictures shifted by a few pixels.

    freely  also mirrored and blended with each other: the labels no longer hold, a teacher's answers do
    """
    rng = np.random.default_rng(seed)
    size = min(batch_size, len(samples))
    order: NDArray[np.int64] = np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < size:
            order = np.concatenate([order, rng.permutation(len(samples))])
        rows, order = order[:size], order[size:]
        batch = samples.inputs(np.sort(rows))
        if batch.ndim == 4:
            batch = shifted(batch, rng)
            batch = blended(batch, rng) if freely else batch
        inputs = torch.from_numpy(batch)
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        yield inputs, torch.from_numpy(samples.labels[np.sort(rows)])


def shifted(batch: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Every picture [C, H, W] moved by its own few pixels; the edge is repeated into the gap."""
    height, width = batch.shape[2:]
    reach_y, reach_x = round(height * SHIFT_SHARE), round(width * SHIFT_SHARE)
    dy = rng.integers(-reach_y, reach_y + 1, len(batch))
    dx = rng.integers(-reach_x, reach_x + 1, len(batch))
    rows = np.clip(np.arange(height)[None] + dy[:, None], 0, height - 1)
    columns = np.clip(np.arange(width)[None] + dx[:, None], 0, width - 1)
    picture = np.arange(len(batch))
    return batch.transpose(0, 2, 3, 1)[picture[:, None, None], rows[:, :, None], columns[:, None, :]].transpose(
        0, 3, 1, 2
    )


def blended(batch: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A half of the pictures [n, C, H, W] mirrored, and a half of them mixed with another one (Zhang et al. 2018)."""
    mirrored = np.where(rng.random(len(batch))[:, None, None, None] < 0.5, batch[..., ::-1], batch)
    share = np.where(rng.random(len(batch)) < 0.5, rng.random(len(batch)) / 2, 0).astype(np.float32)
    share = share[:, None, None, None]
    mixed: NDArray[np.float32] = (1 - share) * mirrored + share * mirrored[rng.permutation(len(batch))]
    return mixed


def prefetched(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same batches, the next one made in a thread while the caller trains on this one."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch
