"""Oracles: scipy, published worked examples, and coverage: counted exactly where it can be, simulated elsewhere."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pocketfit.core.errors import UserError
from pocketfit.numerics import latency_intervals

Z95 = 1.959963984540054


# --- quantiles ---


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 49, 999, 2000, 100_000])
@pytest.mark.parametrize("share", [0.9, 0.95, 0.975, 0.995])
def test_student_t_equals_scipy(share, degrees):
    tolerance = 1e-8 if degrees <= 2000 else 1e-4
    assert latency_intervals.student_t(share, degrees) == pytest.approx(stats.t.ppf(share, degrees), rel=tolerance)


# --- ratios ---


def rounds_of(random, ratio, rounds=60, noise=0.05):
    """Interleaved rounds of two files: a drift that both share, heavy-tailed noise of each."""
    drift = np.exp(np.cumsum(random.normal(0, 0.02, rounds)))
    baseline = drift * np.exp(noise * random.standard_t(3, rounds))
    candidate = ratio * drift * np.exp(noise * random.standard_t(3, rounds))
    return candidate, baseline


def test_bootstrap_ratio_covers_the_true_ratio_despite_drift():
    random = np.random.default_rng(1)
    hits = 0
    for number in range(300):
        found = latency_intervals.bootstrap_ratio(*rounds_of(random, 0.6), resamples=400, seed=number)
        hits += found.low <= 0.6 <= found.high
    assert hits / 300 >= 0.91


def test_bootstrap_ratio_is_repeatable_and_follows_its_seed():
    candidate, baseline = rounds_of(np.random.default_rng(2), 0.5)
    first = latency_intervals.bootstrap_ratio(candidate, baseline, seed=7)
    assert first == latency_intervals.bootstrap_ratio(candidate, baseline, seed=7)
    assert first != latency_intervals.bootstrap_ratio(candidate, baseline, seed=8)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.floats(0.1, 10))
@settings(max_examples=50)
def test_exactly_proportional_rounds_have_an_interval_of_no_width(baseline, ratio):
    found = latency_intervals.bootstrap_ratio(np.array(baseline) * ratio, baseline, resamples=50)
    assert [found.value, found.low, found.high] == pytest.approx([ratio] * 3)


@pytest.mark.parametrize("bad", [([1.0], [1.0, 2.0]), ([], []), ([0.0], [1.0]), ([math.nan], [1.0])])
def test_bootstrap_ratio_refuses_what_is_no_pair_of_times(bad):
    with pytest.raises(ValueError, match=r"values|times"):
        latency_intervals.bootstrap_ratio(*bad)


def coverage_of_sessions(session_deviation, sessions, trials=400):
    random = np.random.default_rng(3)
    hits = below = 0
    for number in range(trials):
        pairs = [rounds_of(random, 0.6 * math.exp(random.normal(0, session_deviation)), 30) for _ in range(sessions)]
        candidate, baseline = zip(*pairs, strict=True)
        found = latency_intervals.ratio_of_sessions(candidate, baseline, resamples=100, seed=number)
        assert found.interval.low <= found.interval.value <= found.interval.high
        hits += found.interval.low <= 0.6 <= found.interval.high
        below += found.upper_one_sided >= 0.6
    return hits / trials, below / trials


@pytest.mark.parametrize(("session_deviation", "sessions"), [(0.05, 3), (0.05, 5), (0.0, 3)])
def test_interval_over_sessions_covers_what_changes_between_them(session_deviation, sessions):
    two_sided, one_sided = coverage_of_sessions(session_deviation, sessions)
    assert two_sided >= 0.92
    assert one_sided >= 0.92


def test_resampling_sessions_would_not_cover():
    """Why ratio_of_sessions does not resample sessions: the claim of its docstring."""
    random = np.random.default_rng(4)
    hits = 0
    for _ in range(500):
        logs = random.normal(0, 0.05, 3)
        low, high = np.quantile(logs[random.integers(0, 3, (400, 3))].mean(axis=1), [0.025, 0.975])
        hits += low <= 0 <= high
    assert hits / 500 < 0.85


def test_spread_tells_sessions_from_noise():
    random = np.random.default_rng(5)
    noise = latency_intervals.spread(np.exp(random.normal(0, 0.02, 500)), np.full(500, 0.02))
    both = latency_intervals.spread(np.exp(random.normal(0, 0.05, 500)), np.full(500, 0.02))
    assert noise.between < 0.008
    assert both.between == pytest.approx(math.sqrt(0.05**2 - 0.02**2), rel=0.1)
    assert both.within == pytest.approx(0.02)


def test_calls_of_a_round_stay_together_and_any_percentile_is_taken():
    random = np.random.default_rng(8)
    baseline = random.lognormal(0, 0.3, (80, 3))
    candidate = 0.5 * random.lognormal(0, 0.3, (80, 5))
    for percent in (50, 95):
        found = latency_intervals.bootstrap_ratio(candidate, baseline, percent=percent)
        assert found.value == np.percentile(candidate, percent) / np.percentile(baseline, percent)
        assert found.low < found.value < found.high
    whole_rounds = np.repeat(random.lognormal(0, 0.3, (80, 1)), 50, axis=1)  # 50 calls that tell as much as one
    wide = latency_intervals.latency_of_sessions([whole_rounds]).interval
    assert (wide.low, wide.high) == (pytest.approx(0.93, abs=0.07), pytest.approx(1.07, abs=0.07))
    assert wide.high - wide.low > 0.05


def test_latency_over_sessions_covers_what_changes_between_them():
    random = np.random.default_rng(9)
    hits = 0
    for number in range(300):
        sessions = [math.exp(random.normal(0, 0.1)) * random.lognormal(0, 0.05, (20, 2)) for _ in range(3)]
        found = latency_intervals.latency_of_sessions(sessions, resamples=50, seed=number)
        hits += found.interval.low <= 1 <= found.interval.high
    assert hits / 300 >= 0.92


def test_one_session_says_nothing_about_between():
    candidate, baseline = rounds_of(np.random.default_rng(6), 0.5)
    found = latency_intervals.ratio_of_sessions([candidate], [baseline], seed=0)
    assert found.between is None
    assert found.interval == latency_intervals.bootstrap_ratio(candidate, baseline, seed=0)
    assert found.interval.value < found.upper_one_sided <= found.interval.high
    with pytest.raises(ValueError, match="at least one"):
        latency_intervals.ratio_of_sessions([], [])
    with pytest.raises(ValueError, match="two"):
        latency_intervals.spread([0.5], [0.1])


# --- drops ---


def test_tango_gives_a_published_interval():
    """Complete response before and after consolidation therapy (Cavo et al. 2012), table [[59, 6], [16, 80]]: worked
    example of Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8."""
    low, high = latency_intervals.tango(16, 6, 161, Z95)
    assert (round(low, 4), round(high, 4)) == (0.0054, 0.1240)


def test_tango_without_disagreement_is_z2_over_n_plus_z2():
    low, high = latency_intervals.tango(0, 0, 100, Z95)
    assert high == pytest.approx(Z95**2 / (100 + Z95**2))
    assert low == -high


def constrained_score_statistic(lost, gained, n, difference):
    """The same score test from scratch: the probability of a gain is found by maximising the likelihood on a grid."""
    q = np.linspace(max(0, -difference), (1 - difference) / 2, 200_001)[1:-1]
    log_likelihood = (n - lost - gained) * np.log(np.maximum(1 - 2 * q - difference, 1e-300))
    log_likelihood += gained * np.log(np.maximum(q, 1e-300)) + lost * np.log(np.maximum(q + difference, 1e-300))
    best = q[np.argmax(log_likelihood)]
    return (lost - gained - n * difference) / math.sqrt(n * (2 * best + difference * (1 - difference)))


@pytest.mark.parametrize(("lost", "gained", "n"), [(7, 1, 21), (20, 40, 160), (3, 3, 50), (12, 0, 400)])
def test_tango_bounds_are_where_the_score_test_turns(lost, gained, n):
    low, high = latency_intervals.tango(lost, gained, n, Z95)
    assert constrained_score_statistic(lost, gained, n, high) == pytest.approx(-Z95, abs=2e-3)
    assert constrained_score_statistic(lost, gained, n, low) == pytest.approx(Z95, abs=2e-3)


@given(st.integers(1, 500), st.data())
@settings(max_examples=60)
def test_tango_mirrors_and_holds_the_estimate(n, data):
    lost = data.draw(st.integers(0, n))
    gained = data.draw(st.integers(0, n - lost))
    low, high = latency_intervals.tango(lost, gained, n, Z95)
    assert -1 <= low <= (lost - gained) / n <= high <= 1
    assert latency_intervals.tango(gained, lost, n, Z95) == pytest.approx((-high, -low), abs=1e-12)


def exact_coverage(n, p_lost, p_gained):
    """Probability, over all outcomes of n pairs, that the two-sided interval and the one-sided bound hold."""
    truth, two_sided, one_sided, total = p_lost - p_gained, 0.0, 0.0, 0.0
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            p = stats.multinomial.pmf([lost, gained, n - lost - gained], n, [p_lost, p_gained, 1 - p_lost - p_gained])
            if p < 1e-6:
                continue
            total += p
            low, high = latency_intervals.tango(lost, gained, n, Z95)
            two_sided += p * (low <= truth <= high)
            one_sided += p * (truth <= latency_intervals.tango(lost, gained, n, 1.6448536)[1])
    assert total > 0.999
    return two_sided, one_sided


@pytest.mark.parametrize(
    ("n", "p_lost", "p_gained"), [(60, 0.03, 0.03), (60, 0.08, 0.02), (100, 0.01, 0.0), (80, 0.15, 0.12)]
)
def test_tango_covers_where_disagreement_is_rare(n, p_lost, p_gained):
    two_sided, one_sided = exact_coverage(n, p_lost, p_gained)
    assert two_sided >= 0.93
    assert one_sided >= 0.92


def test_paired_drop_of_right_and_wrong_answers():
    baseline = np.array([1] * 90 + [0] * 10)
    candidate = np.array([0] * 3 + [1] * 87 + [1] * 1 + [0] * 9)
    drop = latency_intervals.paired_drop(baseline, candidate)
    low, high = latency_intervals.tango(3, 1, 100, Z95)
    assert (drop.points, drop.n, drop.differing) == (pytest.approx(2.0), 100, 4)
    assert (drop.low, drop.high) == (pytest.approx(100 * low), pytest.approx(100 * high))
    assert drop.points < drop.upper_one_sided < drop.high


def test_paired_drop_without_any_disagreement_still_has_width():
    drop = latency_intervals.paired_drop(np.ones(1000), np.ones(1000))
    assert drop.points == 0
    assert drop.upper_one_sided == pytest.approx(100 * 1.6448536**2 / (1000 + 1.6448536**2), rel=1e-6)


def test_paired_drop_of_real_scores_is_the_t_interval():
    random = np.random.default_rng(7)
    baseline = random.uniform(0, 1, 200)
    candidate = baseline - random.normal(0.02, 0.1, 200)
    drop = latency_intervals.paired_drop(baseline, candidate)
    expected = stats.ttest_rel(baseline, candidate).confidence_interval(0.95)
    assert (drop.low, drop.high) == (pytest.approx(100 * expected.low), pytest.approx(100 * expected.high))
    one_sided = stats.ttest_rel(baseline, candidate, alternative="less").confidence_interval(0.95)
    assert drop.upper_one_sided == pytest.approx(100 * one_sided.high)


def test_paired_drop_of_real_scores_that_hardly_differ_is_not_narrow():
    baseline = np.full(500, 0.9)
    same = latency_intervals.paired_drop(baseline, baseline)
    assert same.points == 0
    assert same.upper_one_sided == pytest.approx(100 * 1.6448536**2 / (500 + 1.6448536**2), rel=1e-6)
    one_lost = baseline.copy()
    one_lost[0] = 0.0
    drop = latency_intervals.paired_drop(baseline, one_lost)
    assert drop.points == pytest.approx(0.18)
    assert drop.high > 0.6  # the t interval alone would end at 0.53


@pytest.mark.parametrize(
    ("limit", "disagreement", "seen"), [(1.0, 0.0, 0.0), (1.0, 0.05, 0.3), (2.0, 0.1, -0.5), (5.0, 0.02, 4.0)]
)
def test_needed_n_is_the_smallest_that_certifies(limit, disagreement, seen):
    n = latency_intervals.needed_n(limit, disagreement, drop_points=seen)

    def bound(samples):
        share = max(disagreement, abs(seen) / 100)
        lost, gained = samples * (share + seen / 100) / 2, samples * (share - seen / 100) / 2
        return 100 * latency_intervals.tango(lost, gained, samples, 1.6448536269514722)[1]

    assert bound(n) <= limit < bound(n - 1)


def test_needed_n_refuses_a_limit_that_the_drop_itself_breaks():
    with pytest.raises(UserError, match="raise the limit"):
        latency_intervals.needed_n(1.0, 0.05, drop_points=1.0)


@given(st.integers(1, 30), st.integers(1, 12), st.sampled_from([0, 50, 90, 95, 99, 100]), st.integers(0, 2**32 - 1))
def test_percentiles_of_draws_are_numpys_to_the_last_bit(rounds, calls, percent, seed):
    rng = np.random.default_rng(seed)
    times = np.round(rng.lognormal(size=(rounds, calls)), rng.integers(0, 9))
    rows = rng.integers(0, rounds, (20, rounds))
    found = latency_intervals._percentile_of_draws(times, rows, percent)
    assert np.array_equal(found, np.percentile(times[rows].reshape(20, -1), percent, axis=1))


@pytest.mark.parametrize(("right", "n"), [(0, 5), (3, 7), (912, 1000), (40, 40)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_mean_of_zeros_and_ones_has_wilsons_interval(right: int, n: int, confidence: float) -> None:
    found = latency_intervals.mean_interval([1] * right + [0] * (n - right), confidence=confidence)
    oracle = stats.binomtest(right, n).proportion_ci(confidence, method="wilson")
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-9)


def test_the_mean_of_real_scores_has_students_interval() -> None:
    scores = np.random.default_rng(0).gamma(2.0, size=30)
    found = latency_intervals.mean_interval(scores)
    oracle = stats.t.interval(0.95, 29, scores.mean(), stats.sem(scores))
    assert (found.low, found.high) == pytest.approx(oracle, rel=1e-4)


def test_needed_n_has_an_end():
    """A drop of at most 0.001 points is asked for by people who want none: no error, and no endless search."""
    assert latency_intervals.needed_n(0.001, 0.05) is None
