from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pocketfit.tasks.common.picture_quality import MOST_DB, psnr_db, ssim


def by_scipy(one: np.ndarray, other: np.ndarray, span: float) -> float:
    """Equation 13 of Wang et al. 2004 for one channel [H, W]; a window of 11 is cut off at 5 / 1.5 sigmas."""

    def mean(picture: np.ndarray) -> np.ndarray:
        return gaussian_filter(picture, 1.5, truncate=3.5, mode="reflect")

    a, b = mean(one), mean(other)
    va, vb, both = mean(one**2) - a**2, mean(other**2) - b**2, mean(one * other) - a * b
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    found = (2 * a * b + c1) * (2 * both + c2) / ((a**2 + b**2 + c1) * (va + vb + c2))
    return float(found[5:-5, 5:-5].mean())


@pytest.mark.parametrize(("span", "size"), [(1.0, (24, 31)), (255.0, (12, 16))])
def test_ssim_is_the_formula(span: float, size: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    one = draw.uniform(0, span, (3, 2, *size))
    other = np.clip(one + draw.normal(0, 0.2 * span, one.shape), 0, span)
    wanted = [
        np.mean([by_scipy(x, y, span) for x, y in zip(*pair, strict=True)]) for pair in zip(one, other, strict=True)
    ]
    assert ssim(one, other, span) == pytest.approx(wanted, abs=1e-12)
    assert ssim(one, one, span) == pytest.approx(1.0)


def test_ssim_of_a_picture_smaller_than_the_window_is_a_number() -> None:
    one = np.random.default_rng(0).uniform(0, 1, (1, 1, 4, 5))
    assert -1 <= ssim(one, 1 - one, 1.0)[0] < ssim(one, one, 1.0)[0] == pytest.approx(1.0)


def test_psnr_is_in_decibels() -> None:
    black = np.zeros((2, 1, 3, 3))
    assert psnr_db(black, black + 0.1, 1.0) == pytest.approx(20)
    assert psnr_db(255 * black, black + 25.5, 255.0) == pytest.approx(20)
    assert psnr_db(black, black, 1.0) == pytest.approx(MOST_DB)
