"""The kinds of samples that the data name, as the rows of a report's table."""

from __future__ import annotations

import numpy as np

from pocketfit.core.samples import Samples
from pocketfit.core.task.task import Group


def by_kind(samples: Samples) -> list[Group]:
    """In the order of the alphabet."""
    kinds = np.asarray(samples.kinds, str)
    return [Group(kind, np.flatnonzero(kinds == kind)) for kind in sorted(set(samples.kinds))]
