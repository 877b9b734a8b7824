"""Ranges that were computed in torch (by training, or from batch norms), for the tensors of a runtime's float file.

The file has other names for its tensors, and has fused some away. Tensors are matched by their values: on the same few
samples, torch's tensor and the file's have the same size, mean, deviation, minimum and maximum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pocketfit.core.artifact import FileTensor
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.samples import Samples
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.processes import child_process
from pocketfit.runtimes.common.calibration import Ranges, fitting

SAMPLES = 4
ALIKE = 1e-3  # of a tensor's range: by how much mean, deviation and ends of torch's and the file's tensor may differ


def ranges_for(
    model: Model,
    settings: ExportSettings,
    source: Path,
    given: Sequence[FileTensor],
    samples: Samples,
    *,
    fingerprints: str,
    environment: Mapping[str, str] | None = None,
    server: str = "",
) -> Ranges:
    """The ranges of the float file's tensors by their names: `model.learned.ranges`, or those from batch norms where
    the settings want them; {} where nothing was learned. Tensors that match none of torch's get no range here, and are
    calibrated.

    fingerprints  "module:function" of the runtime's child, called as fingerprints(source, samples, target)
    """
    learned, grid = model.learned.ranges, settings.grid
    if grid is None or settings.precision != "int8":
        return {}
    if settings.ranges == "batch-norm":
        from pocketfit.passes.quantize import data_free_ranges

        learned = data_free_ranges.ranges(model, grid)
    if not learned:
        return {}
    from pocketfit.passes.graph.feed import fed
    from pocketfit.passes.quantize.simulate.simulation import fingerprints_of

    few = slice(0, SAMPLES)
    ours = fingerprints_of(model, grid, fed(samples, few))
    with temporary_folder() as folder:
        data, target = Path(folder, "samples.npz"), Path(folder, "fingerprints.json")
        np.savez(data, allow_pickle=False, **fitting(samples, few, given))
        child_process.call(
            fingerprints,
            {"source": str(source), "samples": str(data), "target": str(target)},
            environment=environment,
            server=server,
            start_server=False,
        )
        theirs: dict[str, list[float]] = json.loads(target.read_text())
    found: Ranges = {}
    for tensor, fingerprint in theirs.items():
        points = [name for name, own in ours.items() if name in learned and alike(own, fingerprint)]
        if points:
            low, high = learned[points[0]]
            found[tensor] = float(low), float(high)
    return found


def alike(a: list[float], b: list[float]) -> bool:
    """Whether two results of quantization_ranges.fingerprint are of the same tensor.

    >>> alike([10, 0.5, 1.0, -1.0, 2.0], [10, 0.501, 1.0, -1.0, 2.0]), alike([10, 0, 1, -1, 2], [10, 0.1, 1, -1, 2])
    (True, False)
    """
    spread = max(a[4] - a[3], b[4] - b[3])
    return a[0] == b[0] and all(abs(x - y) <= ALIKE * spread for x, y in zip(a[1:], b[1:], strict=True))
