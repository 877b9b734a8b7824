"""Samples: rows, batches, layouts, parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples, pixels_to_values

PREPROCESS = Preprocess(height=3, width=5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))


def pictures(count: int = 7) -> Samples:
    array = np.random.default_rng(0).integers(0, 256, (count, 3, 5, 3), np.uint8)
    names = [f"{number}.jpg" for number in range(count)]
    return Samples(
        array=array,
        labels=np.arange(count, dtype=np.int64) % 3,
        names=names,
        split="search",
        sha256="abc",
        preprocess=PREPROCESS,
        class_names=("a", "b", "c"),
    )


def test_values_are_the_formula() -> None:
    samples = pictures()
    wanted = (samples.array.astype(np.float64) / 255 - PREPROCESS.mean) / PREPROCESS.std
    values = samples.inputs(slice(None), "NHWC")
    assert values.dtype == np.float32
    assert values == pytest.approx(wanted, abs=1e-5)
    assert np.array_equal(samples.inputs(slice(None), "NCHW"), values.transpose(0, 3, 1, 2))
    assert samples.inputs([0, 1]).shape == (2, 3, 3, 5)
    assert samples.inputs([0]).flags["C_CONTIGUOUS"]


def test_one_channel_does_not_lie_last_in_memory() -> None:
    """Else torch would give its feature maps that layout too, and a forward that views them would fail."""
    grey = Preprocess(height=3, width=5, colour="GRAY", mean=(0.5,), std=(0.5,))
    array = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 1), np.uint8)
    values = Samples(
        array=array, labels=np.zeros(2, np.int64), names=["a", "b"], split="search", sha256="abc", preprocess=grey
    ).inputs(slice(None))
    assert values.shape == (2, 1, 3, 5) and values.strides == (60, 60, 20, 4)


def test_the_reference_preprocessing_gives_the_same_values() -> None:
    from pocketfit.sources import image_preprocess as reference

    samples = pictures()
    assert np.array_equal(reference.values(samples.array, PREPROCESS), pixels_to_values(samples.array, PREPROCESS))


def test_ready_tensors_are_fed_as_they_are() -> None:
    ready = Samples(
        array=np.ones((2, 4), np.float64),
        labels=np.zeros(2, np.int64),
        names=["a", "b"],
        split="search",
        sha256="abc",
        preprocess=PREPROCESS,
    )
    assert ready.inputs([1], "NCHW").tolist() == [[1, 1, 1, 1]]
    assert ready.inputs([1], "NHWC").dtype == np.float32


@given(st.integers(0, 12), st.integers(1, 15), st.sampled_from(["NCHW", "NHWC"]))
def test_batches_are_all_rows_in_order(count: int, batch_size: int, layout: str) -> None:
    samples = pictures(count)
    batches = list(samples.batches(batch_size, layout))
    assert [len(labels) for _, labels in batches] == [batch_size] * (count // batch_size) + [count % batch_size] * (
        count % batch_size > 0
    )
    if count:
        assert np.array_equal(np.concatenate([values for values, _ in batches]), samples.inputs(slice(None), layout))
        assert np.array_equal(np.concatenate([labels for _, labels in batches]), samples.labels)
    assert list(samples.batches(batch_size, layout))[:1] == [] or count  # they can be gone through again


@given(st.lists(st.integers(0, 6), max_size=8))
def test_take_keeps_rows_labels_and_names_together(rows: list[int]) -> None:
    samples = pictures()
    part = samples.take(rows)
    assert len(part) == len(rows)
    assert list(part.names) == [f"{row}.jpg" for row in rows]
    assert part.labels.tolist() == [row % 3 for row in rows]
    assert np.array_equal(part.array, samples.array[np.asarray(rows, np.int64)])
    assert (part.split, part.class_names, part.preprocess) == ("search", ("a", "b", "c"), PREPROCESS)


@given(st.lists(st.integers(0, 6), max_size=5), st.lists(st.integers(0, 6), max_size=5))
def test_the_hash_of_a_part_tells_its_rows(one: list[int], other: list[int]) -> None:
    samples = pictures()
    assert (samples.take(one).sha256 == samples.take(other).sha256) == (one == other)
    assert samples.take(one).sha256 == samples.take(np.asarray(one, np.int64)).sha256
    assert samples.take(one).sha256 != samples.sha256


def test_memory_maps_are_not_read_whole(tmp_path: object) -> None:
    samples = pictures()
    path = f"{tmp_path}/array.npy"
    np.save(path, samples.array)
    mapped = Samples(
        array=np.load(path, mmap_mode="r"),
        labels=samples.labels,
        names=samples.names,
        split="search",
        sha256="abc",
        preprocess=PREPROCESS,
    )
    assert np.array_equal(mapped.inputs(slice(2, 4)), samples.inputs(slice(2, 4)))
    assert next(iter(mapped.batches(3)))[0].shape == (3, 3, 3, 5)
