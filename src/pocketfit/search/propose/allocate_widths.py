"""How many channels each group keeps: widths in, widths out, nothing is carried out here.

A method turns a strength from 0 (nothing goes) to 1 (all that may go) into widths; `to_target` finds the strength at
which the network costs what is asked for, so that methods can be compared at equal cost. `cost_aware` needs no
strength: it looks for the widths that lose least importance at that cost. What a network costs is a tuple of Terms:
predicted milliseconds (analysis/latency_predictor.py), or multiply-accumulates (numerics/channel_shapes.py).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.numerics.channel_shapes import Term

Widths = dict[str, int]
Method = Callable[[float], Widths]
HALVINGS = 40  # how often bisection halves the interval of strengths
PASSES = 8  # over all pairs of groups, to find a better exchange; the first pass that finds none is the last
SLACK = 1e-9  # relative; sums of costs in another order differ in the last digits


@dataclass(frozen=True)
class Choice:
    """The widths that a group may have, ascending, the last one whole, and what is lost at each of them.

    layer   the name of the group: the layer whose channels `widths` counts
    losses  one for each width, in any unit that adds up over groups: the sum of the scores of the removed channels, or
            the loss measured with only this group narrowed; 0 for the last, and never less for a smaller width
    """

    layer: str
    widths: tuple[int, ...]
    losses: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.losses) or not self.widths:
            raise UserError(f"Group '{self.layer}' needs one loss for each of its widths, and at least one width")
        if list(self.widths) != sorted(set(self.widths)) or self.widths[0] < 1:
            raise UserError(f"The widths of group '{self.layer}' must be whole numbers from 1, ascending")
        if not all(map(math.isfinite, self.losses)):
            raise UserError(f"Group '{self.layer}' has a loss that is no finite number")

    @property
    def whole(self) -> int:
        return self.widths[-1]

    def loss(self, width: int) -> float:
        return self.losses[self.widths.index(width)]


def from_scores(layer: str, widths: Sequence[int], scores: NDArray[np.float64]) -> Choice:
    """The Choice of a group from its channels' scores [n]: the lowest go first, and the loss is their sum. Where
    several channels go together, the widths count channels, and each score is that of one such set.

    >>> from_scores("conv", (1, 2, 4), np.array([3.0, 1.0, 5.0, 2.0])).losses
    (6.0, 3.0, 0.0)
    """
    lost = np.concatenate([[0.0], np.cumsum(np.sort(np.asarray(scores, np.float64)))])
    per_score = widths[-1] // len(scores)
    return Choice(layer, tuple(widths), tuple(float(lost[len(scores) - width // per_score]) for width in widths))


def from_curve(layer: str, widths: Sequence[int], curve: Sequence[tuple[float, float]]) -> Choice:
    """The Choice of a group from its sensitivity: (share pruned, loss) pairs, interpolated linearly. A loss that is
    lower than at a smaller share is noise, and is replaced by the higher one.

    >>> from_curve("conv", (2, 4, 8), [(0.5, 0.1), (0.75, 0.4)]).losses
    (0.4, 0.1, 0.0)
    """
    points = sorted({0.0: 0.0, **dict(curve)}.items())
    shares, losses = [share for share, _ in points], np.maximum.accumulate([max(loss, 0.0) for _, loss in points])
    whole = widths[-1]
    return Choice(layer, tuple(widths), tuple(float(np.interp(1 - w / whole, shares, losses)) for w in widths))


def on_edges(choice: Choice, terms: Sequence[Term], others: Mapping[str, int], gain: float = 0.002) -> Choice:
    """The Choice with only the widths at the edges of the kernels' steps: a width is left out where the next wider one
    costs hardly more.

    others  widths of all groups, for the terms that depend on more than this one
    gain    how much two neighbours must differ in cost, as a share of what the whole group could save
    """
    mine = [term for term in terms if choice.layer in term.groups]

    def cost(width: int) -> float:
        at = {**others, choice.layer: width}
        return sum(term.of(tuple(at[name] for name in term.groups)) for term in mine)

    costs = [cost(width) for width in choice.widths]
    least = gain * (costs[-1] - min(costs))
    kept = [len(costs) - 1]
    for place in range(len(costs) - 2, -1, -1):
        if costs[kept[-1]] - costs[place] > least:
            kept.append(place)
    kept.reverse()
    return Choice(choice.layer, tuple(choice.widths[i] for i in kept), tuple(choice.losses[i] for i in kept))


def cost_of(terms: Sequence[Term], widths: Mapping[str, int]) -> float:
    """The cost of a network at these widths, which must name all groups of the terms."""
    return math.fsum(term.of(tuple(widths[name] for name in term.groups)) for term in terms)


def lost(choices: Sequence[Choice], widths: Mapping[str, int]) -> float:
    """The sum of all groups' losses at these widths."""
    return math.fsum(choice.loss(widths[choice.layer]) for choice in choices)


def keep(choices: Sequence[Choice], widths: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """The widths as `Prune.keep` takes them; groups that stay whole are left out."""
    return tuple((c.layer, widths[c.layer]) for c in choices if widths[c.layer] < c.whole)


def uniform(choices: Sequence[Choice], ratio: float) -> Widths:
    """The widths at which every group loses the same share of its channels, as nearly as its widths allow."""
    return {c.layer: _nearest(c.widths, (1 - ratio) * c.whole) for c in choices}


def by_sensitivity(choices: Sequence[Choice], strength: float) -> Widths:
    """The widths at which every group is as narrow as one limit on its loss allows (Li et al. 2017, section 3.2: prune
    sensitive layers less). The limit is the quantile `strength` of all groups' losses."""
    if strength <= 0:
        return {c.layer: c.whole for c in choices}
    limit = float(np.quantile([loss for c in choices for loss in c.losses[:-1]] or [0.0], min(strength, 1.0)))
    return {
        c.layer: next(width for width, loss in zip(c.widths, c.losses, strict=True) if loss <= max(limit, c.losses[-1]))
        for c in choices
    }


def global_ranking(choices: Sequence[Choice], scores: Mapping[str, NDArray[np.float64]], strength: float) -> Widths:
    """The widths after all channels of the network are ranked together and the share `strength` with the lowest scores
    is removed, whatever their groups (Liu et al. 2017, section 3). Each group takes the nearest of its widths."""
    everything = np.concatenate([np.asarray(scores[c.layer], np.float64) for c in choices])
    order = np.argsort(everything, kind="stable")
    gone = np.zeros(len(everything), bool)
    gone[order[: round(min(max(strength, 0.0), 1.0) * len(everything))]] = True
    widths, start = {}, 0
    for c in choices:
        n = len(scores[c.layer])
        widths[c.layer] = _nearest(c.widths, (n - int(gone[start : start + n].sum())) * c.whole / n)
        start += n
    return widths


def to_target(method: Method, terms: Sequence[Term], target: float) -> tuple[float, Widths]:
    """(strength, widths): the smallest strength, found by bisection, at which a method's network costs at most
    `target`.

    Raises UserError where even strength 1 costs more.
    """
    low, high, found = 0.0, 1.0, method(1.0)
    if cost_of(terms, found) > target * (1 + SLACK):
        raise UserError(_too_much(cost_of(terms, found), target))
    if cost_of(terms, whole := method(0.0)) <= target * (1 + SLACK):
        return 0.0, whole
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        widths = method(middle)
        if cost_of(terms, widths) <= target * (1 + SLACK):
            high, found = middle, widths
        else:
            low = middle
    return high, found


def cost_aware(choices: Sequence[Choice], terms: Sequence[Term], target: float) -> Widths:
    """The widths that lose least importance at a cost of at most `target`, as nearly as a greedy search finds them.

    1. From the whole network on, the change of one group that loses least for what it saves is made, until the target
       is met.
    2. Pairs of groups exchange width as long as that lowers the loss and keeps the target.
    3. The same from the other end: from every group at its smallest width on, width is given back where it is worth
       most; then 2. The result with the smaller loss is taken.

    Every group that a term names needs a Choice. Raises UserError where even the smallest widths cost more.
    """
    smallest = {c.layer: c.widths[0] for c in choices}
    if cost_of(terms, smallest) > target * (1 + SLACK):
        raise UserError(_too_much(cost_of(terms, smallest), target))
    ends = []
    for start in ({c.layer: c.whole for c in choices}, smallest):
        state = _State(choices, terms, start)
        _shrink(state, target)
        _grow(state, target)
        _exchange(state, target)
        ends.append(state)
    return min(ends, key=lambda state: lost(choices, state.widths)).widths


def cubic(steps: int, ratio: float) -> tuple[float, ...]:
    """Shares of the channels that are removed after each of `steps` rounds of prune and recover: large steps at first,
    small ones in the end (Zhu and Gupta 2017, equation 1, from 0).

    >>> [round(share, 3) for share in cubic(3, 0.5)]
    [0.352, 0.481, 0.5]
    """
    if steps < 1 or not 0 <= ratio < 1:
        raise UserError("A schedule needs at least one step, and a share from 0 up to, but not including, 1")
    return tuple(ratio * (1 - (1 - step / steps) ** 3) for step in range(1, steps + 1))


class _State:
    """Widths and their cost. Each term is computed once for each of its widths. The costs of a group's single changes
    are kept until the group, or one that shares a term with it, changes."""

    def __init__(self, choices: Sequence[Choice], terms: Sequence[Term], widths: Mapping[str, int]) -> None:
        self.choices, self.widths = choices, dict(widths)
        self._terms = list(terms)
        self._known: dict[tuple[int, tuple[int, ...]], float] = {}
        self._terms_of: dict[str, list[int]] = {choice.layer: [] for choice in choices}
        for number, term in enumerate(self._terms):
            for name in term.groups:
                self._terms_of[name].append(number)
        self._near = {
            name: {other for number in numbers for other in self._terms[number].groups}
            for name, numbers in self._terms_of.items()
        }
        self._singles: dict[str, tuple[float, ...]] = {}
        self.cost = cost_of(terms, self.widths)

    def set(self, *changes: tuple[str, int]) -> None:
        for name, width in changes:
            self.widths[name] = width
            for other in (name, *self._near[name]):
                self._singles.pop(other, None)
        self.cost = math.fsum(self._of(number, self.widths) for number in range(len(self._terms)))

    def singles(self, choice: Choice) -> tuple[float, ...]:
        """How much the cost would rise at each of the group's widths, with the other groups as they are."""
        if choice.layer not in self._singles:
            numbers = self._terms_of[choice.layer]
            now, trial = sum(self._of(number, self.widths) for number in numbers), dict(self.widths)
            found = []
            for width in choice.widths:
                trial[choice.layer] = width
                found.append(sum(self._of(number, trial) for number in numbers) - now)
            self._singles[choice.layer] = tuple(found)
        return self._singles[choice.layer]

    def pair(self, a: Choice, at_a: int, b: Choice, at_b: int) -> float:
        """How much the cost would rise with both groups at these places of their widths."""
        if b.layer not in self._near[a.layer]:
            return self.singles(a)[at_a] + self.singles(b)[at_b]
        trial = {**self.widths, a.layer: a.widths[at_a], b.layer: b.widths[at_b]}
        numbers = {*self._terms_of[a.layer], *self._terms_of[b.layer]}
        return sum(self._of(number, trial) - self._of(number, self.widths) for number in numbers)

    def _of(self, number: int, widths: Mapping[str, int]) -> float:
        term = self._terms[number]
        key = (number, tuple([widths[name] for name in term.groups]))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = term.of(key[1])
        return known


def _shrink(state: _State, target: float) -> None:
    """Repeat the change that loses least for what it saves, until the target is met."""
    while state.cost > target * (1 + SLACK):
        best: tuple[float, float, str, int] | None = None
        for choice in state.choices:
            now, singles = choice.widths.index(state.widths[choice.layer]), state.singles(choice)
            for place in range(now):
                saved = -singles[place]
                if saved > SLACK * target:
                    # savings beyond the target do not count: the last change is the cheapest one that reaches it
                    rate = (choice.losses[place] - choice.losses[now]) / min(saved, state.cost - target)
                    if best is None or (rate, -saved) < best[:2]:
                        best = (rate, -saved, choice.layer, choice.widths[place])
        if best is None:  # no single change saves anything, though the smallest widths would: take them
            state.set(*((choice.layer, choice.widths[0]) for choice in state.choices))
            return
        state.set(best[2:])


def _grow(state: _State, target: float) -> None:
    """Give width back where that gains most for its cost, as long as the target allows."""
    while True:
        room = target * (1 + SLACK) - state.cost
        best: tuple[float, str, int] | None = None
        for choice in state.choices:
            now, singles = choice.widths.index(state.widths[choice.layer]), state.singles(choice)
            for place in range(now + 1, len(choice.widths)):
                more, won = singles[place], choice.losses[now] - choice.losses[place]
                if more <= room and (won > 0 or more < 0):
                    rate = won / more if more > SLACK * target else math.inf
                    if best is None or rate > best[0]:
                        best = (rate, choice.layer, choice.widths[place])
        if best is None:
            return
        state.set(best[1:])


def _exchange(state: _State, target: float) -> None:
    """One group gives width, another takes it, as long as less is lost and the target is kept."""
    for _ in range(PASSES):
        found = False
        for taker, giver in itertools.permutations(state.choices, 2):
            if (change := _best_exchange(state, taker, giver, target)) is not None:
                state.set((taker.layer, taker.widths[change[0]]), (giver.layer, giver.widths[change[1]]))
                found = True
        if not found:
            return
        _grow(state, target)


def _best_exchange(state: _State, taker: Choice, giver: Choice, target: float) -> tuple[int, int] | None:
    """The places of the new widths, one larger and one smaller, with the smallest loss that keep the target."""
    have, spare = taker.widths.index(state.widths[taker.layer]), giver.widths.index(state.widths[giver.layer])
    room = target * (1 + SLACK) - state.cost
    least, best = -SLACK * (1 + abs(taker.losses[have]) + abs(giver.losses[spare])), None
    for wider in range(have + 1, len(taker.widths)):
        won = taker.losses[have] - taker.losses[wider]
        for narrower in range(spare - 1, -1, -1):
            change = giver.losses[narrower] - giver.losses[spare] - won
            if change >= least:
                break  # a narrower one loses no less
            if state.pair(taker, wider, giver, narrower) <= room:
                least, best = change, (wider, narrower)
                break
    return best


def _nearest(widths: Sequence[int], value: float) -> int:
    """The nearest width, the wider one of two that are equally near."""
    return min(widths, key=lambda width: (abs(width - value), -width))


def _too_much(cost: float, target: float) -> str:
    return f"Even the smallest widths cost {cost:.4g}, more than the {target:.4g} that is asked for: allow more"
