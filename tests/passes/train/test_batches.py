"""Batches: what moves, what is mixed, and in which order they come."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketfit.passes.train import batches


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_a_shift_moves_pictures_by_a_few_pixels_and_repeats_the_edge(height: int, width: int, seed: int) -> None:
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    batch = np.stack([np.stack([rows, columns])] * 4)
    shifts = batches.shifts(len(batch), *batch.shape[2:], np.random.default_rng(seed))
    shifted = batches.moved(batch, *shifts)
    assert shifted.shape == batch.shape and shifted.dtype == batch.dtype
    for picture in shifted:  # each pixel holds its old place: a shift is a constant difference, clipped at the edge
        for old, new, size, axis in ((rows, picture[0], height, 0), (columns, picture[1], width, 1)):
            reach = round(size / 16)
            moves = [d for d in range(-reach, reach + 1) if np.array_equal(np.clip(old + d, 0, size - 1), new)]
            assert moves, f"axis {axis} was not shifted as a whole"


def test_shifts_differ_between_pictures() -> None:
    batch = np.broadcast_to(np.arange(64, dtype=np.float32), (32, 1, 64, 64)).copy()
    shifts = batches.shifts(len(batch), *batch.shape[2:], np.random.default_rng(0))
    shifted = batches.moved(batch, *shifts)
    assert len({picture.tobytes() for picture in shifted}) > 3


@given(st.integers(1, 20), st.integers(1, 25), st.integers(1, 12), st.integers(0, 9))
def test_every_epoch_draws_every_row_once(count: int, batch_size: int, steps: int, seed: int) -> None:
    drawn = list(batches.drawn(count, batch_size, steps, np.random.default_rng(seed)))
    size = min(count, batch_size)
    assert len(drawn) == steps and all(len(rows) == size for rows, _ in drawn)
    assert all((np.diff(rows) >= 0).all() for rows, _ in drawn), "in their order: memory maps are read forward"
    rows, epochs = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    for epoch in range(steps * size // count):
        assert sorted(rows[epochs == epoch].tolist()) == list(range(count))
    assert epochs.max() == (steps * size - 1) // count


def test_prefetch_keeps_the_order_and_passes_errors_on() -> None:
    made = [(torch.tensor([i]), torch.tensor([i])) for i in range(20)]
    assert [int(a) for a, _ in batches.prefetched(iter(made))] == list(range(20))

    def broken():  # type: ignore[no-untyped-def]
        yield made[0]
        raise OSError("the disk is gone")

    got = batches.prefetched(broken())
    next(got)
    with pytest.raises(OSError, match="the disk is gone"):
        next(got)


@given(st.integers(1, 12), st.integers(0, 9))
def test_blended_pictures_are_mixtures_of_the_given_ones(count: int, seed: int) -> None:
    batch = np.zeros((count, 1, 4, 6), np.float32)
    batch[:, 0, :, 0] = 1.0  # what is mirrored lies in the last column
    mixed = batches.blended(batch, np.random.default_rng(seed))
    assert mixed.shape == batch.shape and mixed.dtype == np.float32
    assert np.allclose(mixed.sum((1, 2, 3)), batch.sum((1, 2, 3))), "shares add up to one"
    assert (mixed[..., 0] + mixed[..., -1] > 0.999).all() and (mixed[..., 1:-1] == 0).all()


def test_a_half_is_mirrored_and_a_half_is_mixed() -> None:
    batch = np.zeros((2000, 1, 1, 2), np.float32)
    batch[..., 0] = np.arange(1, 2001)[:, None, None]
    mixed = batches.blended(batch, np.random.default_rng(0))
    pure = (mixed[:, 0, 0] == 0).any(1)
    assert 0.4 < (mixed[pure, 0, 0, 1] > 0).mean() < 0.6
    assert 0.6 < pure.mean() < 0.85  # the unmixed half, and mixtures of two that are mirrored alike


def test_one_channel_never_looks_as_if_it_lay_last() -> None:
    """Torch gives feature maps the layout of their input, and a forward that views them would fail."""
    grey = np.zeros((2, 3, 5, 1), np.float32).transpose(0, 3, 1, 2)
    assert batches.as_tensor(grey).stride() == (15, 15, 5, 1)
    assert batches.as_tensor(np.zeros((2, 3, 4, 5), np.float32)).is_contiguous(memory_format=torch.channels_last)
