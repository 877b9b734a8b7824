"""Oracle: scipy's cosine distance; exact cases for the rest."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import distance

from pocketfit.numerics import affine, sqnr


def test_sqnr_of_uniform_quantization_is_six_decibels_a_bit():
    values = np.random.default_rng(0).uniform(-1, 1, 100_000).astype(np.float32)
    for bits in (4, 6, 8):
        limit = 2 ** (bits - 1)
        back = np.clip(np.rint(values * limit), -limit, limit) / limit
        assert sqnr.sqnr_db(values, back) == pytest.approx(6.02 * bits, abs=0.2)
    int8 = affine.fake_quantize(values, affine.symmetric_scale(1.0))
    assert sqnr.sqnr_db(values, int8) == pytest.approx(48, abs=0.5)


def test_sqnr_ends():
    assert sqnr.sqnr_db([1.0, 2.0], [1.0, 2.0]) == math.inf
    assert sqnr.sqnr_db([0.0], [0.0]) == math.inf
    assert sqnr.sqnr_db([0.0], [1.0]) == -math.inf
    assert math.isnan(sqnr.sqnr_db([1.0], [math.nan]))
    with pytest.raises(ValueError, match="one shape"):
        sqnr.sqnr_db([1.0], [1.0, 2.0])


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.floats(0.01, 100))
def test_sqnr_does_not_depend_on_the_unit(values, unit):
    reference = np.array(values)
    other = reference + 0.1
    if not np.any(reference):
        return
    scaled = sqnr.sqnr_db(reference * unit, other * unit)
    assert scaled == pytest.approx(sqnr.sqnr_db(reference, other), abs=1e-3)


def test_cosine_equals_scipys():
    random = np.random.default_rng(1)
    for _ in range(20):
        one, two = random.normal(size=(2, 3, 4))
        assert sqnr.cosine(one, two) == pytest.approx(1 - distance.cosine(one.ravel(), two.ravel()))
    assert sqnr.cosine([0.0], [0.0]) == 1.0
    assert sqnr.cosine([0.0], [1.0]) == 0.0


def test_agreement_counts_equal_top_classes_and_never_a_nan():
    reference = np.array([[1.0, 2, 0], [3, 2, 0], [0, 0, 1], [math.nan, 0, 0]])
    other = np.array([[0.0, 9, 1], [3, 9, 0], [0, 0, 7], [math.nan, 0, 0]])
    assert sqnr.agreement(reference, other) == 0.5
    with pytest.raises(ValueError, match="classes"):
        sqnr.agreement([1.0], [1.0])
