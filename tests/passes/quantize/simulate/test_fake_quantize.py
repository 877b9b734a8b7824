"""Fake quantization for training against torch's own, and against its twin in numerics/affine.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pocketfit.numerics import affine
from pocketfit.passes.quantize.simulate import fake_quantize

FINITE = st.floats(-50, 50, width=32)
RANGES = st.tuples(st.floats(-20, 0), st.floats(0.01, 20))


@given(st.lists(FINITE, min_size=1, max_size=40), RANGES)
def test_activations_are_the_twin_of_affine(values: list[float], ends: tuple[float, float]) -> None:
    array = np.array(values, np.float32)
    low, high = (torch.tensor(end, dtype=torch.float64) for end in ends)
    scale, zero = fake_quantize.grid_of(*ends)
    their_scale, their_zero = affine.scale_from_range(*ends, "uint8")
    assert scale == pytest.approx(float(their_scale), rel=1e-6)
    assert abs(zero - int(their_zero)) <= 1, "rounded from float64 here, and from float32 there"
    got = fake_quantize.fake_activation(torch.from_numpy(array), low, high).numpy()
    wanted = affine.fake_quantize(array, np.float32(scale), zero, "uint8")
    step = np.abs(got - wanted) / scale  # a value on a tie may go either way, by one whole step
    assert np.all((step < 1e-3) | (np.abs(step - 1) < 1e-3))
    ratio = array / scale
    ties = np.abs(ratio - np.floor(ratio) - 0.5) < 1e-3
    assert np.all((step < 1e-3) | ties)


@given(st.integers(0, 10**6), RANGES)
def test_activations_are_torchs_own(seed: int, ends: tuple[float, float]) -> None:
    """Bit for bit, ties and what is clipped included."""
    scale, zero = fake_quantize.grid_of(*ends)
    values = torch.randn(500, generator=torch.Generator().manual_seed(seed)) * 12
    values = torch.cat([values, (torch.arange(-300, 300) + 0.5) * scale])
    low, high = (torch.tensor(end, dtype=torch.float64) for end in ends)
    assert torch.equal(
        fake_quantize.fake_activation(values, low, high),
        torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255),
    )


@given(st.integers(0, 10**6), st.sampled_from([4, 7, 8]), st.integers(0, 1))
def test_weights_are_the_twin_of_affine(seed: int, bits: int, axis: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((5, 4, 3, 3)).astype(np.float32)
    scale = fake_quantize.widest_scale(torch.from_numpy(weight), bits, axis)
    others = tuple(d for d in range(4) if d != axis)
    wanted = affine.symmetric_scale(np.abs(weight).max(others), bits)
    np.testing.assert_array_equal(scale.numpy().ravel(), wanted)
    got = fake_quantize.fake_weight(torch.from_numpy(weight), scale, bits).numpy()
    np.testing.assert_allclose(got, affine.fake_quantize(weight, wanted, axis=axis), rtol=1e-6, atol=0)


@given(st.integers(0, 10**6), RANGES)
@example(22467, (-17.75101588688683, 4.123534707309494))  # a tie
def test_gradients_of_activations_are_torchs(seed: int, ends: tuple[float, float]) -> None:
    """torch's learnable fake quantization has a step and a zero point where ours has two ends: chain rule."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(200, generator=generator) * 12
    weight = torch.randn(200, generator=generator)
    low, high = (torch.tensor(end, requires_grad=True) for end in ends)
    scale, zero = fake_quantize.grid_of(*ends)
    for end in (-zero * scale, (255 - zero) * scale):  # up to half a step beyond an end, torch takes a value for inside
        weight[(values - end).abs() <= 0.51 * scale] = 0
    weight[((values / scale).frac().abs() - 0.5).abs() < 1e-3] = 0  # ties: the two divide in another order
    ours = values.clone().requires_grad_()
    fake_quantize.fake_activation(ours, low, high).backward(weight)
    step, point = torch.tensor([scale], requires_grad=True), torch.tensor([float(zero)], requires_grad=True)
    theirs = values.clone().requires_grad_()
    torch._fake_quantize_learnable_per_tensor_affine(theirs, step, point, 0, 255, 1.0).backward(weight)
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert low.grad is not None and high.grad is not None and step.grad is not None and point.grad is not None
    # y = (q - zero) step with q at an end; widening both ends by the same factor widens the step alone.
    together = low.grad * (-zero * scale) + high.grad * (255 - zero) * scale
    torch.testing.assert_close(together, step.grad[0] * scale, rtol=1e-3, atol=1e-2)


def test_gradients_of_weights() -> None:
    """LSQ, equation 3: inside, the rounding error; outside, the end."""
    weight = torch.tensor([[0.24, -9.0, 0.0]], requires_grad=True)
    scale = torch.tensor([[0.1]], requires_grad=True)
    fake_quantize.fake_weight(weight, scale, 4).backward(torch.tensor([[1.0, 2.0, 5.0]]))
    assert weight.grad is not None and scale.grad is not None
    assert weight.grad.tolist() == [[1.0, 0.0, 5.0]]
    assert scale.grad.item() == pytest.approx((2 - 2.4) * 1 + -7 * 2, rel=1e-5)


def test_a_range_without_width_has_a_grid() -> None:
    assert fake_quantize.grid_of(0.0, 0.0) == (1.0, 0)
    values = fake_quantize.fake_activation(torch.zeros(3), torch.zeros(()), torch.zeros(()))
    assert values.tolist() == [0, 0, 0]
