"""How much noise each layer adds when a network is quantized: the table behind culprits and mixed precision.

All of it is estimated with passes/quantize/simulate: files would need two exports for each layer. A row is a layer with
weights, together with the tensors behind it; sums, pooled tensors and the input are rows of their own, without weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid, RangeMethod
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Tick
from pocketfit.numerics.sqnr import ratio_db

JUDGED = 16  # samples on which the outputs are compared
OBSERVED = 100  # other samples, from which the ranges are taken
WIDE = 8.0  # times the median range: next to such a channel the others have three bits fewer
NAMED = 8  # channels that are named, at most
REACH = 2  # neighbours on either side


@dataclass(frozen=True)
class Channels:
    """A summary of the ranges (largest magnitudes) of the channels of a tensor or a weight.

    times  the widest channel's range over the median of all that are not zero
    wide   how many channels have at least WIDE times the median; `which`: the widest of these, by their index
    """

    count: int
    times: float
    wide: int
    which: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """One layer. Decibels are SQNR of the network's outputs against float; inf where they are equal, None without one.

    reads           the row whose tensor this layer takes, "" where it is none or several
    weights_db      with only this layer's weights on their grid
    activations_db  with only the tensors behind it on theirs
    only_db         with both, and nothing else; share: its part in the sum of all layers' noise (1 / SQNR)
    all_but_db      with everything else quantized; gain_db: how much that is above everything quantized
    own_db          SQNR of the layer's own tensor with only it quantized; neighbours_db: the median of two on each side
    drift_db        SQNR of the layer's own tensor with everything quantized
    outputs         ranges of its tensor's channels; weights, inputs: of its weight, by output and by input channel
    """

    layer: str
    weight_bits: int | None
    reads: str
    weights_db: float | None
    activations_db: float | None
    only_db: float
    all_but_db: float
    gain_db: float
    share: float
    own_db: float | None
    neighbours_db: float | None
    drift_db: float | None
    outputs: Channels | None
    weights: Channels | None
    inputs: Channels | None


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The whole network, and its layers in the order in which they are carried out.

    whole_db, weights_db, activations_db  SQNR of the outputs with everything, only weights, only tensors on their grids
    added_db   the SQNR by the sum of all layers' noise, each quantized alone; if it is near whole_db, the shares are
               reliable
    judged     samples on which the outputs were compared; observed: other samples from which the ranges were taken
    """

    whole_db: float
    weights_db: float
    activations_db: float
    added_db: float
    layers: tuple[LayerSensitivity, ...]
    judged: int
    observed: int
    ranges: RangeMethod
    how: Literal["estimated"] = "estimated"

    @property
    def guilty(self) -> tuple[LayerSensitivity, ...]:
        """The layers by their share, the largest first."""
        return tuple(sorted(self.layers, key=lambda one: -one.share))

    def to_json(self) -> dict[str, Any]:
        """JSON has no infinity: an infinite SQNR is null."""
        found: dict[str, Any] = without_infinities(asdict(self))
        return found


def sensitivity(
    model: Model,
    grid: Grid,
    samples: Samples,
    *,
    most: int = JUDGED,
    ranges: RangeMethod = "min-max",
    layers: Collection[str] | None = None,
    progress: Tick | None = None,
) -> Sensitivity:
    """The noise that each layer adds on the grid of an export.

    samples  of the calibration split, with or without labels: outputs are compared on a quarter of them, `most` at
             most; OBSERVED of the others set the ranges
    layers   only these rows; shares are then of the noise of the whole network, and added_db says nothing

    Raises UserError for fewer than two samples, or where torch.export can't follow the network.
    """
    from pocketfit.analysis.quantization import simulated_noise as noise

    judged, observed = split_rows(len(samples), most)
    found = noise.measure(model, grid, samples, judged, observed, ranges, layers, progress)
    alone = [_noise(group.signal, group.both) for group in found.groups]
    total = sum(alone) if layers is None else _noise(found.signal, found.whole)
    whole_db = ratio_db(found.signal, found.whole)
    own = [ratio_db(*group.own) if group.own else None for group in found.groups]
    rows = tuple(
        LayerSensitivity(
            layer=group.name,
            weight_bits=group.bits,
            reads=group.reads,
            weights_db=None if group.weights is None else ratio_db(group.signal, group.weights),
            activations_db=None if group.activations is None else ratio_db(group.signal, group.activations),
            only_db=ratio_db(group.signal, group.both),
            all_but_db=ratio_db(group.signal, group.others),
            gain_db=_gain(ratio_db(group.signal, group.others), whole_db),
            share=share / total if total else 0.0,
            own_db=own[number],
            neighbours_db=neighbours(own, number),
            drift_db=ratio_db(*group.drift) if group.drift else None,
            outputs=channels(group.channels) if group.channels is not None else None,
            weights=channels(group.rows) if group.rows is not None else None,
            inputs=channels(group.columns) if group.columns is not None else None,
        )
        for number, (group, share) in enumerate(zip(found.groups, alone, strict=True))
    )
    return Sensitivity(
        whole_db=whole_db,
        weights_db=ratio_db(found.signal, found.weights),
        activations_db=ratio_db(found.signal, found.activations),
        added_db=ratio_db(1.0, total),
        layers=rows,
        judged=len(judged),
        observed=len(observed),
        ranges=ranges,
    )


def split_rows(count: int, most: int) -> tuple[list[int], list[int]]:
    """(rows to judge on, rows to take ranges from), disjoint and both spread over all.

    >>> split_rows(6, 16)
    ([0], [1, 2, 3, 4, 5])
    """
    if count < 2:
        raise UserError(f"Sensitivity needs at least two samples, and {count} were given: some for ranges, others")
    wanted = max(1, min(most, count // 4))
    judged = np.linspace(0, count, wanted, endpoint=False).astype(int).tolist()
    others = sorted(set(range(count)) - set(judged))
    return judged, others[:: max(1, len(others) // OBSERVED)][:OBSERVED]


def channels(widths: ArrayLike) -> Channels:
    """The Channels of these ranges, [C].

    >>> channels([1.0, 60.0, 1.0, 0.0, 1.0])
    Channels(count=5, times=60.0, wide=1, which=(1,))
    """
    values = np.asarray(widths, np.float64)
    alive = values[values > 0]
    if not len(alive):
        return Channels(len(values), 1.0, 0, ())
    times = values / np.median(alive)
    order = np.argsort(-times, kind="stable")
    wide = int((times >= WIDE).sum())
    return Channels(len(values), float(times.max()), wide, tuple(int(c) for c in order[: min(wide, NAMED)]))


def neighbours(values: Sequence[float | None], number: int) -> float | None:
    """The median of up to REACH values on either side, None where there are none.

    >>> neighbours([30.0, 10.0, 32.0, None], 1)
    31.0
    """
    near = [*values[max(0, number - REACH) : number], *values[number + 1 : number + 1 + REACH]]
    known = [value for value in near if value is not None]
    return median(known) if known else None


def _noise(signal: float, noise: float) -> float:
    return noise / signal if signal else 0.0


def _gain(better: float, whole: float) -> float:
    return 0.0 if better == whole else better - whole


def without_infinities(value: Any) -> Any:
    """The same with null for infinities, as JSON has none, and lists for tuples.

    >>> without_infinities({"a": (1.0, float("inf"))})
    {'a': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: without_infinities(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinities(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
