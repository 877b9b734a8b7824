"""The latency of a network that was not measured, from a table of measured sub-networks.

Kernels work in blocks: a layer with `inputs` and `outputs` channels takes

    a + b I + c O + d I O,   I = ceil(inputs / step), O = ceil(outputs / step'),   a, b, c, d >= 0

microseconds. The steps, from 1 to 16, are those with the least error over all layers of one kind; the coefficients are
each layer's own. Errors are relative to the network's latency, so that small networks count as much as large ones. The
time outside of layers is a constant plus a part for each activation.

The sum is then fitted to the latencies of whole sub-networks by a constant and a factor: without them large networks
came out too fast and small ones too slow (docs/results/notes.md, "Predicted latency"). As both are the same for all
layers, the cost stays a sum of terms.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.measurement.channel_cost_table import REST, CostTable, SubNetwork
from pocketfit.numerics.channel_shapes import LayerShape, Skeleton, Term, Widths

STEPS = (1, 4, 8, 16)
FEWEST = 4  # measured sub-networks that a table must have: as many as a layer has coefficients
WITHIN = 0.10  # a prediction counts as right within this share of the measured latency
FOLDS = 6
Steps = tuple[int, int]  # channels in a block of inputs, of outputs


@dataclass(frozen=True)
class LayerCost:
    """Microseconds of one layer: `coefficients` a, b, c, d of the formula above."""

    steps: Steps
    coefficients: tuple[float, float, float, float]

    def us(self, inputs: int, outputs: int) -> float:
        """
        >>> LayerCost((1, 8), (5.0, 0.0, 2.0, 1.0)).us(3, 9)
        15.0
        """
        a, b, c, d = self.coefficients
        blocks_in, blocks_out = -(-inputs // self.steps[0]), -(-outputs // self.steps[1])
        return a + b * blocks_in + c * blocks_out + d * blocks_in * blocks_out


@dataclass(frozen=True)
class Predictor:
    """A fitted predictor.

    rest_us  (a constant, microseconds for each activation) for the time outside of layers; the constant is below zero
             where small networks take less than the sum of their layers
    steps    by kind of layer
    """

    skeleton: Skeleton
    layers: Mapping[str, LayerCost]
    rest_us: tuple[float, float]
    steps: Mapping[str, Steps]
    full_ms: float

    def latency_ms(self, widths: Widths) -> float:
        """Predicted latency of the network at these widths; groups that are not named are whole."""
        known = self.skeleton
        layers = sum(self.layers[layer.name].us(*known.shape(layer, widths)) for layer in known.layers)
        return (layers + self.rest_us[0] + self.rest_us[1] * activations(known, widths)) / 1000

    def ratio(self, widths: Widths) -> float:
        """Predicted latency over the predicted latency of the whole network."""
        return self.latency_ms(widths) / self.latency_ms({})

    def terms(self) -> tuple[Term, ...]:
        """The latency in ms as a cost for the allocation: one term a layer, and a constant."""
        return (Term((), lambda _: self.rest_us[0] / 1000), *(self._term(layer) for layer in self.skeleton.layers))

    def _term(self, layer: LayerShape) -> Term:
        def latency_ms(widths: tuple[int, ...]) -> float:
            inputs, outputs = self.skeleton.shape(layer, dict(zip(layer.groups, widths, strict=True)))
            return (self.layers[layer.name].us(inputs, outputs) + self.rest_us[1] * outputs * layer.places) / 1000

        return Term(layer.groups, latency_ms)


@dataclass(frozen=True)
class Errors:
    """How predictions compare with measurements of the same networks.

    median         of |predicted - measured| / measured
    share_within   share of the networks where that is at most WITHIN
    rank           rank correlation (Spearman's) of predicted and measured latency
    """

    n: int
    median: float
    worst: float
    share_within: float
    rank: float


def fit(table: CostTable) -> Predictor:
    """The predictor that explains a table best. Raises UserError for a table of too few sub-networks."""
    if len(table.measured) < FEWEST:
        raise UserError(
            f"A table of {len(table.measured)} sub-networks says too little: measure at least {FEWEST}, better 24"
        )
    known, measured = table.skeleton, table.measured
    by_kind: dict[str, list[LayerShape]] = defaultdict(list)
    for layer in known.layers:
        by_kind[layer.kind].append(layer)
    layers: dict[str, LayerCost] = {}
    steps: dict[str, Steps] = {}
    for kind, alike in by_kind.items():
        data = [_points(known, layer, measured) for layer in alike]
        steps[kind] = _best_steps(data)
        for layer, points in zip(alike, data, strict=True):
            layers[layer.name] = _layer_cost(steps[kind], *points)[0]
    sizes = np.array([activations(known, one.widths) for one in measured])
    others = np.array([one.layer_us.get(REST, 0.0) for one in measured])
    weights = _weights(measured)
    features = np.stack([np.ones(len(sizes)), sizes], 1)
    (always, each), _ = non_negative(features * weights[:, None], others * weights)
    return _in_line(Predictor(known, layers, (float(always), float(each)), steps, table.full_ms), measured)


def _in_line(fitted: Predictor, measured: Sequence[SubNetwork]) -> Predictor:
    """The predictor whose sums, times a factor and plus a constant, come closest to the latencies measured."""
    summed = np.array([fitted.latency_ms(one.widths) for one in measured])
    features = np.stack([np.ones(len(summed)), summed], 1) * _weights(measured)[:, None]
    constant_ms, factor = map(float, np.linalg.lstsq(features, np.ones(len(summed)), rcond=None)[0])
    if factor <= 0 or constant_ms + factor * summed.min() <= 0:
        return fitted  # measured latencies do not rise with the sum of the layers: no factor can be fitted
    layers = {name: LayerCost(one.steps, _times(factor, one.coefficients)) for name, one in fitted.layers.items()}
    always, each = fitted.rest_us
    return replace(fitted, layers=layers, rest_us=(factor * always + 1000 * constant_ms, factor * each))


def _times(factor: float, coefficients: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    a, b, c, d = coefficients
    return factor * a, factor * b, factor * c, factor * d


def activations(known: Skeleton, widths: Widths) -> float:
    """How many output values all layers have together for one sample."""
    return sum(known.shape(layer, widths)[1] * layer.places for layer in known.layers)


def held_out(table: CostTable, folds: int = FOLDS) -> Errors:
    """Errors on sub-networks that the predictor was not fitted on: each is left out once, a fold at a time."""
    n = len(table.measured)
    predicted = np.zeros(n)
    for fold in range(min(folds, n)):
        seen = tuple(one for number, one in enumerate(table.measured) if number % folds != fold)
        predictor = fit(CostTable(**{**vars(table), "measured": seen}))
        for number in range(fold, n, folds):
            predicted[number] = predictor.latency_ms(table.measured[number].widths)
    return errors(predicted, np.array([one.latency_ms for one in table.measured]))


def check(predictor: Predictor, measured: Sequence[SubNetwork]) -> Errors:
    """Errors on these sub-networks."""
    predicted = [predictor.latency_ms(one.widths) for one in measured]
    return errors(np.array(predicted), np.array([one.latency_ms for one in measured]))


def errors(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> Errors:
    """predicted [n], measured [n], positive, in one unit.

    >>> errors(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.5, 4.0]))
    Errors(n=3, median=0.0, worst=0.2, share_within=0.6666666666666666, rank=1.0)
    """
    off = np.abs(predicted - measured) / measured
    rank = rank_correlation(predicted, measured)
    return Errors(len(off), float(np.median(off)), float(off.max()), float(np.mean(off <= WITHIN)), rank)


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's: Pearson's correlation of the ranks, ties sharing their mean rank; 0 where one of them is constant."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size else 0.0


def non_negative(features: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """(coefficients >= 0 of a least-squares fit, the remaining sum of squares); features [n, k], values [n].

    With at most four features every subset is tried. The best one without a negative coefficient is the solution: by
    the Karush-Kuhn-Tucker conditions the optimum is the free solution of some subset.
    """
    k = features.shape[1]
    best, least = np.zeros(k), float(values @ values)
    scale = np.maximum(np.abs(features).max(0), 1e-300)
    scaled = features / scale
    for chosen in itertools.chain.from_iterable(itertools.combinations(range(k), size) for size in range(1, k + 1)):
        part = scaled[:, chosen]
        solution = np.linalg.lstsq(part, values, rcond=None)[0]
        if (solution < 0).any():
            continue
        left = float(np.sum((values - part @ solution) ** 2))
        if left < least * (1 - 1e-9):
            best, least = np.zeros(k), left
            best[list(chosen)] = solution / scale[list(chosen)]
    return best, least


Floats = NDArray[np.float64]
Points = tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]  # inputs, outputs, microseconds, weights


def _points(known: Skeleton, layer: LayerShape, measured: Sequence[SubNetwork]) -> Points:
    shapes = np.array([known.shape(layer, one.widths) for one in measured], np.int64).reshape(-1, 2)
    missing = [one for one in measured if layer.name not in one.layer_us]
    if missing:
        raise UserError(f"The table says nothing of layer '{layer.name}' in one of its sub-networks; measure it anew")
    return shapes[:, 0], shapes[:, 1], np.array([one.layer_us[layer.name] for one in measured]), _weights(measured)


def _weights(measured: Sequence[SubNetwork]) -> Floats:
    return np.array([1 / one.latency_ms for one in measured])


def _best_steps(data: Sequence[Points]) -> Steps:
    """The steps of inputs and outputs with the least error; of equally good ones the largest. (Where only multiples of
    8 were measured, steps of 1, 4 and 8 are equally good.)"""
    sizes = sorted(STEPS, reverse=True)
    candidates: list[Steps] = [(inputs, outputs) for inputs in sizes for outputs in sizes]
    left = [math.fsum(_layer_cost(steps, *points)[1] for points in data) for steps in candidates]
    least = min(left) * (1 + 1e-6) + 1e-9
    return next(steps for steps, rest in zip(candidates, left, strict=True) if rest <= least)


def _layer_cost(
    steps: Steps, inputs: NDArray[np.int64], outputs: NDArray[np.int64], times: Floats, weights: Floats
) -> tuple[LayerCost, float]:
    blocks_in, blocks_out = -(-inputs // steps[0]), -(-outputs // steps[1])
    features = np.stack([np.ones(len(times)), blocks_in, blocks_out, blocks_in * blocks_out], 1).astype(np.float64)
    (a, b, c, d), left = non_negative(features * weights[:, None], times * weights)
    return LayerCost(steps, (float(a), float(b), float(c), float(d))), left


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[place], np.float64)
