"""The front against its definition, point by point."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pocketfit.search.decide.pareto import pareto_front

POINTS = st.tuples(st.integers(0, 12), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(0, 4).map(float) | st.just(float("inf")))
)


def dominates(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


@given(POINTS)
def test_the_front_is_what_nothing_dominates(costs: NDArray[np.float64]) -> None:
    wanted = [not any(dominates(other, point) for other in costs) for point in costs]
    assert pareto_front(costs).tolist() == wanted


@given(POINTS.filter(len))
def test_the_front_is_never_empty_and_equal_points_stay_together(costs: NDArray[np.float64]) -> None:
    front = pareto_front(costs)
    assert front.any()
    doubled = pareto_front(np.concatenate([costs, costs]))
    assert doubled.tolist() == [*front, *front]
