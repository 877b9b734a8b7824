from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnxruntime.quantization.calibrate import HistogramCollector

from pocketfit.numerics import quantization_ranges
from pocketfit.numerics.affine import fake_quantize, scale_from_range, symmetric_scale
from pocketfit.numerics.quantization_ranges import Observer, Summary, range_of

METHODS = ("min-max", "moving-average", "percentile", "mse", "kl")


def summary_of(samples: np.ndarray) -> Summary:
    """Of samples [n, ...]."""
    observer = Observer()
    observer.look(samples)
    observer.count(samples)
    return observer.summary()


def draw(kind: str, n: int = 40_000, seed: int = 0) -> np.ndarray:
    """Values as layers give them, float32 [10, n / 10]."""
    rng = np.random.default_rng(seed)
    values = {
        "normal": rng.normal(0.5, 2, n),
        "relu": np.maximum(rng.normal(0, 2, n), 0),
        "relu6": np.clip(rng.normal(2, 4, n), 0, 6),
        "heavy": rng.standard_t(4, n),
        "negative": -np.abs(rng.normal(3, 1, n)),
    }[kind]
    return values.astype(np.float32).reshape(10, -1)


KINDS = ("normal", "relu", "relu6", "heavy", "negative")


def onnx_runtimes(kind: str, bins: int, percentile: float) -> HistogramCollector:
    collector = HistogramCollector("entropy", False, bins, 128, percentile, "same")
    collector.collect({"t": draw(kind)})
    return collector


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [99.0, 99.99, 99.999])
def test_percentiles_are_those_of_onnx_runtime(kind: str, percentile: float) -> None:
    collector = onnx_runtimes(kind, 2048, percentile)
    counts, edges, minimum, maximum, _ = collector.histogram_dict["t"]
    low, high = quantization_ranges.percentile_range(counts, edges, percentile)
    wanted = collector.compute_percentile()["t"]
    assert (max(low, float(minimum)), min(high, float(maximum))) == (float(wanted[0]), float(wanted[1]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bins", [128, 300, 513])
def test_kl_ranges_are_those_of_onnx_runtime(kind: str, bins: int) -> None:
    collector = onnx_runtimes(kind, bins, 99.9)
    counts, edges, minimum, maximum, _ = collector.histogram_dict["t"]
    low, high = quantization_ranges.kl_range(counts, edges)
    wanted = collector.compute_entropy()["t"]
    assert (max(low, float(minimum)), min(high, float(maximum))) == (float(wanted[0]), float(wanted[1]))


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.int64, st.integers(128, 200), elements=st.one_of(st.just(0), st.integers(0, 10_000))))
def test_kl_ranges_of_any_histogram_are_those_of_onnx_runtime(counts: np.ndarray) -> None:
    """Where ONNX Runtime has an answer: it stops where smoothing takes more than the bins hold."""
    edges = np.linspace(-1, 1, len(counts) + 1)
    collector = HistogramCollector("entropy", False, len(counts), 128, 99.9, "same")
    try:
        wanted = collector.get_entropy_threshold((counts, edges, edges[0], edges[-1], edges[-1]), 128)
    except AssertionError:
        return
    assert quantization_ranges.kl_range(counts, edges) == (float(wanted[0]), float(wanted[1]))


def test_an_observer_sums_up_what_it_saw() -> None:
    samples = np.array([[0.0, 1.0], [-2.0, 3.0], [0.0, 0.0]], np.float32)
    summary = summary_of(samples)
    assert (summary.minimum, summary.maximum, summary.zeros) == (-2.0, 3.0, 3)
    assert summary.average_minimum == pytest.approx(0.95 * (0.95 * 0.0 + 0.05 * -2.0) + 0.05 * 0.0)
    assert summary.average_maximum == pytest.approx(0.95 * (0.95 * 1.0 + 0.05 * 3.0) + 0.05 * 0.0)
    assert summary.counts.sum() == 6
    assert (summary.counts[0], summary.counts[-1]) == (1, 1)


def test_the_moving_average_is_ai_edge_quantizers() -> None:
    utils = pytest.importorskip("ai_edge_quantizer.utils.qsv_utils")
    samples = draw("heavy")
    qsv: dict = {}
    for row in samples:
        qsv = utils.moving_average_update(qsv, {"min": row.min(), "max": row.max()})
    low, high = range_of(summary_of(samples), "moving-average")
    assert (low, high) == pytest.approx((float(qsv["min"]), float(qsv["max"])), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_histograms_are_numpys(kind: str) -> None:
    samples = draw(kind)
    summary = summary_of(samples)
    wanted, _ = np.histogram(samples, quantization_ranges.BINS, range=(summary.minimum, summary.maximum))
    assert summary.counts.sum() == samples.size
    # float32 puts a value that lies on an edge into the bin beside it
    assert np.abs(np.cumsum(summary.counts) - np.cumsum(wanted)).max() <= 3


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 20)), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from(METHODS),
    st.booleans(),
)
def test_every_range_is_a_range(samples: np.ndarray, method: str, symmetric: bool) -> None:
    """0 is in it, and nothing lies outside what was seen."""
    summary = summary_of(samples)
    low, high = range_of(summary, method, symmetric=symmetric)
    assert low <= 0 <= high
    largest = max(abs(summary.minimum), abs(summary.maximum)) * (1 + 1e-6)
    assert -largest <= low
    assert high <= largest
    if symmetric:
        assert low == -high
    if np.abs(samples).max() > 1e-30:
        assert low < high, "a range of no width would have a scale of 1"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("value", "wanted"), [(0.0, (0.0, 0.0)), (3.0, (0.0, 3.0)), (-2.0, (-2.0, 0.0))])
def test_constant_tensors_have_a_range(method: str, value: float, wanted: tuple[float, float]) -> None:
    assert range_of(summary_of(np.full((4, 5), value, np.float32)), method) == wanted


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.float32(3e38)])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_number_has_no_range(method: str, value: float) -> None:
    samples = np.array([[0.0, 1.0], [value, 1.0], [0.0, 2.0]], np.float32)
    with pytest.raises(ValueError, match="reach from"):
        range_of(summary_of(samples), method)


@pytest.mark.parametrize("method", ["percentile", "mse", "kl"])
def test_a_method_without_its_histogram_says_so(method: str) -> None:
    observer = Observer()
    observer.look(draw("normal"))
    with pytest.raises(ValueError, match="needs a histogram"):
        range_of(observer.summary(), method)
    assert range_of(observer.summary(), "min-max")[0] < 0


def test_a_tensor_without_elements_is_all_zero() -> None:
    samples = np.zeros((3, 0), np.float32)
    assert range_of(summary_of(samples), "min-max") == (0.0, 0.0)


def measured_error(values: np.ndarray, low: float, high: float, *, symmetric: bool = False) -> float:
    """Summed squared error of a trip through the integers, by numerics.affine."""
    scale, zero = (symmetric_scale(high), 0) if symmetric else scale_from_range(low, high, "uint8")
    back = fake_quantize(values, scale, zero, "int8" if symmetric else "uint8")
    if symmetric:
        back = np.maximum(back, -np.float32(high))  # -128 stays unused
    return float(np.sum((back - values.astype(np.float64)) ** 2))


def expected_error(summary: Summary, low: float, high: float, *, symmetric: bool = False) -> float:
    found = quantization_ranges.squared_error(
        np.array([low]), np.array([high]), summary.counts, summary.edges, symmetric=symmetric, zeros=summary.zeros
    )
    return float(found[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_mse_range_is_the_best_when_it_is_measured(*, kind: str, symmetric: bool) -> None:
    samples = draw(kind, 200_000)
    summary = summary_of(samples)
    error = {
        m: measured_error(samples, *range_of(summary, m, symmetric=symmetric), symmetric=symmetric) for m in METHODS
    }
    assert error["mse"] <= 1.02 * min(error.values())
    if kind in ("normal", "heavy"):
        assert error["mse"] < 0.9 * error["min-max"]
    low, high = range_of(summary, "mse", symmetric=symmetric)
    around = [measured_error(samples, low * s, high * s, symmetric=symmetric) for s in (0.7, 0.9, 1.1, 1.4)]
    assert error["mse"] <= 1.02 * min(around)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_expected_error_is_the_measured_one(*, kind: str, share: float, symmetric: bool) -> None:
    samples = draw(kind, 200_000)
    summary = summary_of(samples)
    low, high = min(summary.minimum * share, 0), max(summary.maximum * share, 0)
    if symmetric:
        high = max(-low, high)
        low = -high
    measured = measured_error(samples, low, high, symmetric=symmetric)
    assert expected_error(summary, low, high, symmetric=symmetric) == pytest.approx(measured, rel=0.02)


def brute_force(counts: np.ndarray, edges: np.ndarray, bits: int, *, symmetric: bool) -> float:
    """The least error over all pairs of edges around zero, by fine sampling of each bin."""
    inner = (np.arange(500) + 0.5) / 500
    values = edges[:-1, None] + np.diff(edges)[:, None] * inner
    values[0], values[-1] = edges[0], edges[-1]
    values, weights = values.ravel(), np.repeat(counts / 500, 500)
    lows, highs = [e for e in edges if e < 0] + [0.0], [e for e in edges if e > 0] + [0.0]
    pairs = [(-e, e) for e in {abs(e) for e in (*lows, *highs)}] if symmetric else itertools.product(lows, highs)
    best = np.inf
    for low, high in pairs:
        if low == high:
            continue
        levels = 2 ** (bits - 1) - 1
        step = high / levels if symmetric else (high - low) / (2**bits - 1)
        first = -levels if symmetric else np.rint(low / step)
        last = levels if symmetric else first + 2**bits - 1
        error = values - np.clip(np.rint(values / step), first, last) * step
        best = min(best, float((weights * error**2).sum()))
    return best


@settings(deadline=None, max_examples=40)
@given(
    hnp.arrays(np.int64, st.integers(2, 9), elements=st.integers(0, 1000)).filter(lambda c: c.sum() > 0),
    st.integers(-50, 10).map(lambda tenths: tenths / 10),
    st.floats(0.5, 5),
    st.sampled_from([2, 4]),
    st.booleans(),
)
def test_the_mse_range_is_that_of_brute_force(
    counts: np.ndarray,
    start: float,
    width: float,
    bits: int,
    symmetric: bool,
) -> None:
    edges = np.linspace(start, start + width, len(counts) + 1)
    low, high = quantization_ranges.mse_range(counts, edges, symmetric=symmetric, bits=bits)
    found = quantization_ranges.squared_error(
        np.array([low]), np.array([high]), counts, edges, symmetric=symmetric, bits=bits
    )
    wanted = brute_force(counts, edges, bits, symmetric=symmetric)
    assert float(found[0]) == pytest.approx(wanted, rel=2e-2, abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(
    hnp.arrays(np.int64, 300, elements=st.integers(0, 50)).filter(lambda c: c.sum() > 0),
    st.floats(-5, 0),
    st.floats(0.5, 5),
    st.booleans(),
)
def test_the_mse_range_is_never_worse_than_all_that_was_seen(
    counts: np.ndarray,
    start: float,
    width: float,
    symmetric: bool,
) -> None:
    summary = Summary(start, start + width, start, start + width, counts)
    found, whole = (range_of(summary, method, symmetric=symmetric) for method in ("mse", "min-max"))
    wanted = expected_error(summary, *whole, symmetric=symmetric)
    assert expected_error(summary, *found, symmetric=symmetric) <= wanted * (1 + 1e-9)


def test_exact_zeros_are_not_rounded() -> None:
    """A layer whose inputs are mostly padding: spread over their bin its zeros would cost something."""
    samples = draw("normal", 100_000)
    samples[5:] = 0
    summary = summary_of(samples)
    assert summary.zeros == int((samples == 0).sum())
    low, high = summary.minimum, summary.maximum
    blind = Summary(low, high, low, high, summary.counts)
    measured = measured_error(samples, low, high)
    assert expected_error(summary, low, high) == pytest.approx(measured, rel=0.01)
    assert expected_error(blind, low, high) != pytest.approx(measured, rel=0.01)


def test_one_far_outlier_leaves_the_percentile_a_range() -> None:
    samples = np.full((10, 100_000), 0.5, np.float32)
    samples[0, 0] = 1e5
    low, high = range_of(summary_of(samples), "percentile")
    assert (low, high) == (0.0, pytest.approx(0.5 + (1e5 - 0.5) / quantization_ranges.BINS))


def test_summaries_survive_the_disk(tmp_path: Path) -> None:
    observer = Observer()
    observer.look(draw("relu6"))
    given_ = {"conv/1": summary_of(draw("normal")), "ü" * 3: observer.summary(), "c": summary_of(draw("heavy", 200))}
    quantization_ranges.save(given_, tmp_path / "a.npz")
    found = quantization_ranges.load(tmp_path / "a.npz")
    assert list(found) == list(given_)
    for name, wanted in given_.items():
        ours = found[name]
        assert (ours.minimum, ours.maximum, ours.zeros) == (wanted.minimum, wanted.maximum, wanted.zeros)
        assert (ours.average_minimum, ours.average_maximum) == (wanted.average_minimum, wanted.average_maximum)
        np.testing.assert_array_equal(ours.counts, wanted.counts)
    quantization_ranges.save({}, tmp_path / "b.npz")
    assert quantization_ranges.load(tmp_path / "b.npz") == {}


def test_what_is_no_summary_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", names=np.array(["x"]))
    with pytest.raises(ValueError, match="does not hold"):
        quantization_ranges.load(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", names=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match="allow_pickle"):
        quantization_ranges.load(tmp_path / "b.npz")
