"""The range [low, high] that a tensor's integers cover, from the values that it had during calibration.

An Observer looks at the samples twice: first for the limits, then for the histogram between them. `range_of` turns the
Summary into a range. Ranges always hold 0, which then has an exact integer (Jacob et al. 2018, section 2.1).
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.plan.export import RangeMethod

BINS = 2048  # as in TensorRT and ONNX Runtime's PercentileCalibrater
PERCENTILE = 99.999  # ONNX Runtime's PercentileCalibrater's default; half of the rest is cut off at either end
MOMENTUM = 0.95  # ai-edge-quantizer's default (qsv_utils.moving_average_update, smoothing_factor)
LARGEST = 1e30  # infinities and the largest float32, which stand for "no value", lie beyond it
CHUNK = 1 << 18  # values at a time: six times as fast as all at once, because intermediate results stay in the cache
HISTOGRAM_METHODS = ("percentile", "mse", "kl")
COARSE = 17  # ends of a range that are tried at once
SMOOTHING = 1e-4  # the count of an empty bin before a KL divergence is taken (ONNX Runtime's smooth_distribution)
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """The values of one tensor over all calibration samples, summed up.

    average_minimum, average_maximum   moving averages of each sample's minimum and maximum, in order, with MOMENTUM
    counts   [BINS] values in each of equally wide bins over [minimum, maximum]; [0] where no histogram was taken
    zeros    how many values are exactly 0, which no quantization changes (half of what a ReLU gives)
    """

    minimum: float
    maximum: float
    average_minimum: float
    average_maximum: float
    counts: Counts
    zeros: int = 0

    @property
    def edges(self) -> Floats:
        """[BINS + 1] edges of the bins."""
        return np.linspace(self.minimum, self.maximum, len(self.counts) + 1)

    @property
    def usable(self) -> bool:
        """Whether all values were finite numbers that a range can hold (comparisons with NaN are false)."""
        return abs(self.minimum) < LARGEST and abs(self.maximum) < LARGEST


class Observer:
    """Sums up one tensor: first `limit` with all samples; then, for a histogram, `count` with all samples again."""

    def __init__(self) -> None:
        self._minimum, self._maximum = np.inf, -np.inf
        self._average: tuple[float, float] | None = None
        self._counts: Counts = np.zeros(0, np.int64)
        self._zeros = 0

    def limit(self, minima: NDArray[np.floating], maxima: NDArray[np.floating]) -> None:
        """The smallest and the largest value of each of some samples, [n] and [n], in the order of the samples."""
        for low, high in zip(minima.ravel().tolist(), maxima.ravel().tolist(), strict=True):
            # np.minimum keeps a NaN, min() would lose it
            self._minimum, self._maximum = float(np.minimum(self._minimum, low)), float(np.maximum(self._maximum, high))
            before = self._average or (low, high)
            self._average = (
                MOMENTUM * before[0] + (1 - MOMENTUM) * low,
                MOMENTUM * before[1] + (1 - MOMENTUM) * high,
            )

    def look(self, samples: NDArray[np.floating]) -> None:
        """`limit` for whole samples [n, ...]; one without elements is passed over."""
        if samples.size:
            rows = samples.reshape(len(samples), -1)
            self.limit(rows.min(axis=1), rows.max(axis=1))

    def count(self, values: NDArray[np.floating]) -> None:
        """Put values [...] into the bins between the limits, which all samples have set before.

        A value beyond them (a kernel that sums in another order the second time) counts in the outermost bin.
        """
        if not self.summary().usable:
            return
        if not len(self._counts):
            self._counts = np.zeros(BINS, np.int64)
        flat = values.ravel()
        self._zeros += int(flat.size - np.count_nonzero(flat))
        width = (self._maximum - self._minimum) / BINS
        if width < np.finfo(np.float32).tiny:
            self._counts[0] += flat.size
            return
        for start in range(0, flat.size, CHUNK):
            part = flat[start : start + CHUNK] - np.float32(self._minimum)
            bins = (part * np.float32(1 / width)).astype(np.int32)
            np.clip(bins, 0, BINS - 1, out=bins)
            self._counts += np.bincount(bins, minlength=BINS)

    def summary(self) -> Summary:
        """The Summary so far; zeros for a tensor without elements."""
        if self._average is None:
            return Summary(0.0, 0.0, 0.0, 0.0, self._counts)
        return Summary(self._minimum, self._maximum, *self._average, self._counts, self._zeros)


def fingerprint(values: NDArray[np.floating]) -> list[float]:
    """[size, mean, standard deviation, minimum, maximum] of values [...], by which tensors of two files are matched.

    >>> fingerprint(np.array([[1.0, 3.0]], np.float32))
    [2.0, 2.0, 1.0, 1.0, 3.0]
    """
    if not values.size:
        return [0.0] * 5
    wide = values.astype(np.float64)
    return [float(wide.size), float(wide.mean()), float(wide.std()), float(wide.min()), float(wide.max())]


def save(summaries: Mapping[str, Summary], path: Path) -> None:
    """Write the summaries, by tensor name, as one .npz of plain arrays."""
    items = list(summaries.values())
    limits = [(s.minimum, s.maximum, s.average_minimum, s.average_maximum) for s in items]
    counted = [s.counts for s in items if len(s.counts)]
    with path.open("wb") as file:  # given a name, numpy would add ".npz" to it
        np.savez_compressed(
            file,
            names=np.array(list(summaries), np.str_),
            limits=np.array(limits, np.float64).reshape(-1, 4),
            zeros=np.array([s.zeros for s in items], np.int64),
            bins=np.array([len(s.counts) for s in items], np.int64),
            counts=np.concatenate(counted) if counted else np.zeros(0, np.int64),
        )


def load(path: Path) -> dict[str, Summary]:
    """The inverse of `save`. Raises ValueError for a file that `save` did not write."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names, limits, zeros = archive["names"].tolist(), archive["limits"].tolist(), archive["zeros"].tolist()
            ends, counts = np.cumsum(archive["bins"]), archive["counts"]
    except (KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"'{path}' does not hold what calibration saw") from error
    parts = np.split(counts, ends[:-1]) if names else []
    rows = zip(names, limits, parts, zeros, strict=True)
    return {name: Summary(a, b, c, d, part, zero) for name, (a, b, c, d), part, zero in rows}


def range_of(summary: Summary, method: RangeMethod, *, symmetric: bool = False, bits: int = 8) -> tuple[float, float]:
    """The range [low, high] that the integers should cover; low <= 0 <= high, and low == -high where `symmetric`.

    min-max         the smallest and the largest value
    moving-average  moving averages of the samples' minima and maxima
    percentile      a share of (100 - PERCENTILE) % of the values is cut off
    mse             the range with the least expected squared error of rounding and clipping
    kl              the range with the least divergence of the clipped, coarser histogram from the original (TensorRT)
    Raises ValueError where the values were no finite numbers, or where the method needs a histogram and none was taken.
    """
    if not summary.usable:
        raise ValueError(f"the values reach from {summary.minimum:g} to {summary.maximum:g}")
    low, high = summary.minimum, summary.maximum
    if method == "moving-average":
        low, high = summary.average_minimum, summary.average_maximum
    elif method in HISTOGRAM_METHODS and low < high:
        if not summary.counts.sum():
            raise ValueError(f"the method {method} needs a histogram, and none was taken")
        if method == "mse":
            low, high = mse_range(summary.counts, summary.edges, symmetric=symmetric, bits=bits, zeros=summary.zeros)
        elif method == "percentile":
            low, high = percentile_range(summary.counts, summary.edges)
            if low == high:  # one outlier is so far away that all other values are in one bin
                high += float(summary.edges[1] - summary.edges[0])
        else:
            counts, edges = centred(summary.counts, summary.edges)
            low, high = kl_range(counts, edges, levels=2 ** (bits - 1))
            low, high = max(low, summary.minimum), min(high, summary.maximum)
    low, high = min(low, 0.0), max(high, 0.0)
    largest = max(-low, high)
    return (-largest, largest) if symmetric else (low, high)


def percentile_range(counts: Counts, edges: Floats, percentile: float = PERCENTILE) -> tuple[float, float]:
    """[bins], [bins + 1] -> the lower edges of the bins that hold the two outer quantiles.

    ONNX Runtime's HistogramCollector.compute_percentile, asymmetric: (100 - percentile) / 2 % are cut off at each end.
    (The last bin ends at the largest value, so nothing is cut off where it holds more than that share.)

    >>> percentile_range(np.array([1, 98, 1]), np.array([0.0, 1.0, 2.0, 3.0]), 90)
    (1.0, 1.0)
    """
    cut = (100.0 - percentile) / 200.0
    share = np.cumsum(counts / counts.sum())
    low, high = np.searchsorted(share, cut), np.searchsorted(share, 1.0 - cut)
    return float(edges[low]), float(edges[high])


def squared_error(
    low: Floats, high: Floats, counts: Counts, edges: Floats, *, symmetric: bool = False, bits: int = 8, zeros: int = 0
) -> Floats:
    """Expected squared error, summed over all values, of rounding to the integers of [low, high]; both [n] -> [n].

    The values of a bin are taken to lie evenly in it; those of the first and last bin at its outer end, where a clipped
    activation (ReLU, ReLU6) has many, and exact zeros at 0. With a step s, and k the integer that x is given, the
    integral of (x - ks)² from 0 to x is k s³/12 + (x - ks)³/3: inside the range that is s²/12 a value where bins are
    wide (Widrow and Kollár 2008, section 4), and outside it, where k stays, the squared distance from its end. Steps
    and zero points are those of numerics.affine. A range of no width costs inf.
    """
    largest = 2 ** (bits - 1) - 1
    steps = high / largest if symmetric else (high - low) / (2**bits - 1)
    usable = steps > np.finfo(np.float32).tiny
    step = np.where(usable, steps, 1.0)[:, None]
    first = np.full_like(step, -largest) if symmetric else np.rint(low[:, None] / step)
    last = np.full_like(step, largest) if symmetric else first + 2**bits - 1
    integers = np.clip(np.rint(edges / step), first, last)
    rests = edges - integers * step
    integral = integers * step**3 / 12 + rests * rests * rests / 3  # numpy's own cube is many times as slow
    inner = counts[1:-1].astype(np.float64)
    if edges[1] <= 0 < edges[-2]:
        inner[int(np.searchsorted(edges, 0.0, "right")) - 2] -= zeros
    density = np.maximum(inner, 0.0) / np.diff(edges[1:-1])
    ends = rests[:, 0] ** 2 * counts[0] + rests[:, -1] ** 2 * counts[-1]
    return np.where(usable, np.diff(integral[:, 1:-1], axis=1) @ density + ends, np.inf)


def mse_range(
    counts: Counts, edges: Floats, *, symmetric: bool = False, bits: int = 8, zeros: int = 0
) -> tuple[float, float]:
    """[bins], [bins + 1] -> the range between two edges around 0 with the least `squared_error`.

    Every pair of edges is tried where there are few; else COARSE of either end, and then more and more closely around
    the best.
    """
    lows = np.unique(np.append(edges[edges < 0], 0.0))[::-1]
    highs = np.unique(np.append(edges[edges > 0], 0.0))
    if symmetric:
        lows, highs = np.zeros(1), np.unique(np.concatenate([-lows, highs]))
    rows, columns = _spread(0, len(lows) - 1), _spread(0, len(highs) - 1)
    while True:
        row, column = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))
        low, high = (-highs[column] if symmetric else lows[row]), highs[column]
        errors = squared_error(low, high, counts, edges, symmetric=symmetric, bits=bits, zeros=zeros)
        best = int(np.argmin(errors))
        gap = max(int(np.diff(rows).max(initial=1)), int(np.diff(columns).max(initial=1)))
        if gap == 1:
            return float(low[best]), float(high[best])
        rows = _spread(max(int(row[best]) - gap, 0), min(int(row[best]) + gap, len(lows) - 1))
        columns = _spread(max(int(column[best]) - gap, 0), min(int(column[best]) + gap, len(highs) - 1))


def _spread(first: int, last: int) -> NDArray[np.int64]:
    """At most COARSE whole numbers from the first to the last, both among them."""
    return np.unique(np.linspace(first, last, min(COARSE, last - first + 1)).round().astype(np.int64))


def centred(counts: Counts, edges: Floats) -> tuple[Counts, Floats]:
    """The same values in as many bins over [-largest, largest], whole numbers of them; an odd number grows by one.

    >>> centred(np.array([4, 2]), np.array([0.0, 1.0, 2.0]))
    (array([0, 6]), array([-2.,  0.,  2.]))
    """
    largest = max(abs(float(edges[0])), abs(float(edges[-1])))
    new_edges = np.linspace(-largest, largest, len(counts) + len(counts) % 2 + 1)
    below = np.interp(new_edges, edges, np.concatenate([[0], np.cumsum(counts)]))
    return np.diff(np.rint(below).astype(np.int64)), new_edges


def kl_range(counts: Counts, edges: Floats, levels: int = 128) -> tuple[float, float]:
    """[bins], [bins + 1] around 0 -> the range whose clipped histogram, in `levels` levels, diverges least from it.

    Migacz, 8-bit inference with TensorRT (GTC 2017), as ONNX Runtime's HistogramCollector.get_entropy_threshold carries
    it out: whole counts, float32 divergences, the first of equally good ranges.
    """
    middle, half = len(counts) // 2, levels // 2
    if half > middle:
        return float(edges[0]), float(edges[-1])
    ends = [(middle - i, min(middle + i + 1, len(counts))) for i in range(half, middle + 1)]
    divergences = [_divergence(counts, start, end, levels) for start, end in ends]
    start, end = ends[int(np.argmin(divergences))]
    return float(edges[start]), float(edges[end])


def _divergence(counts: Counts, start: int, end: int, levels: int) -> float:
    """KL(P || Q): P is the histogram with all that lies outside [start, end) put into its outer bins, Q the bins inside
    merged into levels and spread again over those that P fills."""
    inside = counts[start:end]
    reference = inside.copy()
    reference[0] += counts[:start].sum()
    reference[-1] += counts[end:].sum()
    filled = (reference != 0).astype(np.int64)
    per_level = len(inside) // levels
    merged = levels * per_level
    sums = inside[:merged].reshape(levels, per_level).sum(axis=1)
    sums[-1] += inside[merged:].sum()
    kept = filled[:merged].reshape(levels, per_level).sum(axis=1)
    spread = np.divide(sums, kept, out=np.zeros(levels), where=kept != 0).astype(np.int64)
    candidate = np.zeros(len(inside), np.int64)
    candidate[:merged] = np.repeat(spread, per_level)
    p, q = _smooth(reference), _smooth(candidate)
    if p is None or q is None:
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))


def _smooth(counts: Counts) -> NDArray[np.float32] | None:
    """Give each empty bin SMOOTHING, taken evenly from the others; None where they do not hold that much."""
    empty = (counts == 0).astype(np.float32)
    filled = (counts != 0).astype(np.float32)
    n_empty, n_filled = empty.sum(), filled.sum()
    if not n_filled:
        return None
    taken = SMOOTHING * float(n_empty) / float(n_filled)
    if taken >= 1.0:
        return None
    smooth: NDArray[np.float32] = counts.astype(np.float32) + (SMOOTHING * empty + -taken * filled)
    return smooth


def needs_histogram(method: RangeMethod) -> bool:
    """Whether `range_of` needs the histogram, which costs a second look at all values."""
    return method in HISTOGRAM_METHODS
