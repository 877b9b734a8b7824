"""Histograms of the tensors behind layers, in the runtime's own float file, with the clip of each range method."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from pocketfit import runtimes
from pocketfit.core.artifact import Contents
from pocketfit.core.plan.export import ExportSettings, RangeMethod
from pocketfit.core.runtime import Runtime
from pocketfit.core.samples import Samples
from pocketfit.numerics import quantization_ranges as numerics
from pocketfit.runtimes.common.calibration import summaries

SHOWN_BINS = 64


@dataclass(frozen=True)
class Histogram:
    """One tensor on the calibration samples.

    counts  values in each of SHOWN_BINS equally wide bins over [low, high]
    clips   by method, the range [low, high] that its integers would cover
    """

    layer: str
    tensor: str
    low: float
    high: float
    counts: tuple[int, ...]
    clips: dict[str, tuple[float, float]]


def histograms(
    source: Path, layers: Collection[str], samples: Samples, settings: ExportSettings, work: Path
) -> tuple[Histogram, ...]:
    """The histograms of the tensors behind these layers of the float file `source`; layers not in it are left out."""
    runtime = runtimes.get(settings.runtime)
    contents = runtime.inspect(source)
    names = {
        layer: name
        for layer, name in tensors_behind(source, runtime, contents).items()
        if layer in layers or name in layers
    }
    seen = summaries(
        source,
        contents.inputs,
        samples,
        replace(settings, ranges="mse"),
        gather=runtime.GATHER,
        work=work,
    )
    return tuple(histogram(layer, name, seen[name]) for layer, name in names.items() if name in seen)


def histogram(layer: str, tensor: str, summary: numerics.Summary) -> Histogram:
    """The summary in fewer bins, with the clip of each method."""
    clips = {method: numerics.range_of(summary, method) for method in get_args(RangeMethod)}
    counts = summary.counts.reshape(SHOWN_BINS, -1).sum(axis=1) if len(summary.counts) else summary.counts
    return Histogram(layer, tensor, summary.minimum, summary.maximum, tuple(map(int, counts)), clips)


def tensors_behind(source: Path, runtime: Runtime, contents: Contents) -> dict[str, str]:
    """By layer, the name of the float file's tensor behind it and its activation; the input by its own name."""
    return {one.name: one.name for one in contents.inputs} | runtime.tensors_behind(source, contents)
