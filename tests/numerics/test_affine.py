"""Oracle: torch's own quantize_per_tensor, quantize_per_channel and fake_quantize. Integers equal, exact ties aside."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pocketfit.core.runtime import quantize_input
from pocketfit.numerics import affine

LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}
values_strategy = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-50, 50, width=32))
scales = st.floats(2.0**-10, 1.0, width=32)


def away_from_ties(values, scale):
    """Rows where value / scale is not within float32 rounding of a half: there torch multiplies by 1 / scale."""
    fraction = np.abs(values.astype(np.float64) / scale)
    return np.abs(fraction - np.floor(fraction) - 0.5) > 1e-6 * (1 + fraction)


@given(values_strategy, scales, st.data())
def test_integers_equal_torchs(values, scale, data):
    dtype = data.draw(st.sampled_from(["int8", "uint8"]))
    low, high = LIMITS[dtype]
    zero = data.draw(st.integers(low, high))
    kept = values[away_from_ties(values, scale)]
    theirs = torch.fake_quantize_per_tensor_affine(torch.from_numpy(kept), scale, zero, low, high).numpy()
    assert np.array_equal(affine.fake_quantize(kept, scale, zero, dtype), theirs)
    ours = affine.quantize(kept, scale, zero, dtype)
    assert ours.dtype == dtype
    assert np.array_equal(ours, quantize_input(kept, dtype, scale, zero))


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_per_channel_equals_torchs_along_every_axis(axis):
    random = np.random.default_rng(0)
    values = random.normal(0, 3, (4, 5, 3, 2)).astype(np.float32)
    channels = values.shape[axis]
    scale = random.uniform(0.01, 0.1, channels).astype(np.float32)
    zero = random.integers(-20, 20, channels)
    theirs = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(values), torch.from_numpy(scale), torch.from_numpy(zero.astype(np.int32)), axis, -128, 127
    ).numpy()
    assert np.array_equal(affine.fake_quantize(values, scale, zero, "int8", axis=axis), theirs)


def test_ties_go_to_even_and_the_rest_saturates():
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9, np.inf, -np.inf], np.float32)
    assert affine.quantize(values, 1.0).tolist() == [0, 2, 2, 0, -2, 127, -128, 127, -128]
    assert affine.quantize(values, 1.0, 128, "uint8").tolist() == [128, 130, 130, 128, 126, 255, 0, 255, 0]


@given(values_strategy, scales, st.integers(-128, 127))
def test_a_round_trip_is_within_half_a_step_inside_the_range(values, scale, zero):
    low, high = (-128 - zero) * scale, (127 - zero) * scale
    back = affine.fake_quantize(values, scale, zero)
    inside = (values >= low) & (values <= high)
    assert np.all(np.abs(back - values)[inside] <= scale / 2 * (1 + 1e-4))
    assert np.array_equal(affine.fake_quantize(back, scale, zero), back)


@given(st.floats(-1000, 1000), st.floats(0, 1000), st.sampled_from(["int8", "uint8"]))
def test_a_range_keeps_zero_exact_and_its_ends_within_a_step(low, width, dtype):
    scale, zero = affine.scale_from_range(low, low + width, dtype)
    limits = np.iinfo(dtype)
    assert limits.min <= zero <= limits.max
    assert affine.fake_quantize(0.0, scale, zero, dtype) == 0
    for end in (low, low + width):
        assert abs(affine.fake_quantize(end, scale, zero, dtype) - end) <= scale * 1.0001


def test_ranges_per_channel_and_of_no_width():
    scale, zero = affine.scale_from_range([0.0, -1.0, 0.0], [2.55, 1.55, 0.0], "uint8")
    assert scale.tolist() == pytest.approx([0.01, 0.01, 1.0])
    assert zero.tolist() == [0, 100, 0]
    assert affine.symmetric_scale([127.0, 0.0]).tolist() == [1.0, 1.0]
    assert affine.symmetric_scale(-7.0, bits=4) == 1.0
    weights = np.array([-1.27, 1.27], np.float32)
    assert affine.quantize(weights, affine.symmetric_scale(1.27)).tolist() == [-127, 127]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: affine.quantize([1.0], 0.0), "positive"),
        (lambda: affine.quantize([np.nan], 1.0), "NaN"),
        (lambda: affine.quantize([1.0, 2.0], [1.0, 2.0]), "axis"),
        (lambda: affine.scale_from_range(0.0, np.inf), "finite"),
        (lambda: affine.symmetric_scale(np.nan), "finite"),
    ],
)
def test_what_has_no_meaning_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
