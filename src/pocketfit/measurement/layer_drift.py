"""Compare two files layer by layer, by the outputs of their layers.

A layer is an operator with weights, together with the activation that follows it: quantized files fold the activation
into the layer or into its quantization, so that both files have the same tensor only behind it. How layers' outputs are
read depends on the runtime (runtimes/<name>/layer_outputs.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit import runtimes
from pocketfit.core.runtime import LayerOutputs, answer, as_taken
from pocketfit.core.samples import Samples
from pocketfit.core.support.loading import called
from pocketfit.measurement.sample_arrays import fed, read_back
from pocketfit.numerics import sqnr
from pocketfit.numerics.affine import dequantize


def drift_in_child(*, runtime: str, a: str, b: str, samples: dict[str, Any], threads: int) -> dict[str, Any]:
    """Run both files on the `stored` samples and compare their layers, in the order of the first file.

    -> {"layers": [[name, signal, noise], …] (sums of squares over all samples),
        "tapped_db": [a, b], SQNR of the outputs of the file whose layers are read against the file as it ships}
    """
    given = read_back(samples)
    module = runtimes.get(runtime)
    files = [_File(module, Path(path), threads) for path in (a, b)]
    pairs = matched(files[0].tapped.layers, files[1].tapped.layers)
    sums = {ours: [0.0, 0.0] for ours in pairs}
    different: set[str] = set()
    for row in range(len(given)):
        first, second = (file.read(given, row) for file in files)
        for ours, theirs in pairs.items():
            if first[ours].shape != second[theirs].shape:
                different.add(ours)
                continue
            signal, noise = sqnr.energies(first[ours], second[theirs])
            sums[ours][0] += signal
            sums[ours][1] += noise
    layers = [[name, *both] for name, both in sums.items() if name not in different]
    return {"layers": layers, "tapped_db": [file.tapped_db() for file in files]}


def matched(a: Mapping[str, str], b: Mapping[str, str]) -> dict[str, str]:
    """Layers of a -> layers of b: by name; where no name is common and both have as many, by order.

    >>> matched({"stem": "t1", "head": "t2"}, {"head": "u1"})
    {'head': 'head'}
    >>> matched({"x": "t1", "y": "t2"}, {"1": "u1", "2": "u2"})
    {'x': '1', 'y': '2'}
    """
    common = {name: name for name in a if name in b}
    if not common and len(a) == len(b):
        return dict(zip(a, b, strict=True))
    return common


class _File:
    """A file twice: as it ships, and with its layers' outputs readable."""

    def __init__(self, module: Any, path: Path, threads: int) -> None:
        self.shipped = module.load(path, threads=threads)
        operators = [op for op in module.inspect(path).ops if op.weight_dtype and op.macs]
        self.tapped: LayerOutputs = called(module.LAYER_OUTPUTS)(path, operators, threads)
        self._signal = self._noise = 0.0

    def read(self, samples: Samples, row: int) -> dict[str, NDArray[np.generic]]:
        values = fed(samples, slice(row, row + 1), self.shipped.signature.inputs)
        found = self.tapped.run(as_taken(self.shipped, values))
        told, back = found.pop(""), self.shipped.output_quantization
        if back is not None and told.dtype.kind != "f":
            told = dequantize(told, back.scales[0], back.zero_points[0])
        signal, noise = sqnr.energies(answer(self.shipped, values), told)
        self._signal, self._noise = self._signal + signal, self._noise + noise
        return found

    def tapped_db(self) -> float:
        return min(200.0, sqnr.ratio_db(self._signal, self._noise))


def why_not(runtime_a: str, runtime_b: str) -> str:
    """ "" where the layers of two such files can be compared, else the sentence that says why not."""
    if runtime_a != runtime_b:
        return (
            f"Layers of a {runtime_a} file and a {runtime_b} file are laid out and fused differently:"
            " they can be compared between two files of the same format"
        )
    if not runtimes.get(runtime_a).LAYER_OUTPUTS:
        return f"The {runtime_a} runtime does not show what its layers give"
    return ""
