"""ONNX Runtime, by the functions of core.runtime.Runtime. The code of its child processes is in convert.py,
calibrate.py and quantize.py.

"int8" activations make ONNX Runtime's S8S8 files, "uint8" its U8S8 files; which is faster depends on the machine.
"""

from __future__ import annotations

import platform
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pocketfit.core.artifact import Artifact, Contents, OpInfo
from pocketfit.core.errors import ExportFailed, UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings, Weights
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.runtime import RuntimeInfo
from pocketfit.core.samples import Samples
from pocketfit.core.signature import Signature, ends_in_integers
from pocketfit.core.support.cpuinfo import X86, cpuinfo, isa, saturates, u8s8_saturates
from pocketfit.core.support.files import whole_or_not
from pocketfit.core.support.loading import require
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.core.support.text import some
from pocketfit.formats import onnx_read
from pocketfit.processes import child_process
from pocketfit.runtimes.common.calibration import Ranges, activation_ranges, check_samples, fitting
from pocketfit.runtimes.common.output_file import artifact_of, keep_notes, kept_notes, not_smaller
from pocketfit.runtimes.common.probe import probe_by_export
from pocketfit.runtimes.common.torch_ranges import ranges_for
from pocketfit.runtimes.common.traced_network import notes_of, traced
from pocketfit.runtimes.onnxruntime import layer_outputs
from pocketfit.runtimes.onnxruntime.profile import profile
from pocketfit.runtimes.onnxruntime.recurrent import RECURRENT
from pocketfit.runtimes.onnxruntime.session import EXTRA, load

__all__ = ["EXTRA", "load", "profile"]  # of the seam, from the files beside this one

NAME = "onnxruntime"
EXTENSION = ".onnx"
ACCEPTS = ("torch",)
HOW = "measured"
PACKAGES = ("onnxruntime", "onnx")
LIBRARY = "onnxruntime"
APP_PACKAGE = "onnxruntime"
GATHER = "pocketfit.runtimes.onnxruntime.calibrate:gather"
LAYER_OUTPUTS = "pocketfit.runtimes.onnxruntime.layer_outputs:opened"
LAYER_OUTPUTS_DIFFER = ""
ARENA = SOURCES = ""

CONVERT = "pocketfit.runtimes.onnxruntime.convert"
CALIBRATE = "pocketfit.runtimes.onnxruntime.calibrate"
QUANTIZE = "pocketfit.runtimes.onnxruntime.quantize"
SERVER = f"{CONVERT}:preload"
CHILD_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}  # so that every run makes the same file
WEIGHTED = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "MatMulInteger"),
    *(*RECURRENT, "DynamicQuantizeLSTM"),
)
# Operators that move or convert values, and compute nothing; quantize.shield inserts leaky ReLUs, too.
UNCOUNTED = (
    *("QuantizeLinear", "DequantizeLinear", "Cast", "Shape", "Concat", "Expand", "Slice", "Gather", "Reshape"),
    *("Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "LeakyRelu"),
)


def probe() -> RuntimeInfo:
    """Export, load and run a tiny network."""
    return probe_by_export(NAME, lambda: require("onnxruntime", EXTRA).__version__, delegates=_providers)


def _providers() -> tuple[str, ...]:
    return tuple(require("onnxruntime", EXTRA).get_available_providers())


def why_not(plan: Plan, signature: Signature) -> list[str]:
    """Reasons why this runtime cannot make the plan's file: ends of another dtype, settings without a kernel, ..."""
    settings, reasons = plan.export, []
    if settings.runtime != NAME:
        reasons.append(f"This plan is for the runtime '{settings.runtime}', not for ONNX Runtime")
    if settings.io != "float32" and (reason := ends_in_integers(signature)):
        reasons.append(reason)
    if settings.io not in ("float32", settings.activations):
        reasons.append(
            f"ONNX Runtime's {settings.activations} activations cannot meet {settings.io} inputs and outputs: "
            f"ask for activations of {settings.io} or io of {settings.activations}"
        )
    if settings.layout == "NHWC" and not any(spec.layout == "NCHW" for spec in signature.inputs):
        reasons.append("The layout NHWC is for images, and this network's input is none")
    if settings.precision == "int8" and settings.calibration < 1:
        reasons.append("Static int8 needs at least one calibration sample to set the ranges of the activations")
    if settings.keep_float and settings.precision == "float32":
        reasons.append("A float32 file keeps every layer in float32: leave keep_float empty")
    return reasons + _without_kernel(settings)


def _without_kernel(settings: ExportSettings) -> list[str]:
    """Settings that ONNX Runtime's CPU provider computes in float32, between conversions, though the file has integers.

    Such files are slower than float32 ones; figures: docs/results/notes.md, "Kernels".
    """
    reasons = []
    if settings.activations == "int16":
        reasons.append("ONNX Runtime has no convolution for int16 activations on CPUs: use activations int8 or uint8")
    if settings.weights == "int4" and settings.precision in ("int8", "dynamic-int8"):
        reasons.append(
            "ONNX Runtime has no convolution for int4 weights on CPUs: use weights int8, or the precision weight-only, "
            "which makes the file small and computes in float32"
        )
    if settings.weights == "int7" and settings.precision != "int8":
        reasons.append(f"Weights of 7 bits are for static int8; a {settings.precision} file gains nothing by them")
    return reasons


def recipes() -> tuple[ExportSettings, ...]:
    """The exports worth trying, static int8 first. On processors without a dot product (x86 without VNNI), ONNX
    Runtime's uint8 x int8 kernels add two products in 16 bits: there the weights have 7 bits, whose products fit."""
    narrow: Weights = "int7" if saturates() else "int8"
    return (
        ExportSettings(NAME, "int8", activations="uint8", weights=narrow),
        ExportSettings(NAME, "int8"),
        ExportSettings(NAME, "float16"),
        ExportSettings(NAME, "dynamic-int8"),
    )


def prelude(model: Model) -> tuple[PassSettings, ...]:
    """The passes before a static int8 file: none."""
    return ()


def tensors_behind(path: Path, contents: Contents) -> dict[str, str]:
    """The tensor behind each layer, after its scale, bias and activation, which are nodes of their own."""
    return layer_outputs.tensors_behind(path, [op for op in contents.ops if op.weight_dtype and op.macs and op.layer])


def export(model: Model, plan: Plan, calibration: Samples | None, path: Path, *, work: Path) -> Artifact:
    """Write the .onnx file of `plan.export` to `path`; `<work>/<model.key>.onnx` is the float32 file behind it."""
    if reasons := why_not(plan, model.signature):
        raise UserError(reasons[0])
    settings = plan.export
    with whole_or_not(path) as partial, temporary_folder() as folder:
        float_file, notes = write(model, settings, calibration, partial, work=work, corrected=plan.corrected_on)
        contents = onnx_read.contents(partial)
        notes = read_back(contents, settings) + notes
        if settings.precision == "int8":
            notes += float_operators(contents, settings)
            notes += _fusion_notes(partial, folder, settings) + _saturation_notes(partial, settings)
        notes += not_smaller(partial, float_file, settings)
    return artifact_of(path, plan, NAME, notes)


def write(
    model: Model,
    settings: ExportSettings,
    calibration: Samples | None,
    path: Path,
    *,
    work: Path,
    corrected: int = 0,
) -> tuple[Path, list[str]]:
    """Write the .onnx file of these settings to `path`, which other runtimes read, too: (the float32 file behind it,
    sentences on what became of the network on the way).

    corrected  how many calibration samples its biases are corrected by (common/correct_biases.py)
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, EXTRA)
    notes: list[str] = []
    found: Ranges = {}
    if settings.precision == "int8":
        if calibration is None:
            raise UserError("Static int8 needs calibration samples to set its ranges, and none were given")
        if settings.ranges != "batch-norm":  # ranges from batch norms need no samples
            notes += check_samples(calibration, model.signature, settings)
        if settings.ranges != "batch-norm" and len(calibration) < settings.calibration:
            notes.append(f"Calibrated on {len(calibration)} samples, as there are no {settings.calibration}")
    float_file, became = _float_file(model, work)
    source = float_file
    notes += became
    if calibration is not None and settings.precision == "int8":
        source = _prepared_file(source)
        found = _ranges(model, source, calibration, settings, work)
    if settings == ExportSettings(NAME) or settings == ExportSettings(NAME, layout="NCHW"):
        shutil.copyfile(source, path)
        return float_file, notes
    payload = {
        "source": str(source),
        "path": str(path),
        "plan": Plan((), settings).to_json(),
        "about": onnx_read.metadata(onnx_read.read_model(float_file)),
        "ranges": found,
    }
    if calibration is None or settings.precision != "int8" or not corrected:
        return float_file, notes + _call(f"{QUANTIZE}:make", payload)
    with temporary_folder(work) as folder:
        samples = Path(folder, "samples.npz")
        given = onnx_read.contents(source).inputs
        np.savez(samples, allow_pickle=False, **fitting(calibration, slice(0, corrected), given))
        payload["samples"] = str(samples)
        return float_file, notes + _call(f"{QUANTIZE}:make", payload)


def _float_file(model: Model, work: Path) -> tuple[Path, list[str]]:
    """(`<work>/<model.key>.onnx`, converted once; sentences on how the network was changed)."""
    path = work / f"{model.key}.onnx"
    if not path.exists():
        child_process.prepare(SERVER, CHILD_ENVIRONMENT)  # it loads while we trace
        payload: dict[str, Any] = {
            "traced": str(traced(model, work)),
            "inputs": [spec.to_json() for spec in model.signature.inputs],
            "outputs": [spec.to_json() for spec in model.signature.outputs],
        }
        with whole_or_not(path) as partial:
            payload["path"] = str(partial)
            notes = child_process.call(f"{CONVERT}:to_onnx", payload, environment=CHILD_ENVIRONMENT, server=SERVER)
            keep_notes(path, [*notes_of(Path(payload["traced"])), *notes])
    return path, kept_notes(path)


def _prepared_file(source: Path) -> Path:
    """`<work>/<model.key>.prepared.onnx`, made once: the float32 file as ONNX Runtime's quantizer wants it."""
    path = source.with_suffix(f".prepared{EXTENSION}")
    if not path.exists():
        with whole_or_not(path) as partial:
            _call(f"{CALIBRATE}:prepare", {"source": str(source), "path": str(partial)})
    return path


def _ranges(model: Model, source: Path, samples: Samples, settings: ExportSettings, work: Path) -> Ranges:
    about = onnx_read.contents(source)
    given = about.inputs
    return activation_ranges(
        source,
        given,
        samples,
        settings,
        gather=f"{CALIBRATE}:gather",
        ends=[tensor.name for tensor in (*about.inputs, *about.outputs)],
        work=work,
        learned=ranges_for(
            model,
            settings,
            source,
            given,
            samples,
            fingerprints=f"{CALIBRATE}:fingerprints",
            environment=CHILD_ENVIRONMENT,
            server=SERVER,
        ),
        environment=CHILD_ENVIRONMENT,
        server=SERVER,
    )


def _call(target: str, payload: Mapping[str, Any]) -> Any:
    """Run a short job in a child: a fork of the converter's server if that runs already, else a fresh process."""
    return child_process.call(target, payload, environment=CHILD_ENVIRONMENT, server=SERVER, start_server=False)


def _saturation_notes(path: Path, settings: ExportSettings) -> list[str]:
    """A sentence where 8-bit weights of a U8S8 file can overflow on some machine; the file is shipped to others."""
    if settings.activations != "uint8":
        return []
    pairs = onnx_read.saturating_pairs(path)
    some, of = sum(layer.saturating for layer in pairs), sum(layer.pairs for layer in pairs)
    if not some:
        return []
    return [
        f"{some:,} of {of:,} pairs of weights ({some / of:.1%}) can overflow 16 bits on x86 processors without VNNI, "
        f'which then give wrong outputs ({_own_vnni()}): weights of 7 bits ("weights": "int7" in the plan\'s export, '
        "then pocketfit apply) or activations of int8 avoid that"
    ]


def _own_vnni() -> str:
    """Whether this processor has VNNI, in words."""
    if platform.machine().lower() not in X86:
        return "this one is no x86"
    text = cpuinfo()
    if not u8s8_saturates(platform.machine(), isa(text)):
        return "this one has VNNI"
    return "this one has none" if text else "this one does not tell"


def read_back(contents: Contents, settings: ExportSettings) -> list[str]:
    """Compare the weights' dtypes with the settings; -> notes. Raises ExportFailed where none is right."""
    layers = [op for op in contents.ops if op.type in WEIGHTED and op.weight_dtype]
    expected = {
        "float32": ("float32",),
        "float16": ("float16",),
        "int8": ("int8",),
        "dynamic-int8": ("int8", "uint8"),
        "weight-only": ("int4", "int8") if settings.weights == "int4" else ("int8",),
    }[settings.precision]
    kept = [op for op in layers if op.layer in settings.keep_float]
    if wrong := [op for op in kept if op.weight_dtype != "float32"]:
        raise ExportFailed(f"The layer '{wrong[0].layer}' was to stay in float32 and is {wrong[0].weight_dtype}")
    other = [op for op in layers if op not in kept and op.weight_dtype not in expected]
    if layers and len(other) == len(layers) - len(kept) > 0:
        raise ExportFailed(f"No weight of the file is {expected[0]}: all are {other[0].weight_dtype}")
    return [f"{_count(other, 'layer')} stayed in {other[0].weight_dtype}: {_listed(other)}"] if other else []


def float_operators(contents: Contents, settings: ExportSettings) -> list[str]:
    """Sentences on the operators of a static int8 file that compute in float32 though nobody asked for that."""
    left = [op for op in contents.ops if op.compute_dtype == "float32" and op.type not in UNCOUNTED]
    left = [op for op in left if op.layer not in settings.keep_float or not op.layer]
    weighted = [op for op in left if op.type in WEIGHTED and op.weight_dtype not in ("", "float32")]
    notes = []
    if weighted:
        notes.append(
            f"ONNX Runtime has no integer kernel for {_kinds(weighted)}: with integer weights, these layers compute in "
            f"float32: {_listed(weighted)}"
        )
    if others := [op for op in left if op.type not in WEIGHTED and op.type not in ("Mul", "Add", "Sub", "Div")]:
        notes.append(f"Operators between the layers that stay in float32: {_kinds(others)}")
    return notes


def _kinds(ops: list[OpInfo]) -> str:
    """ "2 LayerNormalization, 1 Softmax"."""
    return ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(op.type for op in ops).items()))


def _fusion_notes(path: Path, folder: str, settings: ExportSettings) -> list[str]:
    """A sentence where ONNX Runtime, on this machine, leaves convolutions in float that were quantized."""
    found = _call(f"{CONVERT}:unfused_convolutions", {"path": str(path), "folder": folder})
    contents, kernels = onnx_read.contents(path), onnx_read.op_of_kernel(path)
    ops = [contents.ops[kernels[name]] for name in found["float"] if name in kernels]
    left = [op for op in ops if op.layer not in settings.keep_float]
    integer = found["integer"]
    asked = integer + len(found["float"]) - (len(ops) - len(left))
    if missing := set(settings.keep_float) & {op.layer for op in contents.ops if op.type == "Conv"}:
        missing -= {op.layer for op in ops}
    if missing:
        raise ExportFailed(f"ONNX Runtime quantizes the layer '{sorted(missing)[0]}', which was to stay in float32")
    if integer == asked:
        return []
    return [
        f"On this machine ONNX Runtime fused {integer} of {asked} quantized convolutions into integer kernels; "
        f"the others compute in float32: {_listed(left)}"
    ]


def _count(items: list[OpInfo], word: str) -> str:
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"


def _listed(ops: list[OpInfo]) -> str:
    return some(list(dict.fromkeys(op.layer or op.name for op in ops)), 5)


def inspect(path: Path) -> Contents:
    """The contents of a file; see onnx_read.contents."""
    return onnx_read.contents(path)
