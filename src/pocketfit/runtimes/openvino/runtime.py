"""OpenVINO, by the functions of core.runtime.Runtime. Its files are made of ONNX Runtime's, so that ranges and rounded
weights are the same; the code of the child process is in convert.py."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from pocketfit.core.artifact import Artifact, Contents
from pocketfit.core.errors import ExportFailed, UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.runtime_list import RUNTIMES
from pocketfit.core.runtime import RuntimeInfo
from pocketfit.core.samples import Samples
from pocketfit.core.signature import Signature
from pocketfit.core.support.files import whole_or_not
from pocketfit.core.support.loading import require
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.core.support.text import some
from pocketfit.formats import openvino_read
from pocketfit.processes import child_process
from pocketfit.runtimes.common.output_file import artifact_of, not_smaller
from pocketfit.runtimes.common.probe import probe_by_export
from pocketfit.runtimes.onnxruntime import runtime as onnxruntime
from pocketfit.runtimes.openvino.profile import profile
from pocketfit.runtimes.openvino.session import EXTRA, load

__all__ = ["EXTRA", "load", "profile"]  # of the seam, from the files beside this one

NAME = "openvino"
EXTENSION = ".xml"
ACCEPTS = ("torch",)
HOW = "measured"
PACKAGES = ("openvino", "onnx")
LIBRARY = "openvino"
APP_PACKAGE = "openvino"
GATHER = "pocketfit.runtimes.onnxruntime.calibrate:gather"
LAYER_OUTPUTS = "pocketfit.runtimes.openvino.layer_outputs:opened"
LAYER_OUTPUTS_DIFFER = "OpenVINO fuses fewer operators where inner tensors are read"
ARENA = SOURCES = ""

CONVERT = "pocketfit.runtimes.openvino.convert:to_ir"
PRECISIONS = ("float32", "float16", "int8", "weight-only")
WEIGHTED = (*openvino_read.CONVOLUTIONS, *openvino_read.TRANSPOSED, "MatMul")


def probe() -> RuntimeInfo:
    """Export, load and run a tiny network."""
    return probe_by_export(NAME, lambda: str(require("openvino", EXTRA).__version__), delegates=_devices)


def _devices() -> tuple[str, ...]:
    return tuple(require("openvino", EXTRA).Core().available_devices)


def why_not(plan: Plan, signature: Signature) -> list[str]:
    """Reasons why this runtime cannot make the plan's file."""
    settings, reasons = plan.export, []
    if settings.runtime != NAME:
        reasons.append(f"This plan is for the runtime '{settings.runtime}', not for OpenVINO")
    if settings.precision not in PRECISIONS:
        reasons.append(
            f"OpenVINO files are made in {', '.join(PRECISIONS)}, not in {settings.precision}, whose operators its CPU "
            "plugin computes in float32"
        )
    if settings.precision == "int8" and settings.activations != "uint8":
        reasons.append(
            "OpenVINO chooses between int8 and uint8 for each tensor by itself: ask for uint8, whose grid holds both"
        )
    if settings.io != "float32":
        reasons.append(f"OpenVINO files take and give float32 here, not {settings.io}: leave io at float32")
    if settings.weights not in ("int8", "int7"):
        reasons.append(f"OpenVINO has no convolution for {settings.weights} weights on CPUs: use weights of int8")
    reasons += onnxruntime.why_not(replace(plan, export=_as_onnx(settings)), signature) if not reasons else []
    return reasons


def recipes() -> tuple[ExportSettings, ...]:
    """The exports worth trying, static int8 first."""
    return (ExportSettings(NAME, "int8", activations="uint8"), ExportSettings(NAME, "float16"))


def prelude(model: Model) -> tuple[PassSettings, ...]:
    """The passes before a static int8 file: none."""
    return ()


def tensors_behind(path: Path, contents: Contents) -> dict[str, str]:
    """The tensor behind each layer in the float .onnx file."""
    return onnxruntime.tensors_behind(path, contents)


def export(model: Model, plan: Plan, calibration: Samples | None, path: Path, *, work: Path) -> Artifact:
    """Write the .xml and .bin of `plan.export`; `<work>/<model.key>.onnx` is the float32 file behind them."""
    if reasons := why_not(plan, model.signature):
        raise UserError(reasons[0])
    require("openvino", EXTRA)
    settings = plan.export
    beside = RUNTIMES[NAME].beside
    with temporary_folder() as folder, whole_or_not(path, beside) as partial:
        source = Path(folder, f"network{RUNTIMES['onnxruntime'].suffix}")
        float_file, notes = onnxruntime.write(
            model, _as_onnx(settings), calibration, source, work=work, corrected=plan.corrected_on
        )
        payload = {"source": str(source), "path": str(partial), "half": settings.precision == "float16"}
        child_process.call(CONVERT, payload)
        notes = read_back(openvino_read.contents(partial), settings) + notes
        notes += not_smaller(partial, float_file, settings)
    return artifact_of(path, plan, NAME, notes)


def _as_onnx(settings: ExportSettings) -> ExportSettings:
    """The settings of the .onnx file that is converted: OpenVINO rounds to float16 by itself."""
    precision = "float32" if settings.precision == "float16" else settings.precision
    return replace(settings, runtime="onnxruntime", precision=precision)


def read_back(contents: Contents, settings: ExportSettings) -> list[str]:
    """Compare the weights' dtypes with the settings; -> notes. Raises ExportFailed where none is right."""
    expected = {"float32": "float32", "float16": "float16"}.get(settings.precision, "int8")
    layers = [op for op in contents.ops if op.type in WEIGHTED and op.weight_dtype]
    asked = [op for op in layers if op.layer not in settings.keep_float]
    other = [op for op in asked if op.weight_dtype != expected]
    if asked and len(other) == len(asked):
        raise ExportFailed(f"No weight of the file is {expected}: all are {other[0].weight_dtype}")
    notes = []
    if other:
        names = some([op.layer or op.name for op in other], 5)
        notes.append(f"{len(other)} layers stayed in {other[0].weight_dtype}: {names}")
    if settings.precision == "int8":
        notes += [
            f"Layers with integer weights that compute in float32: {some([op.layer or op.name for op in left], 5)}"
            for left in [[op for op in asked if op.weight_dtype == expected and op.compute_dtype == "float32"]]
            if left
        ]
        kinds = Counter(op.type for op in layers if op.compute_dtype == "float32" and op.layer in settings.keep_float)
        notes += [f"Kept in float32 as asked: {kinds.total()} layers"] if kinds else []
    return notes


def inspect(path: Path) -> Contents:
    """The contents of a file; see openvino_read.contents."""
    return openvino_read.contents(path)
