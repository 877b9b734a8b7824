"""Which points no other point beats in everything."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pareto_front(costs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Costs [n, k], smaller is better -> mask [n] of the points that are not dominated.

    Equal points do not dominate each other: all of them stay.

    >>> pareto_front(np.array([[1.0, 3.0], [2.0, 2.0], [2.0, 3.0]]))
    array([ True,  True, False])
    """
    no_worse = (costs[:, None, :] <= costs[None, :, :]).all(-1)
    better = (costs[:, None, :] < costs[None, :, :]).any(-1)
    return ~np.asarray((no_worse & better).any(0), np.bool_)
