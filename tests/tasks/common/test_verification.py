"""Thresholds and true accept rates, against pairs that are counted one by one."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from pocketfit.tasks.common.verification import Pairs, operating_point, pairs_needed


def embeddings(identities: NDArray[np.int64], noise: float, seed: int = 0, width: int = 6) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(int(identities.max()) + 1, width))
    found = centres[identities] + noise * draw.normal(size=(len(identities), width))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def listed(identities: NDArray[np.int64]) -> NDArray[np.int64]:
    """All pairs of identities, written as a list."""
    others = [
        [2 * j + int(identities[i] == identities[j]) for j in range(len(identities)) if j != i]
        for i in range(len(identities))
    ]
    return np.column_stack([np.arange(len(identities)), np.array(others)])


@pytest.mark.parametrize("form", ["identities", "listed"])
@pytest.mark.parametrize("far", [0.1, 0.01])
def test_the_threshold_lets_no_more_impostors_through_than_asked_and_the_next_lower_one_would(
    form: str, far: float
) -> None:
    identities = np.arange(40) % 5
    known = embeddings(identities, 0.8)
    found = operating_point(known, Pairs(identities if form == "identities" else listed(identities)), far)
    assert found is not None
    cosines = {(i, j): float(known[i] @ known[j]) for i, j in combinations(range(40), 2)}
    impostors = sorted(value for (i, j), value in cosines.items() if identities[i] != identities[j])
    genuine = [value for (i, j), value in cosines.items() if identities[i] == identities[j]]
    accepted = sum(value > found.threshold + 1e-6 for value in impostors)
    assert (found.genuine, found.impostors) == (len(genuine), len(impostors))
    assert accepted == int(far * len(impostors)) and found.far == pytest.approx(accepted / len(impostors))
    assert sum(value >= found.threshold - 1e-6 for value in impostors) == accepted + 1
    assert found.tar == pytest.approx(np.mean([value > found.threshold for value in genuine]), abs=1e-9)
    assert found.values.mean() == pytest.approx(found.tar)
    assert found.low <= found.threshold <= found.high


def test_the_interval_over_pictures_holds_the_true_rate_and_one_over_pairs_would_not() -> None:
    """Pictures of ten fixed identities are drawn again and again; the spread of the TAR is that which values say."""
    rates, said = [], []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        identities = draw.integers(0, 10, 120)
        centres = np.random.default_rng(999).normal(size=(10, 4))
        known = centres[identities] + 0.9 * draw.normal(size=(120, 4))
        known = (known / np.linalg.norm(known, axis=1, keepdims=True)).astype(np.float32)
        found = operating_point(known, Pairs(identities), 0.05)
        assert found is not None
        rates.append(found.tar)
        said.append(found.values.std(ddof=1) / np.sqrt(len(identities)))
    spread = float(np.std(rates, ddof=1))
    assert 0.75 < np.mean(said) / spread < 1.35
    over_pairs = np.sqrt(np.mean(rates) * (1 - np.mean(rates)) / 660)
    assert over_pairs < 0.75 * spread


def test_pairs_of_pictures_that_are_elsewhere_do_not_count() -> None:
    identities = np.arange(12) % 3
    part = listed(identities)[[0, 3, 4, 7]]  # identities 0, 0, 1, 1
    assert Pairs(part).counts == (2, 4)
    assert Pairs(identities[[0, 3, 4, 7]]).counts == (2, 4)


def test_without_pairs_of_both_kinds_there_is_no_threshold() -> None:
    known = embeddings(np.zeros(4, np.int64), 0.1)
    assert operating_point(known, Pairs(np.zeros(4, np.int64)), 0.01) is None
    assert operating_point(known, Pairs(np.arange(4)), 0.01) is None


def test_an_embedding_with_nan_is_like_no_other() -> None:
    identities = np.array([0, 0, 1, 1])
    known = embeddings(identities, 0.01)
    known[0] = np.nan
    found = operating_point(known, Pairs(identities), 0.01)
    assert found is not None and found.tar == 0.5


def test_a_far_of_a_thousandth_of_a_percent_needs_three_hundred_thousand_pairs() -> None:
    assert [pairs_needed(far) for far in (0.01, 1e-3, 1e-5)] == [300, 3000, 300_000]
