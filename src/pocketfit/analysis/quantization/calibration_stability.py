"""How much each range method depends on the choice of calibration samples. Estimated, in torch."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any, get_args

import numpy as np

from pocketfit.analysis.quantization.sensitivity import split_rows, without_infinities
from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid, RangeMethod
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Tick
from pocketfit.numerics.sqnr import ratio_db

SEEDS = 3
JUDGED = 8  # samples on which the outputs are compared
SEEN = 48  # samples of each subset, at most
METHODS: tuple[RangeMethod, ...] = get_args(RangeMethod)


@dataclass(frozen=True)
class MethodStability:
    """SQNR of the outputs with ranges by one method, in dB, for each subset of the calibration samples."""

    method: RangeMethod
    sqnr_db: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON has no infinity: an infinite SQNR is null."""
        found: dict[str, Any] = {"method": self.method, "sqnr_db": self.sqnr_db}
        found |= {"lowest_db": min(self.sqnr_db), "highest_db": max(self.sqnr_db), "median_db": median(self.sqnr_db)}
        return dict(without_infinities(found))


def stability(
    model: Model,
    grid: Grid,
    samples: Samples,
    *,
    seeds: int = SEEDS,
    progress: Tick | None = None,
) -> tuple[MethodStability, ...]:
    """Every method on `seeds` random subsets, all judged on the same other samples.

    Raises UserError for fewer than two samples, or where torch.export can't follow the network.
    """
    import torch

    from pocketfit.analysis.quantization import simulated_noise
    from pocketfit.passes.graph.feed import call
    from pocketfit.passes.graph.main_answer import main_answer
    from pocketfit.passes.quantize.simulate import observe_ranges
    from pocketfit.passes.quantize.simulate.simulation import simulate

    judged, others = split_rows(len(samples), JUDGED)
    simulation = simulate(model, grid)
    found: dict[RangeMethod, list[float]] = {method: [] for method in METHODS}
    with torch.inference_mode():
        simulation.activate(weights=False, points=False)
        exact = [main_answer(call(simulation.network, batch)) for batch in observe_ranges.batches(samples, judged)]
        for seed in range(seeds):
            size = min(SEEN, max(1, len(others) // 2))
            rows = sorted(np.random.default_rng(seed).choice(others, size, replace=False).tolist())
            seen = observe_ranges.observe(simulation, samples, rows, histograms=True)
            for number, method in enumerate(METHODS):
                observe_ranges.set_ranges(simulation, seen, method)
                simulation.activate()
                signal = error = 0.0
                for batch, answers in zip(observe_ranges.batches(samples, judged), exact, strict=True):
                    signal += simulated_noise.energy(answers)
                    error += simulated_noise.energy(main_answer(call(simulation.network, batch)) - answers)
                found[method].append(ratio_db(signal, error))
                if progress:
                    progress(seed * len(METHODS) + number + 1, seeds * len(METHODS))
    return tuple(MethodStability(method, tuple(values)) for method, values in found.items())
