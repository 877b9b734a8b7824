"""Ends of a network that join tensors whose ranges are far apart, as detectors join pixels and probabilities.

A joined tensor of integers has one scale: the smaller numbers would round to nothing. So the operators from the last
layers with weights to the outputs stay in float, where a concatenation among them joins such tensors:

    convolution [int8] -> decoding [float] -+
                                            +-> concatenation [float] -> output
    convolution [int8] -> sigmoid  [float] -+
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

APART = 8.0  # times as wide a joined range is as the narrowest part: 3 of 8 bits are lost there
FEWEST_WEIGHTS = 64  # of a layer: those with fewer (a fixed sum of 16 bins, in YOLOv8) count as decoding
SAID = (
    "The last {count} operators stay in float32: they join tensors whose ranges are far apart ({wide:.4g} and"
    " {narrow:.4g}), and one scale for both would round the smaller numbers to nothing"
)
NO_INTEGER_END = (
    "The output '{name}' joins tensors whose ranges are far apart ({wide:.4g} and {narrow:.4g}), which integers with"
    " one scale can't hold: ask for float32 inputs and outputs"
)


@dataclass(frozen=True)
class Operator:
    """joins: whether it is a concatenation; weights: how many numbers its largest constant has, if it is a layer."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    joins: bool = False
    weights: int = 0


@dataclass(frozen=True)
class End:
    """The operators of an end that stay in float, in their order, and the widths of the ranges that it joins."""

    operators: tuple[int, ...] = ()
    wide: float = 0.0
    narrow: float = 0.0

    @property
    def sentence(self) -> str:
        return SAID.format(count=len(self.operators), wide=self.wide, narrow=self.narrow) if self.operators else ""

    def why_no_integers(self, name: str) -> str:
        """Why this output can't be integers."""
        return NO_INTEGER_END.format(name=name, wide=self.wide, narrow=self.narrow)


def mixed_end(operators: Sequence[Operator], ranges: Mapping[str, tuple[float, float]]) -> End:
    """The end that stays in float; one without operators where nothing joins tensors far apart.

    operators  in an order in which each stands behind those that it reads
    ranges     [low, high] of tensors that are computed
    """
    writer = {name: place for place, op in enumerate(operators) for name in op.outputs}
    readers: dict[str, list[int]] = {}
    for place, op in enumerate(operators):
        for name in op.inputs:
            readers.setdefault(name, []).append(place)
    behind: set[int] = set()  # no layer with weights comes after these
    for place in reversed(range(len(operators))):
        after = [reader for name in operators[place].outputs for reader in readers.get(name, [])]
        if not _is_layer(operators[place]) and all(reader in behind for reader in after):
            behind.add(place)
    found: set[int] = set()
    wide, narrow = 0.0, 0.0
    for place in sorted(behind):
        op = operators[place]
        widths = [_width(ranges[name]) for name in op.inputs if name in ranges]
        if not op.joins or len(widths) < 2 or max(widths) < APART * max(min(widths), 1e-9):
            continue
        if max(widths) / max(min(widths), 1e-9) > wide / max(narrow, 1e-9):
            wide, narrow = max(widths), min(widths)
        found |= _before(place, operators, writer, behind) | _after(place, operators, readers)
    return End(tuple(sorted(found)), wide, narrow)


def _is_layer(op: Operator) -> bool:
    return op.weights >= FEWEST_WEIGHTS


def _width(range_: tuple[float, float]) -> float:
    """Of the range with zero, which integers always hold."""
    return max(range_[1], 0.0) - min(range_[0], 0.0)


def _before(place: int, operators: Sequence[Operator], writer: Mapping[str, int], behind: set[int]) -> set[int]:
    found, waiting = set(), [place]
    while waiting:
        now = waiting.pop()
        found.add(now)
        sources = (writer[name] for name in operators[now].inputs if name in writer)
        waiting += [source for source in sources if source in behind and source not in found]
    return found


def _after(place: int, operators: Sequence[Operator], readers: Mapping[str, list[int]]) -> set[int]:
    found, waiting = set(), [place]
    while waiting:
        now = waiting.pop()
        found.add(now)
        waiting += [r for name in operators[now].outputs for r in readers.get(name, []) if r not in found]
    return found
