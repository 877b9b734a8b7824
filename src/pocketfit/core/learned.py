"""Results of passes that the export of the network needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pocketfit.core.plan.prune import SparsePattern
from pocketfit.core.support.rules import Between

Interval = tuple[float, float]
Moments = tuple[tuple[float, ...], tuple[Annotated[float, Between(0)], ...]]


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Results of passes.

    ranges    name of a tensor inside -> (low, high), the range of its grid in the file
    sparse    names of the layers whose zeros stay
    patterns  name of such a layer -> its N:M pattern
    normal    name of a layer -> means and deviations of its outputs, one a channel, kept when batch norms are folded
    """

    ranges: Mapping[str, Interval] = field(default_factory=dict)
    sparse: tuple[str, ...] = ()
    patterns: Mapping[str, SparsePattern] = field(default_factory=dict)
    normal: Mapping[str, Moments] = field(default_factory=dict)

    def without_outputs_of(self, layers: Collection[str]) -> Learned:
        """The same without the statistics of these layers' outputs, whose channels have changed."""
        return replace(self, normal={name: known for name, known in self.normal.items() if name not in layers})

    def to_json(self) -> dict[str, Any]:
        """The fields that are not empty.

        >>> Learned(sparse=("fc",)).to_json()
        {'sparse': ['fc']}
        """
        stated: dict[str, Any] = {
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
            "sparse": list(self.sparse),
            "patterns": dict(self.patterns),
            "normal": {name: [list(means), list(spread)] for name, (means, spread) in self.normal.items()},
        }
        return {key: value for key, value in stated.items() if value}
