"""What a network is called with: one tensor, or one for each of its inputs, in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketfit.core.samples import Rows, Samples

Fed = Tensor | tuple[Tensor, ...]


def fed(samples: Samples, rows: Rows) -> Fed:
    """These rows of the samples: [n, ...]."""
    return as_fed(tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in samples.feeds(rows)))


def as_fed(given: tuple[Tensor, ...]) -> Fed:
    return given if len(given) > 1 else given[0]


def all_of(given: Fed) -> tuple[Tensor, ...]:
    return given if isinstance(given, tuple) else (given,)


def call(network: Callable[..., Any], given: Fed) -> Any:
    """The network's answer."""
    return network(*all_of(given))


def each(given: Fed, change: Callable[[Tensor], Tensor]) -> Fed:
    """The same with every tensor changed: moved to a device, laid out, cut."""
    return as_fed(tuple(map(change, all_of(given))))


def rows_in(given: Fed) -> int:
    return len(all_of(given)[0])
