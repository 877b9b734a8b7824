"""The predictor: synthetic staircases are found again, block for block; rank correlation and fit against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import optimize, stats

from pocketfit.analysis import latency_predictor
from pocketfit.core.errors import UserError
from pocketfit.measurement.channel_cost_table import REST, CostTable, SubNetwork, draw
from pocketfit.numerics.channel_shapes import LayerShape, Side, Skeleton

CHAIN = Skeleton(
    {"enter": 64, "expand": 96},
    {"enter": 1, "expand": 1},
    (
        LayerShape("enter", "convolution", Side(0, {"enter": 1.0}), Side(3), 9, 64.0),
        LayerShape("expand", "pointwise", Side(0, {"expand": 1.0}), Side(0, {"enter": 1.0}), 1, 64.0),
        LayerShape("deep", "depthwise", Side(0, {"expand": 1.0}), Side(1), 9, 64.0),
        LayerShape("project", "pointwise", Side(24), Side(0, {"expand": 1.0}), 1, 64.0),
        LayerShape("head", "linear", Side(10), Side(24), 1, 1.0),
    ),
)


def staircase(widths, noise=0.0, random=None):
    """The layers in blocks of 16 outputs and 4 inputs, as a kernel with vectors of 16 floats takes them."""
    enter, expand = widths["enter"], widths["expand"]
    times = {
        "enter": 3 + 2.0 * -(-enter // 16),
        "expand": 1 + 0.25 * -(-enter // 4) * -(-expand // 16),
        "deep": 2 + 0.5 * -(-expand // 4),
        "project": 1 + 0.5 * -(-expand // 4),
        "head": 2.0,
        REST: 4 + 0.001 * 64 * (enter + 2 * expand + 24) + 0.001 * 10,
    }
    return {k: t * (1 if random is None else float(np.exp(random.normal(0, noise)))) for k, t in times.items()}


def table(count=24, seed=0, noise=0.0):
    random = np.random.default_rng(seed) if noise else None
    found = []
    for widths in draw(CHAIN, count, seed):
        times = staircase(widths, noise, random)
        total_ms = sum(times.values()) / 1000
        found.append(SubNetwork(widths, 1.0, total_ms, times))
    return CostTable(
        runtime="onnxruntime",
        threads=1,
        precision="float32",
        skeleton=CHAIN,
        full_ms=found[0].latency_ms,
        environment={},
        measured=tuple(found),
    )


def test_a_synthetic_staircase_is_predicted_exactly():
    fitted = latency_predictor.fit(table())
    for widths in draw(CHAIN, 40, 99):
        assert fitted.latency_ms(widths) == pytest.approx(sum(staircase(widths).values()) / 1000, rel=1e-6)
    found = latency_predictor.check(fitted, table(40, 99).measured)
    assert found.n == 40 and found.worst < 1e-6 and found.share_within == 1 and found.rank == pytest.approx(1)
    assert fitted.ratio({}) == 1 and fitted.ratio({"enter": 16}) < 1


def test_the_blocks_of_the_kernels_are_found():
    steps = latency_predictor.fit(table()).steps
    assert steps["convolution"][1] == steps["pointwise"][1] == 16
    # all widths were multiples of 8, so that steps of 4 and of 8 cannot be told apart
    assert steps["depthwise"][1] == steps["pointwise"][0] == 8
    fitted = latency_predictor.fit(table())
    assert fitted.latency_ms({"enter": 40, "expand": 48}) < fitted.latency_ms({"enter": 48, "expand": 48})
    at = {width: fitted.layers["enter"].us(3, width) for width in (32, 40, 48)}
    assert at[40] == at[48] > at[32]


def test_sums_are_brought_in_line_with_the_whole():
    """Latency rises faster than blocks of channels can say, as where weights no longer fit into a cache: what is left
    has neither a mean nor a slope (the normal equations of the last fit)."""
    measured = []
    for one in table(32, noise=0.02).measured:
        share = one.latency_ms**0.5
        times = {layer: time * share for layer, time in one.layer_us.items()}
        measured.append(SubNetwork(one.widths, 1.0, one.latency_ms * share, times))
    fitted = latency_predictor.fit(
        CostTable(
            runtime="onnxruntime",
            threads=1,
            precision="float32",
            skeleton=CHAIN,
            full_ms=1.0,
            environment={},
            measured=tuple(measured),
        )
    )
    latency_ms = np.array([one.latency_ms for one in measured])
    predicted_ms = np.array([fitted.latency_ms(one.widths) for one in measured])
    off = (predicted_ms - latency_ms) / latency_ms
    assert np.sum(off / latency_ms) == pytest.approx(0, abs=1e-6 * len(off))
    assert np.sum(off * predicted_ms / latency_ms) == pytest.approx(0, abs=1e-6 * len(off))
    whole = dict(CHAIN.full)
    summed_ms = sum(term.of(tuple(whole[name] for name in term.groups)) for term in fitted.terms())
    assert summed_ms == pytest.approx(fitted.latency_ms({}))


def test_errors_are_of_networks_that_were_not_fitted_on():
    """With pure noise in place of times a fit that had seen its answers would look better than this."""
    exact, noisy = latency_predictor.held_out(table()), latency_predictor.held_out(table(noise=0.05))
    assert exact.worst < 1e-6
    assert 0.005 < noisy.median < 0.05 and noisy.share_within > 0.9 and noisy.rank > 0.95
    seen = latency_predictor.check(latency_predictor.fit(table(noise=0.05)), table(noise=0.05).measured)
    assert seen.median < noisy.median * 1.5
    random = np.random.default_rng(0)
    spoilt = [
        SubNetwork(one.widths, 1.0, v, {k: t * v / one.latency_ms for k, t in one.layer_us.items()})
        for one, v in zip(table().measured, random.uniform(0.01, 1.0, 24), strict=True)
    ]
    hopeless = CostTable(
        runtime="onnxruntime",
        threads=1,
        precision="float32",
        skeleton=CHAIN,
        full_ms=1.0,
        environment={},
        measured=tuple(spoilt),
    )
    assert abs(latency_predictor.held_out(hopeless).rank) < 0.6 and latency_predictor.held_out(hopeless).median > 0.2


def test_terms_sum_up_to_the_latency():
    fitted = latency_predictor.fit(table(noise=0.05))
    for widths in draw(CHAIN, 10, 5):
        total = sum(term.of(tuple(widths[name] for name in term.groups)) for term in fitted.terms())
        assert total == pytest.approx(fitted.latency_ms(widths))


def test_too_small_and_torn_tables_are_refused():
    with pytest.raises(UserError, match="3 sub-networks says too little"):
        latency_predictor.fit(table(3))
    whole = table()
    torn = whole.measured[1]
    del torn.layer_us["deep"]
    with pytest.raises(UserError, match="says nothing of layer 'deep'"):
        latency_predictor.fit(whole)


@settings(deadline=None, max_examples=40)
@given(
    arrays.arrays(np.float64, (12, 4), elements=st.integers(0, 30).map(float)),
    arrays.arrays(np.float64, 12, elements=st.integers(-50, 100).map(float)),
)
def test_non_negative_least_squares_as_scipy_has_them(features, values):
    coefficients, left = latency_predictor.non_negative(features, values)
    _, norm = optimize.nnls(features, values)
    assert (coefficients >= 0).all()
    assert left == pytest.approx(float(np.sum((values - features @ coefficients) ** 2)), rel=1e-6, abs=1e-6)
    assert left <= norm**2 * (1 + 1e-6) + 1e-6


@settings(deadline=None)
@given(arrays.arrays(np.float64, (2, 15), elements=st.integers(0, 9).map(float)))
def test_rank_correlation_as_scipy_has_it(values):
    if np.ptp(values[0]) == 0 or np.ptp(values[1]) == 0:
        assert latency_predictor.rank_correlation(*values) == 0
    else:
        assert latency_predictor.rank_correlation(*values) == pytest.approx(stats.spearmanr(*values).statistic)
