"""Channel labels: integer arrays of a tensor's own shape that say which channel each element belongs to.

Two channels that can only be removed together are united (union-find: Tarjan 1975). Label 0 means "no channel that can
be removed": inputs of the network, constants, and outputs of operators without a rule.
"""

from __future__ import annotations

import torch
from torch import Tensor

NO_CHANNEL = 0


class Labels:
    """The ids given out so far, which of them are united, and which have to stay, with the reason."""

    def __init__(self) -> None:
        self._parent = torch.zeros(1024, dtype=torch.int64)
        self._count = 1
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> Tensor:
        """New ids: int64 [count]."""
        first, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            grown = torch.zeros(2 * self._count, dtype=torch.int64)
            grown[:first] = self._parent[:first]
            self._parent = grown
        ids = torch.arange(first, self._count)
        self._parent[first : self._count] = ids
        return ids

    def roots(self, labels: Tensor) -> Tensor:
        """The labels with one id for each set of united ids; same shape as `labels`."""
        found = self._parent[labels]
        while not torch.equal(above := self._parent[found], found):
            found = above
        return found

    def unite(self, first: Tensor, second: Tensor, why_fixed: str) -> None:
        """Unite first[i] with second[i]; an id that meets NO_CHANNEL has to stay, for the reason `why_fixed`."""
        shape = torch.broadcast_shapes(first.shape, second.shape)  # type: ignore[no-untyped-call]  # torch's has no hints
        first, second = first.expand(shape), second.expand(shape)
        for dim in range(first.ndim):
            if first.shape[dim] > 1 and first.stride(dim) == 0 == second.stride(dim):
                first, second = first.narrow(dim, 0, 1), second.narrow(dim, 0, 1)
        pairs = torch.stack((first.flatten(), second.flatten()))
        pairs = torch.unique(self.roots(pairs), dim=1)
        for one, other in pairs.T.tolist():
            if NO_CHANNEL in (one, other):
                self.fix(torch.tensor([max(one, other)]), why_fixed)
                continue
            a, b = self._find(one), self._find(other)
            self._parent[max(a, b)] = min(a, b)

    def fix(self, labels: Tensor, reason: str) -> None:
        """Mark channels that have to stay; of several reasons for one channel the first is kept."""
        for label in torch.unique(self.roots(labels)).tolist():
            if label != NO_CHANNEL:
                self._reasons.setdefault(label, reason)

    def fixed(self) -> dict[int, str]:
        """The reason why a channel has to stay, by root id."""
        reasons: dict[int, str] = {}
        for label, reason in self._reasons.items():
            reasons.setdefault(self._find(label), reason)
        return reasons

    def varying_dims(self, labels: Tensor) -> list[int]:
        """Dimensions along which the channel changes: [2, 8, 4, 4] after a convolution -> [1]."""
        roots = self.roots(_essence(labels))
        return [
            dim for dim, size in enumerate(roots.shape) if size > 1 and bool((roots != roots.narrow(dim, 0, 1)).any())
        ]

    def settle(self, labels: Tensor, why_fixed: str) -> Tensor:
        """Labels that change along one dimension at most; along all others they are stored once (stride 0).

        After a channel is removed, the tensor must be a box again. So where the channels lie along several dimensions,
        as after a view as [groups, channels / groups], equal positions of all groups are united, and the longest of
        these dimensions (the last one of equals) remains.
        """
        varying = self.varying_dims(labels)
        kept = max(varying, key=lambda dim: (labels.shape[dim], dim), default=None)
        for dim in varying:
            if dim != kept:
                self.unite(labels, labels.narrow(dim, 0, 1), why_fixed)
        first = labels
        for dim in range(labels.ndim):
            if dim != kept and labels.shape[dim]:
                first = first.narrow(dim, 0, 1)
        return first.clone().expand(labels.shape)

    def _find(self, label: int) -> int:
        while (above := int(self._parent[label])) != label:
            label = above
        return label


def along(ids: Tensor, dim: int, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Labels of a tensor of this shape whose channels lie along `dim`: ids [C], 1, (2, C, 4, 4) -> [2, C, 4, 4]."""
    view = [1] * len(shape)
    view[dim] = len(ids)
    return ids.view(view).expand(shape)


def vector(labels: Tensor, dim: int) -> Tensor:
    """The inverse of `along`: [2, C, 4, 4], 1 -> [C]."""
    return labels.movedim(dim, 0).reshape(labels.shape[dim], -1)[:, 0]


def _essence(labels: Tensor) -> Tensor:
    """The labels without their repetition along dimensions of stride 0: these get size 1."""
    for dim in range(labels.ndim):
        if labels.stride(dim) == 0 and labels.shape[dim] > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels
