"""How each pass of a plan is carried out: its settings and a Given in, a new Model out. A new pass is a line here.

The passes themselves lie in `passes/`; each is imported when it is carried out, because it imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid
from pocketfit.core.plan.passes import KINDS
from pocketfit.core.plan.prune import Prune, Sparsify
from pocketfit.core.plan.quantize import CorrectBias, Equalize, QuantTrain, Round
from pocketfit.core.plan.rewrite import Fold, Piecewise, Resolution
from pocketfit.core.plan.train import Recalibrate, Train
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Watch
from pocketfit.search.run.job import Job


@dataclass(frozen=True, kw_only=True)
class Given:
    """The inputs of a pass.

    model  the network after the passes before it
    exact  the network before any weight was put on the grid; set from the first pass on that works for a grid
    grid   the grid of the plan's file; None for a file in float
    """

    job: Job
    model: Model
    grid: Grid | None
    exact: Model | None
    watch: Watch

    def samples(self, split: str, limit: int | None = None) -> Samples:
        """The samples of a split, as the network takes them after the passes before."""
        return self.job.samples(split, self.model.preprocess, self.watch, limit=limit)

    def calibration(self, settings: Equalize | CorrectBias) -> Samples | None:
        """Calibration samples for a pass, None where its settings need none."""
        return self.samples("calibration", settings.samples) if settings.statistics == "data" else None

    @property
    def on_grid(self) -> Grid:
        """The grid, for a pass that needs one."""
        assert self.grid is not None, "a plan with such a pass has a grid"
        return self.grid


@dataclass(frozen=True)
class Pass:
    """How a pass is carried out.

    apply  carries the pass out
    quick  whether it is done again each time, so that its result is not stored on the disk
    """

    apply: Callable[[Any, Given], Model]
    quick: Callable[[Any], bool] = lambda settings: False


def _prune(settings: Prune, given: Given) -> Model:
    from pocketfit.passes.prune import prune_channels

    if _needs_no_samples(settings):
        return prune_channels.apply(given.model, settings)
    samples = given.samples("train", settings.samples)
    given.watch.step(f"scoring channels by {settings.criterion}")
    return prune_channels.apply(given.model, settings, samples)


def _needs_no_samples(settings: Prune) -> bool:
    from pocketfit.passes.prune.criteria import DATA_DRIVEN

    return settings.criterion not in DATA_DRIVEN and not settings.calls_code


def _sparsify(settings: Sparsify, given: Given) -> Model:
    from pocketfit.passes.prune import sparsify

    if settings.criterion == "magnitude":
        return sparsify.apply(given.model, settings, None)
    samples = given.samples("train", settings.samples)
    return sparsify.apply(
        given.model, settings, samples, progress=given.watch.step("following the loss to each weight")
    )


def _train(settings: Train, given: Given) -> Model:
    from pocketfit.passes.train import fine_tune

    job, samples = given.job, given.samples("train")
    tick = given.watch.step(f"training for {settings.steps} steps")
    teacher = job.teacher or job.model
    return fine_tune.apply(given.model, settings, samples, teacher=teacher, cache=job.cache, progress=tick)


def _recalibrate(settings: Recalibrate, given: Given) -> Model:
    from pocketfit.passes.train import recalibrate_batch_norm

    samples = given.samples("train")
    given.watch.step("taking batch norms anew")
    return recalibrate_batch_norm.apply(given.model, settings, samples)


def _resolution(settings: Resolution, given: Given) -> Model:
    from pocketfit.passes.rewrite import resolution

    return resolution.apply(given.model, settings)


def _piecewise(settings: Piecewise, given: Given) -> Model:
    from pocketfit.passes.rewrite import hardswish

    return hardswish.apply(given.model)


def _fold(settings: Fold, given: Given) -> Model:
    from pocketfit.passes.rewrite.fold import fold_model

    return fold_model.apply(given.model)


def _equalize(settings: Equalize, given: Given) -> Model:
    from pocketfit.passes.quantize.equalize import equalize

    samples = given.calibration(settings)
    given.watch.step("equalizing channels")
    return equalize.apply(given.model, settings, samples, given.grid)


def _correct_bias(settings: CorrectBias, given: Given) -> Model:
    from pocketfit.passes.quantize import bias_correction

    samples = given.calibration(settings)
    given.watch.step("correcting biases")
    return bias_correction.apply(given.model, settings, samples, given.on_grid)


def _round(settings: Round, given: Given) -> Model:
    from pocketfit.passes.quantize import rounding

    samples = given.samples(settings.split, settings.samples)
    tick = given.watch.step("rounding weights")
    return rounding.apply(given.model, settings, samples, given.on_grid, progress=tick)


def _quant_train(settings: QuantTrain, given: Given) -> Model:
    from pocketfit.passes.quantize import qat

    job, samples = given.job, given.samples(settings.split)
    tick = given.watch.step(f"training for {settings.steps} steps on the grid")
    return qat.apply(
        given.model,
        settings,
        samples,
        given.on_grid,
        own=job.model,
        exact=given.exact,
        teacher=job.teacher,
        progress=tick,
    )


PASSES: Mapping[type[Any], Pass] = {
    Prune: Pass(_prune, quick=_needs_no_samples),
    Sparsify: Pass(_sparsify, quick=lambda settings: settings.criterion == "magnitude"),
    Train: Pass(_train),
    Recalibrate: Pass(_recalibrate),
    Resolution: Pass(_resolution, quick=lambda settings: True),
    Piecewise: Pass(_piecewise, quick=lambda settings: True),
    Fold: Pass(_fold, quick=lambda settings: True),
    Equalize: Pass(_equalize),
    CorrectBias: Pass(_correct_bias, quick=lambda settings: settings.statistics == "file"),
    Round: Pass(_round),
    QuantTrain: Pass(_quant_train),
}
if missing := set(KINDS.values()) - set(PASSES):
    raise AssertionError(f"nobody carries out {', '.join(sorted(kind.__name__ for kind in missing))}")
