"""TensorFlow Lite for Microcontrollers, by the functions of core.runtime.Runtime. Its files are LiteRT's, in integers
at both ends; what runs them here is the runtime's own code, built for this machine with its portable kernels.

Accuracy and arena are therefore those of the device. Times are not: they are marked as estimated, and say only which of
two networks takes longer.
"""

from __future__ import annotations

import importlib.metadata
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from pocketfit.core.artifact import Artifact, Contents, OpCost
from pocketfit.core.errors import ExportFailed, PocketfitError, UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.runtime import Arrays, RuntimeInfo
from pocketfit.core.samples import Samples
from pocketfit.core.signature import Signature
from pocketfit.core.support.loading import require
from pocketfit.formats import tflite_read
from pocketfit.runtimes.common.output_file import artifact_of
from pocketfit.runtimes.common.probe import probe_by_export
from pocketfit.runtimes.litert import runtime as litert
from pocketfit.runtimes.micro.session import EXTRA, PACKAGE, load

__all__ = ["EXTRA", "load"]  # of the seam, from the files beside this one

NAME = "micro"
EXTENSION = ".tflite"
ACCEPTS = ("torch",)
HOW = "estimated"
PACKAGES = ("tflite-micro", *litert.PACKAGES)
LIBRARY = PACKAGE
APP_PACKAGE = "tflite-micro"
GATHER = litert.GATHER
LAYER_OUTPUTS = litert.LAYER_OUTPUTS
LAYER_OUTPUTS_DIFFER = ", in LiteRT's builtin kernels"
ARENA = "pocketfit.runtimes.micro.arena:arena_bytes"
SOURCES = "pocketfit.runtimes.micro.c_sources:sources"


def probe() -> RuntimeInfo:
    """Export, load and run a tiny network."""
    return probe_by_export(NAME, _version)


def _version() -> str:
    require(PACKAGE, EXTRA)
    return importlib.metadata.version(APP_PACKAGE)


def why_not(plan: Plan, signature: Signature) -> list[str]:
    """Reasons why this runtime cannot make the plan's file."""
    settings, reasons = plan.export, []
    if settings.runtime != NAME:
        reasons.append(f"This plan is for the runtime '{settings.runtime}', not for microcontrollers")
    if settings.precision not in ("float32", "int8"):
        reasons.append(
            f"Microcontrollers have no kernels for {settings.precision} files: use static int8, or float32 to compare"
        )
    if settings.weights != "int8" or settings.activations != "int8":
        reasons.append(
            f"Files for microcontrollers have int8 weights and activations, not {settings.weights} and"
            f" {settings.activations}"
        )
    if settings.keep_float:
        reasons.append("A file for microcontrollers is in integers from end to end: leave keep_float empty")
    return reasons or litert.why_not(replace(plan, export=_as_litert(settings)), signature)


def _as_litert(settings: ExportSettings) -> ExportSettings:
    return replace(settings, runtime=litert.NAME)


def recipes() -> tuple[ExportSettings, ...]:
    """The exports worth trying: integers from end to end."""
    return (ExportSettings(NAME, "int8", io="int8"),)


def prelude(model: Model) -> tuple[PassSettings, ...]:
    """The passes before a static int8 file: LiteRT's."""
    return litert.prelude(model)


def tensors_behind(path: Path, contents: Contents) -> dict[str, str]:
    """The output tensor of each layer's operator, which contains the activation."""
    return litert.tensors_behind(path, contents)


def export(model: Model, plan: Plan, calibration: Samples | None, path: Path, *, work: Path) -> Artifact:
    """Write the .tflite of `plan.export`, and see that the runtime has all its operators."""
    if reasons := why_not(plan, model.signature):
        raise UserError(reasons[0])
    require(PACKAGE, EXTRA)
    made = litert.export(model, replace(plan, export=_as_litert(plan.export)), calibration, path, work=work)
    try:
        load(path).close()
    except PocketfitError as error:
        path.unlink()
        raise ExportFailed(str(error)) from error
    return artifact_of(path, plan, NAME, made.notes)


def inspect(path: Path) -> Contents:
    """The contents of a .tflite file; see `tflite_read.inspect`."""
    return litert.inspect(path)


def profile(path: Path, inputs: Arrays, *, threads: int = 1, runs: int = 30) -> list[OpCost]:
    """The time of the whole network, shared out by multiply-accumulates: portable kernels take about the same time for
    each, and the Python package counts no operators' times."""
    session = load(path)
    times_us = []
    for _ in range(runs):
        begin = time.perf_counter()
        session.run({name: np.asarray(value)[:1] for name, value in inputs.items()})
        times_us.append((time.perf_counter() - begin) * 1e6)
    ops = tflite_read.inspect(path).ops
    total = sum(op.macs for op in ops) or 1
    whole_us = float(statistics.median(times_us))
    return [OpCost(op.index, op.name, op.type, whole_us * op.macs / total, "portable kernels") for op in ops]
