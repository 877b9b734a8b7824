"""Measures of the difference between an array and a reference of the same shape."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def sqnr_db(reference: ArrayLike, other: ArrayLike) -> float:
    """Signal to quantization noise ratio in decibels: 10 log10(sum reference² / sum (reference - other)²).

    inf where both are equal, -inf where the reference is all zero and the other is not, nan where a NaN is in either.
    6 dB are one bit; below about 10 dB a classifier's predictions usually start to change.

    >>> round(sqnr_db([1.0, 1.0], [1.1, 0.9]), 6)
    20.0
    """
    signal, noise = energies(reference, other)
    return ratio_db(signal, noise)


def energies(reference: ArrayLike, other: ArrayLike) -> tuple[float, float]:
    """(sum reference², sum (reference - other)²) in float64, for sums over many arrays.

    >>> energies([3.0, 4.0], [3.0, 3.0])
    (25.0, 1.0)
    """
    ours, theirs = _same_shape(reference, other)
    error = ours - theirs
    return float(ours @ ours), float(error @ error)


def ratio_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise); inf without noise, -inf without signal.

    >>> ratio_db(100.0, 1.0), ratio_db(1.0, 0.0)
    (20.0, inf)
    """
    if math.isnan(signal) or math.isnan(noise):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def cosine(reference: ArrayLike, other: ArrayLike) -> float:
    """Cosine of the angle between two arrays taken as vectors; 1 where both are zero, 0 where one is.

    >>> cosine([1.0, 0.0], [2.0, 0.0])
    1.0
    """
    ours, theirs = _same_shape(reference, other)
    first, second = float(np.linalg.norm(ours)), float(np.linalg.norm(theirs))
    if first == 0 or second == 0:
        return 1.0 if first == second else 0.0
    return float(np.clip((ours / first) @ (theirs / second), -1.0, 1.0))


def agreement(reference: ArrayLike, other: ArrayLike) -> float:
    """Share of rows of [n, classes] on which both name the same top class; a row with a NaN agrees with nothing.

    >>> agreement([[1, 2], [2, 1]], [[0, 9], [0, 9]])
    0.5
    """
    ours, theirs = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    if ours.ndim != 2 or ours.shape != theirs.shape or ours.size == 0:
        raise ValueError(f"two arrays [n, classes] are needed, got {ours.shape} and {theirs.shape}")
    usable = ~(np.isnan(ours).any(axis=1) | np.isnan(theirs).any(axis=1))
    return float(np.mean((ours.argmax(axis=1) == theirs.argmax(axis=1)) & usable))


def _same_shape(reference: ArrayLike, other: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ours, theirs = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"arrays of one shape are needed, got {ours.shape} and {theirs.shape}")
    return ours.ravel(), theirs.ravel()
