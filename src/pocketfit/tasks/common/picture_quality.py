"""How near two pictures are: PSNR and SSIM, in numpy.

Pictures are float [n, C, H, W]; `span` is the difference between white and black.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WINDOW, SIGMA = 11, 1.5  # of the Gaussian (Wang et al. 2004, section III.B)
K1, K2 = 0.01, 0.03  # the paper's constants
MOST_DB = 100.0  # PSNR of equal pictures, and the largest that is told


def span_of(pictures: NDArray[np.generic]) -> tuple[float, float]:
    """(black, white) in the numbers of these pictures: 0 and 1, -1 and 1, 0 and 255, else their own extremes.

    Networks give numbers a little beyond both ends.

    >>> span_of(np.array([0.02, 1.04])), span_of(np.array([-0.9, 0.8])), span_of(np.array([3.0, 240.0]))
    ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
    """
    low, high = float(np.min(pictures)), float(np.max(pictures))
    if low >= -0.25 and high <= 1.25:
        return 0.0, 1.0
    if low >= -1.5 and high <= 1.5:
        return -1.0, 1.0
    if low >= -64 and 8 < high <= 320:
        return 0.0, 255.0
    return low, high


def psnr_db(one: NDArray[np.float64], other: NDArray[np.float64], span: float) -> NDArray[np.float64]:
    """10 log10(span² / mean squared error) of each picture, [n], at most MOST_DB."""
    error = ((one - other) ** 2).reshape(len(one), -1).mean(axis=1)
    return np.asarray(np.minimum(MOST_DB, 10 * np.log10(span**2 / np.maximum(error, span**2 * 1e-30))))


def ssim(one: NDArray[np.float64], other: NDArray[np.float64], span: float) -> NDArray[np.float64]:
    """The mean structural similarity of each picture, [n] (Wang et al. 2004, equation 13), the mean over its channels.

    It is taken where the whole window lies inside the picture; in a picture that is smaller, at its edges as well. This
    is scikit-image's structural_similarity with gaussian_weights=True, sigma=1.5, use_sample_covariance=False.
    """
    found = np.empty(len(one))
    for row, (ours, theirs) in enumerate(zip(one, other, strict=True)):
        a, b = _blurred(ours), _blurred(theirs)
        va, vb = _blurred(ours * ours) - a * a, _blurred(theirs * theirs) - b * b
        both = _blurred(ours * theirs) - a * b
        c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
        each = (2 * a * b + c1) * (2 * both + c2) / ((a * a + b * b + c1) * (va + vb + c2))
        edge = WINDOW // 2 if min(each.shape[1:]) > WINDOW else 0
        found[row] = each[:, edge : each.shape[1] - edge, edge : each.shape[2] - edge].mean()
    return found


def _blurred(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """By the Gaussian window along both axes, [C, H, W]; beyond an edge lies the mirrored picture."""
    reach = WINDOW // 2
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / SIGMA) ** 2)
    taps /= taps.sum()
    for axis in (1, 2):
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[axis] = (reach, reach)
        wide = np.pad(picture, pad, mode="symmetric")
        size = picture.shape[axis]
        picture = sum(
            (tap * np.take(wide, np.arange(at, at + size), axis) for at, tap in enumerate(taps.tolist())),
            np.zeros_like(picture),
        )
    return picture
