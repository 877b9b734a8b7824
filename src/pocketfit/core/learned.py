"""What passes learn about a network on the way to its file."""

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
    """
    ranges    by name of a tensor inside: (low, high) that it takes on the grid of the file
    sparse    names of the layers whose zeros stay
    patterns  by name of such a layer: the pattern that was asked for
    normal    by name of a layer: means and deviations of its outputs, one a channel, once batch norms are folded
    """

    ranges: Mapping[str, Interval] = field(default_factory=dict)
    sparse: tuple[str, ...] = ()
    patterns: Mapping[str, SparsePattern] = field(default_factory=dict)
    normal: Mapping[str, Moments] = field(default_factory=dict)

    def without_outputs_of(self, layers: Collection[str]) -> Learned:
        """The same without what is known of the outputs of these layers, whose channels are others now."""
        return replace(self, normal={name: known for name, known in self.normal.items() if name not in layers})

    def to_json(self) -> dict[str, Any]:
        """What there is of it.

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
