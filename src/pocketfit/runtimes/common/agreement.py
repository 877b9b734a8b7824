"""Whether a converted file has the outputs of the torch network: all of them, for one sample and for a batch.

The samples of a batch differ in scale and offset, as images do. With white noise of one scale, a file whose
normalization mixes samples, or that has a fixed batch size, would be almost right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import ExportFailed
from pocketfit.core.runtime import ROWS
from pocketfit.core.signature import TensorSpec

# The largest difference allowed, as a share of an output's largest value. File and network sum in different orders,
# which costs about 1e-6 a layer; the effect of a change in the last bit of the input is allowed on top.
TOLERANCE = 1e-4
LAST_BIT = 1e-6
# Runtimes approximate sigmoid and softmax to about the last bit of 1 (1.2e-7), which is a large share of outputs that
# are all near 0, as where a detector finds nothing. A difference of twice that is allowed.
SMALLEST_RANGE = 2 * 1.2e-7 / TOLERANCE
# How far the outputs of a batch may be from those of its rows alone, as a share of the range: because of rounding in a
# static int8 file, because of the order of sums in one with float activations.
ROW_TOLERANCE = {"int8": 0.02, "dynamic-int8": 1e-3}
ROW_BY_ROW = "The file is right for one sample at a time: pocketfit runs the samples of a batch one after the other"
FEW = 3
# A network's only input of whole numbers gets numbers below the first of these that it takes. The more of them differ,
# the better: norms of rows that are nearly alike turn the last bits into large differences.
WHOLE = (127, 10, 2)
Arrays = list[NDArray[np.generic]]
Run = Callable[[Arrays], Arrays]


def samples(inputs: Sequence[TensorSpec], rows: int = ROWS, seed: int = 0, below: int = 2) -> Arrays:
    """Noise for each input [rows, ...]; each row has a scale (0.2 to 2) and an offset (-1 to 1) of its own. Whole
    numbers are from 0 to `below`, which is left out."""
    rng, made = np.random.default_rng(seed), []
    for spec in inputs:
        shape = spec.with_batch(rows)
        if not spec.dtype.startswith("float"):
            made.append(rng.integers(0, below, shape).astype(spec.dtype))
            continue
        each = (shape[0], *[1] * (len(shape) - 1))
        scale, offset = np.geomspace(0.2, 2, shape[0]), rng.permutation(np.linspace(-1, 1, shape[0]))
        values = rng.standard_normal(shape) * scale.reshape(each) + offset.reshape(each)
        made.append(values.astype(spec.dtype))
    return made


def any_batch(network: Any, run: Run, inputs: Sequence[TensorSpec], outputs: Sequence[str], what: str) -> bool:
    """Whether a file has the outputs of `network` (a torch module) for any number of rows. False where it has for
    single rows only, or where the network itself mixes the rows of a batch.

    run   runs the file: arrays in the order of `inputs` -> arrays in the order of `outputs`
    what  names the file in a sentence: "The ONNX file"

    Raises ExportFailed, naming the output, where the file is wrong even for single rows.
    """
    given = _taken(network, inputs)
    if any(spec.shape[0] is not None for spec in inputs):
        _must_agree(network, run, given, outputs, what)
        return True
    last = len(given[0]) - 1
    for row in range(0, last + 1, last // FEW):
        _must_agree(network, run, _rows(given, row, row + 1), outputs, what)
    together = _answers(network, given)
    for row in (0, last):
        alone = _rows(given, row, row + 1)
        if not _near(network, alone, _answers(network, alone), _rows(together, row, row + 1)):
            return False
    return all(_near(network, some, _answers(network, some), run(some)) for some in (given, _rows(given, 0, FEW)))


def _taken(network: Any, inputs: Sequence[TensorSpec]) -> Arrays:
    """Samples that the network takes: an embedding has no row for large numbers."""
    if len(inputs) == 1 and "int" in inputs[0].dtype:
        for below in WHOLE:
            given = samples(inputs, below=below)
            try:
                _answers(network, given)
            except (IndexError, RuntimeError):
                continue
            return given
    return samples(inputs)


def same_rows(run: Run, inputs: Sequence[TensorSpec], tolerance: float) -> bool:
    """Whether the outputs for a batch are those for each of its rows alone, up to `tolerance` times the range."""
    given = samples(inputs)
    together = run(given)
    alone = zip(*(run(_rows(given, row, row + 1)) for row in range(len(given[0]))), strict=True)
    apart = _apart([np.concatenate(rows) for rows in alone], together)
    return max(apart) <= tolerance


def _must_agree(network: Any, run: Run, given: Arrays, outputs: Sequence[str], what: str) -> None:
    wanted, found = _answers(network, given), run(given)
    if _near(network, given, wanted, found):
        return
    apart = _apart(wanted, found)
    worst = max(range(len(apart)), key=apart.__getitem__)
    raise ExportFailed(
        f"{what} has other outputs than the torch network: its output '{outputs[worst]}' is off by "
        f"{apart[worst]:.2g} of its range"
    )


def _near(network: Any, given: Arrays, wanted: Arrays, found: Arrays) -> bool:
    """Whether each output is within TOLERANCE, or as near as torch's own outputs are after a change of the inputs' last
    bits."""
    apart = _apart(wanted, found, SMALLEST_RANGE)
    if max(apart) <= TOLERANCE:
        return True
    moved: Arrays = [
        (values * np.asarray(1 + LAST_BIT)).astype(values.dtype) if values.dtype.kind == "f" else values
        for values in given
    ]
    by_chance = _apart(wanted, _answers(network, moved), SMALLEST_RANGE)
    return all(a <= max(TOLERANCE, b) for a, b in zip(apart, by_chance, strict=True))


def _rows(arrays: Arrays, start: int, stop: int) -> Arrays:
    return [values[start:stop] for values in arrays]


def _answers(network: Any, given: Arrays) -> Arrays:
    import torch
    from torch.utils._pytree import tree_leaves

    with torch.no_grad():
        found = network(*(torch.from_numpy(np.ascontiguousarray(values)) for values in given))
    return [value.numpy() for value in tree_leaves(found)]


def _apart(wanted: Arrays, found: Arrays, smallest: float = 1e-6) -> list[float]:
    """The largest difference of each output, as a share of its largest value, or of `smallest` where that is more;
    infinite for another shape or another number of outputs, or where only one has a NaN."""
    if len(wanted) != len(found):
        return [float("inf")] * len(wanted)
    apart = []
    for a, b in zip(wanted, found, strict=True):
        if a.shape != b.shape or (np.isfinite(a) != np.isfinite(b)).any():
            apart.append(float("inf"))
            continue
        finite = np.isfinite(a)
        left, right = a[finite].astype(np.float64), b[finite].astype(np.float64)
        largest = max(float(np.abs(left).max(initial=0)), smallest)
        apart.append(float(np.abs(left - right).max(initial=0)) / largest)
    return apart
