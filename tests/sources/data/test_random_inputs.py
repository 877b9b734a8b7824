"""Noise in the place of pictures."""

from __future__ import annotations

import numpy as np

from pocketfit.core.preprocess import Preprocess
from pocketfit.core.signature import TensorSpec
from pocketfit.sources.data.random_inputs import noise

PICTURE = TensorSpec("x", (None, 3, 24, 40), layout="NCHW")


def test_pictures_are_the_same_for_a_seed_and_use_their_range() -> None:
    preprocess = Preprocess(height=24, width=40)
    one, again, other = (noise([PICTURE], preprocess, 6, seed) for seed in (1, 1, 2))
    assert one.array.dtype == np.uint8 and one.array.shape == (6, 24, 40, 3)
    np.testing.assert_array_equal(one.array, again.array)
    assert one.sha256 == again.sha256 != other.sha256
    assert (one.array != other.array).any()
    assert one.array.std() > 40 and one.array.min() < 20 and one.array.max() > 235
    assert one.inputs(slice(0, 2)).shape == (2, 3, 24, 40)


def test_the_input_says_how_large_pictures_are() -> None:
    for spec in (PICTURE, TensorSpec("x", (None, 24, 40, 3), layout="NHWC")):
        assert noise([spec], Preprocess(height=96, width=96), 2).array.shape == (2, 24, 40, 3)


def test_numbers_that_are_no_picture() -> None:
    numbers = noise([TensorSpec("x", (None, 7))], Preprocess(), 500)
    assert numbers.inputs(slice(None)).shape == (500, 7)
    assert abs(float(numbers.array.mean())) < 0.1 and abs(float(numbers.array.std()) - 1) < 0.1
