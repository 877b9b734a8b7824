"""Paired statistics: ratios of interleaved timings, drops of per-sample scores, and how many samples they need.

Times are in milliseconds, drops in points (100 * share). Every interval is two-sided at `confidence`; an
`upper_one_sided` bound is one-sided at the same confidence, so that 95 of 100 such bounds lie above the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pocketfit.core.errors import UserError

Floats = NDArray[np.float64]
FEW_DIFFERENCES = 20  # below this many differing samples a t interval of real scores is not trusted
MAX_NEEDED = 10**8


@dataclass(frozen=True)
class Interval:
    """A value with its two-sided interval, in the unit of the value."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OverSessions:
    """A latency, or a ratio of two, over several sessions (fresh processes).

    interval         geometric mean of the sessions' values, with the interval of that mean
    upper_one_sided  one-sided upper bound
    sessions         one interval a session: the noise inside it
    between          standard deviation from session to session, as a share of the value, after the noise inside the
                     sessions has been taken off; None with one session
    within           standard error inside one session, as a share of the value
    """

    interval: Interval
    upper_one_sided: float
    sessions: tuple[Interval, ...]
    between: float | None
    within: float


@dataclass(frozen=True)
class Spread:
    """The two parts of a variation that `spread` separates, both as shares of the ratio (0.02: 2 %)."""

    between: float
    within: float


@dataclass(frozen=True)
class Drop:
    """How many points a candidate lost against the baseline on the same samples (negative: it gained).

    points           100 * (mean baseline score - mean candidate score)
    low, high        two-sided interval, points
    upper_one_sided  one-sided upper bound, points
    n                samples
    differing        samples on which the two scores differ
    """

    points: float
    low: float
    high: float
    upper_one_sided: float
    n: int
    differing: int


def bootstrap_ratio(
    candidate_ms: ArrayLike,
    baseline_ms: ArrayLike,
    *,
    percent: float = 50,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Ratio of two percentiles (default: the medians) of interleaved rounds, with a percentile bootstrap interval.

    Each is [rounds], or [rounds, calls] with as many rounds. Whole rounds of both are resampled together, so that what
    slowed both files in one round cancels out.

    >>> bootstrap_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).value
    2.0
    """
    value, drawn = _resampled([candidate_ms, baseline_ms], percent, resamples, seed)
    return _interval(value, drawn, confidence)


def ratio_of_sessions(
    candidate_ms: Sequence[ArrayLike],
    baseline_ms: Sequence[ArrayLike],
    *,
    percent: float = 50,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> OverSessions:
    """The ratio of `bootstrap_ratio` over several sessions, each given as its rounds."""
    if len(candidate_ms) != len(baseline_ms):
        raise ValueError("as many baseline sessions as candidate sessions are needed")
    pairs = [[ours, theirs] for ours, theirs in zip(candidate_ms, baseline_ms, strict=True)]
    return _over_sessions(pairs, percent, resamples, seed, confidence)


def latency_of_sessions(
    calls_ms: Sequence[ArrayLike],
    *,
    percent: float = 50,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> OverSessions:
    """A percentile of one file's times over several sessions, each [rounds] or [rounds, calls].

    >>> latency_of_sessions([[1.0, 1.0, 1.0], [4.0, 4.0, 4.0]]).interval.value
    2.0
    """
    return _over_sessions([[calls] for calls in calls_ms], percent, resamples, seed, confidence)


def spread(ratios: ArrayLike, errors: ArrayLike) -> Spread:
    """Separate the variation from session to session from the noise inside the sessions.

    ratios  [sessions]   errors  [sessions], the relative standard error inside each session
    between² = max(0, variance of the log ratios - mean error²)   (one-way random effects, method of moments)

    >>> spread([0.5, 0.5, 0.5], [0.01, 0.01, 0.01])
    Spread(between=0.0, within=0.01)
    """
    logs, inside = np.log(np.asarray(ratios, np.float64)), np.square(np.asarray(errors, np.float64))
    if logs.size < 2:
        raise ValueError("the spread between sessions needs at least two of them")
    noise = float(np.mean(inside))
    return Spread(math.sqrt(max(0.0, float(np.var(logs, ddof=1)) - noise)), math.sqrt(noise))


def paired_drop(baseline_scores: ArrayLike, candidate_scores: ArrayLike, *, confidence: float = 0.95) -> Drop:
    """The drop between two files' scores of the same samples, [n] and [n], with a paired interval.

    Scores that are all 0 or 1: the score interval of Tango (1998), which holds its level where the two disagree on
    few samples or none. Other scores: Student's t on the differences; with fewer than 20 differing samples, each of
    them is counted as the whole range of the scores (Tango's interval on the signs), which errs on the wide side.

    >>> drop = paired_drop([1, 1, 1, 0], [1, 1, 0, 0])
    >>> drop.points, drop.n, drop.differing
    (25.0, 4, 1)
    """
    baseline, candidate = _paired(baseline_scores, candidate_scores)
    difference = baseline - candidate
    n, lost, gained = difference.size, int(np.sum(difference > 0)), int(np.sum(difference < 0))
    points = 100 * float(np.mean(difference))
    values = np.concatenate([baseline, candidate])
    binary = bool(np.all((values == 0) | (values == 1)))
    tail = (1 - confidence) / 2
    if binary:
        low, high, upper = _tango_bounds(lost, gained, n, confidence)
    else:
        error = float(np.std(difference, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
        centre, degrees = points / 100, max(n - 1, 1)
        wide = student_t(1 - tail, degrees) * error
        low, high, upper = centre - wide, centre + wide, centre + student_t(confidence, degrees) * error
        if lost + gained < FEW_DIFFERENCES:
            whole = max(1.0, float(np.ptp(values)))  # scores lie in 0..1 unless they show otherwise
            signs = [whole * bound for bound in _tango_bounds(lost, gained, n, confidence)]
            low, high, upper = min(low, signs[0]), max(high, signs[1]), max(upper, signs[2])
    return Drop(points, 100 * low, 100 * high, 100 * upper, n, lost + gained)


def tango(lost: float, gained: float, n: float, z: float) -> tuple[float, float]:
    """Score interval of a paired difference (lost - gained) / n, z = 1.96 for 95 % two-sided.

    Tango, Statistics in Medicine 17 (1998) 891-908: all d with |lost - gained - n d| <= z sqrt(n (2 q + d (1 - d))),
    where q, the probability of a gain given d, is the root of 2n q² + B q + C = 0,
    B = -lost - gained + (2n - lost + gained) d,  C = -gained d (1 - d).

    >>> low, high = tango(16, 6, 161, 1.959964)  # example of Fagerland, Lydersen and Laake 2017, chapter 8
    >>> round(low, 4), round(high, 4)
    (0.0054, 0.124)
    """
    if not 0 <= lost + gained <= n or min(lost, gained) < 0 or n <= 0:
        raise ValueError("0 <= lost + gained <= n and n > 0 are needed")
    return -_tango_upper(gained, lost, n, z), _tango_upper(lost, gained, n, z)


def needed_n(
    limit_points: float, disagreement: float, *, drop_points: float = 0.0, confidence: float = 0.95
) -> int | None:
    """How many samples certify a drop of at most `limit_points`: the one-sided bound is then inside the limit; None
    where not even MAX_NEEDED would.

    disagreement  share of the samples on which the two files' scores differ (0 gives the smallest possible n)
    drop_points   the drop that is expected to be seen

    >>> needed_n(1.0, 0.0)
    268
    """
    if limit_points <= drop_points:
        raise UserError(
            f"No number of samples can certify a drop of at most {limit_points:g} points"
            f" where the drop itself is {drop_points:g}: raise the limit"
        )
    z, drop = _z(confidence), drop_points / 100
    share = max(disagreement, abs(drop))
    lost, gained = (share + drop) / 2, (share - drop) / 2

    def certifies(n: int) -> bool:
        return _tango_upper(n * lost, n * gained, n, z) <= limit_points / 100

    low, high = 0, 1
    while not certifies(high):
        low, high = high, 2 * high
        if high > MAX_NEEDED:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if certifies(middle) else (middle, high)
    return high


def mean_interval(scores: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """The mean of per-sample scores: Wilson's interval (Wilson 1927) where they are 0 or 1, else Student's t.

    >>> found = mean_interval([1, 1, 1, 0])
    >>> round(found.low, 4), round(found.high, 4)
    (0.3006, 0.9544)
    """
    values = np.asarray(scores, np.float64)
    n, mean = len(values), float(np.mean(values))
    if np.isin(values, (0.0, 1.0)).all():
        z = _z((1 + confidence) / 2)
        centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
        return Interval(mean, centre - half, centre + half)
    half = student_t((1 + confidence) / 2, max(1, n - 1)) * float(np.std(values, ddof=min(1, n - 1))) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def student_t(share: float, degrees: int) -> float:
    """Quantile of Student's t, 0.5 <= share < 1.

    With t = sqrt(degrees) tan(a) the cumulative distribution is an integral of cos(a)^(degrees - 1), taken here by
    Gauss-Legendre quadrature; a is found by bisection.

    >>> round(student_t(0.975, 2), 4), round(student_t(0.95, 4), 4)
    (4.3027, 2.1318)
    """
    if degrees > 2000:  # the normal quantile is then within 0.1 %
        return NormalDist().inv_cdf(share)
    return _student_t(share, degrees)


@lru_cache(maxsize=256)
def _student_t(share: float, degrees: int) -> float:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    constant = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        angles = (nodes + 1) * middle / 2
        area = constant * middle / 2 * float(np.sum(weights * np.cos(angles) ** (degrees - 1)))
        low, high = (middle, high) if area < share - 0.5 else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _z(share: float) -> float:
    return NormalDist().inv_cdf(share)


def _tango_bounds(lost: int, gained: int, n: int, confidence: float) -> tuple[float, float, float]:
    low, high = tango(lost, gained, n, _z((1 + confidence) / 2))
    return low, high, _tango_upper(lost, gained, n, _z(confidence))


def _tango_upper(lost: float, gained: float, n: float, z: float) -> float:
    """The largest difference that the score test does not reject, by bisection (the statistic falls with it)."""
    low, high = (lost - gained) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        linear = -lost - gained + (2 * n - lost + gained) * middle
        constant = -gained * middle * (1 - middle)
        q = (math.sqrt(max(0.0, linear * linear - 8 * n * constant)) - linear) / (4 * n)
        deviation = math.sqrt(max(0.0, n * (2 * q + middle * (1 - middle))))
        low, high = (middle, high) if n * middle - (lost - gained) <= z * deviation else (low, middle)
    return (low + high) / 2


def _over_sessions(
    sessions: Sequence[Sequence[ArrayLike]], percent: float, resamples: int, seed: int, confidence: float
) -> OverSessions:
    """The mean over sessions with its interval.

    With k >= 2 sessions: Student's t on the logarithms of the sessions' values, k - 1 degrees of freedom; their
    standard deviation counts at least as much as the noise inside the sessions explains. (Resampling three sessions
    with replacement looks like the obvious way, and covers the truth in about 80 of 100 cases only.)
    With one session: its bootstrap, which lacks the variation from session to session.
    """
    if not sessions:
        raise ValueError("at least one session is needed")
    parts, errors = [], []
    for number, files in enumerate(sessions):
        value, drawn = _resampled(files, percent, resamples, seed + number)
        parts.append(_interval(value, drawn, confidence))
        errors.append(float(np.std(np.log(drawn))))
        upper = float(np.quantile(drawn, confidence))
    within, count = math.sqrt(float(np.mean(np.square(errors)))), len(parts)
    if count == 1:
        return OverSessions(parts[0], upper, tuple(parts), None, within)
    values = [part.value for part in parts]
    logs = np.log(values)
    error = max(float(np.std(logs, ddof=1)), within) / math.sqrt(count)
    centre, wide = float(np.mean(logs)), student_t((1 + confidence) / 2, count - 1) * error
    interval = Interval(math.exp(centre), math.exp(centre - wide), math.exp(centre + wide))
    upper = math.exp(centre + student_t(confidence, count - 1) * error)
    return OverSessions(interval, upper, tuple(parts), spread(values, errors).between, within)


def _resampled(files: Sequence[ArrayLike], percent: float, resamples: int, seed: int) -> tuple[float, Floats]:
    """(the percentile of the first file's times, over that of a second file if given; [resamples] of the same)."""
    times = [np.asarray(file, np.float64) for file in files]
    times = [each[:, None] if each.ndim == 1 else each for each in times]
    rounds = times[0].shape[0]
    if rounds == 0 or any(each.ndim != 2 or each.shape[0] != rounds or each.shape[1] == 0 for each in times):
        raise ValueError(f"as many rounds of values of each file are needed, got {[each.shape for each in times]}")
    if any(not np.all(np.isfinite(each)) or np.any(each <= 0) for each in times):
        raise ValueError("times must be positive and finite")
    rows = np.random.default_rng(seed).integers(0, rounds, (resamples, rounds))
    values = [float(np.percentile(each, percent)) for each in times]
    drawn = [_percentile_of_draws(each, rows, percent) for each in times]
    if len(times) == 1:
        return values[0], drawn[0]
    return values[0] / values[1], drawn[0] / drawn[1]


def _percentile_of_draws(times: Floats, rows: NDArray[np.int64], percent: float) -> Floats:
    """times [rounds, calls], rows [draws, rounds] -> the percentile of times[rows[d]] for each draw d: [draws].

    The same numbers as np.percentile for each draw, which is the oracle of the test
    (tests/numerics/test_latency_intervals.py); but no draw is sorted. All times are sorted once, and a draw is a weight
    for each round. A draw's n-th smallest time is searched among blocks of sorted times first, then inside one block.
    """
    draws, (rounds, calls) = len(rows), times.shape
    order = np.argsort(times, axis=None, kind="stable")
    block_size = math.isqrt(times.size - 1) + 1
    padding = -times.size % block_size
    values, owner = (
        times.ravel()[order],
        np.concatenate([order // calls, np.full(padding, rounds)]),
    )  # the padding belongs to a round that no draw has
    places = (rows + np.arange(draws)[:, None] * (rounds + 1)).ravel()
    weights = np.bincount(places, minlength=draws * (rounds + 1)).reshape(draws, -1).astype(np.float64)
    blocks = owner.reshape(-1, block_size)
    holds = np.stack([np.bincount(block, minlength=rounds + 1) for block in blocks], axis=1)  # [rounds + 1, blocks]
    up_to = np.cumsum(weights @ holds, axis=1)

    def smallest(n: int) -> Floats:
        block = (up_to <= n).sum(1)
        before = np.where(block > 0, np.take_along_axis(up_to, np.maximum(block - 1, 0)[:, None], 1)[:, 0], 0)
        inside = np.cumsum(np.take_along_axis(weights, blocks[block], 1), axis=1)
        found: Floats = values[block * block_size + (before[:, None] + inside <= n).sum(1)]
        return found

    place = percent / 100 * (times.size - 1)
    below = math.floor(place)
    low, high, share = smallest(below), smallest(min(below + 1, times.size - 1)), place - below
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)  # as numpy rounds it


def _interval(value: float, drawn: Floats, confidence: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.ndim != 1 or one.shape != two.shape or one.size == 0:
        raise ValueError(f"two equally long rows of values are needed, got {one.shape} and {two.shape}")
    if not (np.all(np.isfinite(one)) and np.all(np.isfinite(two))):
        raise ValueError("values must be finite")
    return one, two
