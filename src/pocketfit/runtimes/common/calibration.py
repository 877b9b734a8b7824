"""Calibration in the parent process: check the samples, and give each tensor its range.

A runtime's child (its `gather` function) runs the float file and sums up each tensor, once for each file and samples.
The summaries are kept in the work folder; numerics/quantization_ranges.py computes the ranges from them.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.artifact import FileTensor
from pocketfit.core.errors import ExportFailed, UserError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.samples import Samples, value_range
from pocketfit.core.signature import Signature
from pocketfit.core.support.files import whole_or_not
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.numerics import quantization_ranges as numerics
from pocketfit.processes import child_process

Ranges = dict[str, tuple[float, float]]
FEW = 8  # with fewer samples, minimum and maximum depend on which samples happen to be there
LOOKED_AT = 256  # samples that `check_samples` looks at
BEYOND = 0.05  # of the expected range: how far values may lie outside it (a resize filter overshoots)
NARROW = 0.2  # of the expected range: images that use less of it are hardly those that the network was trained on
APART = 1.0  # standard deviations between the means of calibration and training samples


def activation_ranges(
    source: Path,
    given: Sequence[FileTensor],
    samples: Samples,
    settings: ExportSettings,
    *,
    gather: str,
    ends: Collection[str],
    work: Path,
    learned: Mapping[str, tuple[float, float]] | None = None,
    environment: Mapping[str, str] | None = None,
    server: str = "",
) -> Ranges:
    """The range of every tensor that `gather` finds in the float file `source`, by `settings.ranges`.

    given    the file's inputs; their layouts decide how images are fed
    gather   "module:function" of the runtime's child, called as gather(source, samples, target, histograms): it runs
             the file on all samples (an .npz, by input name [n, ...]) and writes the summaries with
             quantization_ranges.save; `histograms`: whether the method needs them, which costs a second run
    ends     names of the file's inputs and outputs. They have min-max ranges, whatever the method, because the largest
             logits are the prediction (docs/results/notes.md, "Ranges of a file's ends")
    learned  ranges by tensor name from quantization-aware training; they overrule all others

    Raises ExportFailed, with the tensor's name, where values were not finite or a learned name is not in the file.
    """
    found = summaries(
        source, given, samples, settings, gather=gather, work=work, environment=environment, server=server
    )
    wide = settings.activations == "int16"
    ranges: Ranges = {}
    for name, summary in found.items():
        method = "min-max" if name in ends else settings.range_method
        try:
            ranges[name] = numerics.range_of(
                summary, method, symmetric=wide or settings.symmetric, bits=16 if wide else 8
            )
        except ValueError as error:
            raise ExportFailed(f"The tensor '{name}' has no range on the calibration samples: {error}") from error
    for name, (low, high) in (learned or {}).items():
        if name not in ranges:
            near = difflib.get_close_matches(name, ranges, n=1)
            hint = f"; the nearest name is '{near[0]}'" if near else ""
            raise ExportFailed(f"A range was learned for '{name}', which is no tensor of the file{hint}")
        ranges[name] = (min(float(low), 0.0), max(float(high), 0.0))
    return ranges


def summaries(
    source: Path,
    given: Sequence[FileTensor],
    samples: Samples,
    settings: ExportSettings,
    *,
    gather: str,
    work: Path,
    environment: Mapping[str, str] | None = None,
    server: str = "",
) -> dict[str, numerics.Summary]:
    """The Summary of every tensor of `source`, with histograms where `settings.ranges` needs them.

    Kept as `<work>/<file>-<hash of the samples>.<limits or histograms>.npz`.
    """
    histograms = numerics.needs_histogram(settings.range_method)
    values = fitting(samples, slice(0, settings.calibration), given)
    hashed = hashlib.sha256()
    for array in values.values():
        hashed.update(np.ascontiguousarray(array).data)
    digest = hashed.hexdigest()[:16]
    target = work / f"{source.stem}-{digest}.{'histograms' if histograms else 'limits'}.npz"
    if not target.exists():
        with temporary_folder(work) as folder, whole_or_not(target) as partial:
            data = Path(folder, "samples.npz")
            np.savez(data, allow_pickle=False, **values)
            payload = {
                "source": str(source),
                "samples": str(data),
                "target": str(partial),
                "histograms": histograms,
            }
            child_process.call(gather, payload, environment=environment, server=server, start_server=False)
    return numerics.load(target)


def fitting(samples: Samples, rows: slice, given: Sequence[FileTensor]) -> dict[str, NDArray[Any]]:
    """The samples as the file's inputs take them, by name: [n, ...]. Ready tensors are [n, C, H, W], as the network
    takes them; the file may take channels last. Raises UserError for another shape."""
    found = {}
    for tensor, array in zip(given, samples.by_name([tensor.name for tensor in given]), strict=True):
        values = samples.values_of(array, rows, tensor.layout or "NCHW")
        if not _fits(values.shape[1:], tensor.shape[1:]) and values.ndim == 4:
            other = samples.values_of(array, rows, "NHWC") if not tensor.layout else values
            values = other if array.dtype == np.uint8 else np.ascontiguousarray(values.transpose(0, 2, 3, 1))
        if not _fits(values.shape[1:], tensor.shape[1:]):
            raise UserError(
                f"Calibration samples of shape {list(values.shape[1:])} do not fit the input '{tensor.name}', which"
                f" takes {list(tensor.shape[1:])}"
            )
        found[tensor.name] = values.astype(tensor.dtype) if values.dtype.kind in "iub" else values
    return found


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(b is None or a == b for a, b in zip(shape, wanted, strict=True))


def check_samples(
    samples: Samples, signature: Signature, settings: ExportSettings, training: Samples | None = None
) -> list[str]:
    """Sentences on what is suspicious about calibration samples, with the numbers that were seen; [] where nothing is.

    training  samples of the training split, to compare the values with

    Raises UserError where the samples cannot set a range: none, another shape, not finite, or all alike.
    """
    count = min(len(samples), settings.calibration)
    if not count:
        raise UserError("Static int8 needs calibration samples to set its ranges, and none were given")
    spec = signature.inputs[0]
    values = samples.inputs(slice(0, min(count, LOOKED_AT)))
    if not spec.dtype.startswith("float") or len(signature.inputs) > 1:
        return _check_each(samples, signature, count)
    if not _fits(values.shape[1:], spec.shape[1:]):
        raise UserError(
            f"Calibration samples of shape {list(values.shape[1:])} do not fit the input '{spec.name}', which takes "
            f"{list(spec.shape[1:])}"
        )
    if bad := [i for i in range(len(values)) if not np.isfinite(values[i]).all()]:
        raise UserError(
            f"{len(bad)} of {len(values)} calibration samples hold NaN or infinity, '{samples.names[bad[0]]}' first"
        )
    low, high, mean, deviation = float(values.min()), float(values.max()), float(values.mean()), float(values.std())
    if low == high:
        raise UserError(f"All values of the {len(values)} calibration samples are {low:g}: they can set no range")
    if len(values) > 1 and (values == values[:1]).all():
        raise UserError(f"The {len(values)} calibration samples are all the same one: they can set no range")
    findings = []
    if count < FEW:
        findings.append(f"Calibrated on {count} samples only: ranges from fewer than {FEW} depend on which they are")
    if flat := sum(bool((row == row.flat[0]).all()) for row in np.asarray(samples.array[: len(values)])):
        findings.append(f"{flat} of {len(values)} calibration samples are of one value throughout")
    seen = f"they reach from {low:.3g} to {high:.3g}, with mean {mean:.3g} and standard deviation {deviation:.3g}"
    if spec.layout and (suspicion := _suspicion(samples, low, high)):
        findings.append(f"The values of the calibration samples are not what the network's preprocessing makes: {seen}"
                        f"; {suspicion}")  # fmt: skip
    if training is not None and len(training):
        theirs = training.inputs(slice(0, LOOKED_AT))
        apart = abs(mean - float(theirs.mean())) / max(float(theirs.std()), 1e-12)
        if apart > APART:
            findings.append(
                f"The calibration samples differ from the training samples: {seen}, where those have mean "
                f"{float(theirs.mean()):.3g} and standard deviation {float(theirs.std()):.3g}"
            )
    return findings


def _check_each(samples: Samples, signature: Signature, count: int) -> list[str]:
    """As check_samples, of networks with several inputs or whole numbers: shapes, and whether numbers are finite."""
    names = [spec.name for spec in signature.inputs]
    for spec, array in zip(signature.inputs, samples.by_name(names), strict=True):
        values = samples.values_of(array, slice(0, min(count, LOOKED_AT)))
        if not _fits(values.shape[1:], spec.shape[1:]):
            raise UserError(
                f"Calibration samples of shape {list(values.shape[1:])} do not fit the input '{spec.name}', which takes"
                f" {list(spec.shape[1:])}"
            )
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UserError(f"Calibration samples hold NaN or infinity for the input '{spec.name}'")
    if count < FEW:
        return [f"Calibrated on {count} samples only: ranges from fewer than {FEW} depend on which they are"]
    return []


def _suspicion(samples: Samples, low: float, high: float) -> str:
    """What is wrong with values in [low, high], by the range that the preprocessing gives; "" where nothing is."""
    bottom, top = value_range(samples.preprocess)
    width, usual = top - bottom, f"images become {bottom:.3g} to {top:.3g}"
    if samples.array.dtype == np.uint8:
        largest = int(np.asarray(samples.array[: min(len(samples), LOOKED_AT)]).max())
        if largest <= 1:
            return f"the pixels go up to {largest}, not to 255, as if they had been scaled to 0..1 before"
    elif low < bottom - BEYOND * width or high > top + BEYOND * width:
        if low >= 0 and 1 < high <= 255:
            return f"{usual}, and these look like pixels from 0 to 255: scale and normalize them first"
        return f"{usual}, and these lie outside: perhaps they were normalized twice"
    elif low >= 0 and high <= 1 and bottom < 0:
        return f"{usual}, and these look like pixels scaled to 0..1: subtract the mean and divide by the deviation"
    if high - low < NARROW * width:
        return f"{usual}, and these use {(high - low) / width:.0%} of that range: perhaps they were scaled twice"
    return ""
