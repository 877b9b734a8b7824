"""LiteRT (.tflite): converted by litert-torch, quantized by ai-edge-quantizer, run by its Interpreter with XNNPACK."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from pocketfit.core.artifact import Artifact, Contents, OpCost
from pocketfit.core.errors import ExportFailed, PocketfitError, UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings, Precision
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.rewrite import Piecewise
from pocketfit.core.runtime import Arrays, RuntimeInfo
from pocketfit.core.samples import Samples
from pocketfit.core.signature import Signature, TensorSpec, ends_in_integers
from pocketfit.core.support.files import whole_or_not
from pocketfit.core.support.loading import require
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.formats import tflite_read, tflite_write
from pocketfit.processes import child_process
from pocketfit.runtimes.common import calibration as ranges
from pocketfit.runtimes.common import mixed_ends
from pocketfit.runtimes.common.output_file import artifact_of, keep_notes, kept_notes, not_smaller
from pocketfit.runtimes.common.torch_ranges import ranges_for
from pocketfit.runtimes.litert import blame, verify
from pocketfit.runtimes.litert.session import LiteRTSession

NAME = "litert"
EXTRA = "litert"
EXTENSION = ".tflite"
ACCEPTS = ("torch",)
HOW = "measured"
PACKAGES = ("ai-edge-litert", "ai-edge-quantizer", "litert-torch")
LIBRARY = "ai_edge_litert.interpreter"
APP_PACKAGE = "ai-edge-litert"
GATHER = "pocketfit.runtimes.litert.quantize:gather"
LAYER_OUTPUTS = "pocketfit.runtimes.litert.layer_outputs:opened"
LAYER_OUTPUTS_DIFFER = ", in LiteRT's builtin kernels (XNNPACK, which ships, keeps no inner tensors)"
ARENA = SOURCES = ""

SERVER = "pocketfit.runtimes.litert.convert:preload"
CHILD_ENVIRONMENT = {  # so that every run makes the same file: a fixed order of sets, one thread
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


def why_not(plan: Plan, signature: Signature) -> list[str]:
    """Reasons why LiteRT's exporter and quantizer cannot make the plan's file."""
    settings, reasons = plan.export, []
    if settings.activations not in ("int8", "int16"):
        reasons.append(f"LiteRT's kernels take int8 activations, not {settings.activations}: use activations int8")
    if settings.activations == "int16" and settings.precision != "int8":
        reasons.append(f"16-bit activations need static quantization (precision int8), not {settings.precision}")
    if settings.activations == "int16" and settings.io != "float32":
        reasons.append(f"A file with 16-bit activations takes float32 inputs, not {settings.io}: use io float32")
    if settings.symmetric:
        reasons.append(
            "Zero points of 0 for activations are for ONNX files that go on to TensorRT: leave out symmetric"
        )
    if settings.weights == "int7":
        reasons.append(
            "7-bit weights are for kernels whose 8-bit products overflow, and LiteRT's add them in 32 bits: use "
            "weights int8"
        )
    if settings.precision == "float32" and settings.keep_float:
        reasons.append("A float32 file keeps every layer in float32: keep_float is for quantized files")
    if dtypes := sorted({t.dtype for t in signature.inputs} - {"float32", "int32", "int64"}):
        reasons.append(
            f"The export to LiteRT takes inputs of float32, int32 or int64, this network has {', '.join(dtypes)}"
        )
    if settings.io != "float32" and (reason := ends_in_integers(signature)):
        reasons.append(reason)
    if plan.corrected_on:
        reasons.append("Biases of LiteRT files are not corrected by the file itself: use correct-bias from data")
    if settings.precision == "int8" and settings.calibration < 1:
        reasons.append("Static int8 needs at least one calibration sample to set the ranges of the activations")
    return reasons


def recipes() -> tuple[ExportSettings, ...]:
    """The exports worth trying, static int8 first."""
    precisions: tuple[Precision, ...] = ("int8", "float16", "dynamic-int8")
    return tuple(ExportSettings(NAME, precision) for precision in precisions)


def prelude(model: Model) -> tuple[PassSettings, ...]:
    """The passes before a static int8 file: hard-swish as a product, as LiteRT has no fast int8 kernel for it."""
    from pocketfit.passes.rewrite.hardswish import replaceable

    return (Piecewise(),) if replaceable(model.network, model.signature) else ()


def tensors_behind(path: Path, contents: Contents) -> dict[str, str]:
    """The output tensor of each layer's operator, which contains the activation."""
    return {op.layer: op.name for op in contents.ops if op.weight_dtype and op.macs and op.layer}


def export(model: Model, plan: Plan, calibration: Samples | None, path: Path, *, work: Path) -> Artifact:
    """Write the .tflite of `plan.export`; see core.runtime.Runtime. The float32 file of a network is made once, as
    `<work>/<model.key>-<layout>.tflite`, and every other precision is made from it."""
    path, work, settings = Path(path), Path(work), plan.export
    if reasons := why_not(plan, model.signature):
        raise UserError("; ".join(reasons))
    if settings.precision == "int8" and not calibration:
        raise UserError("Static int8 needs calibration samples to set the ranges of the activations")
    for package in ("ai_edge_litert", "ai_edge_quantizer", "litert_torch"):
        if importlib.util.find_spec(package) is None:
            require(package, EXTRA)
    base, notes = _float_file(model, settings.layout or "NHWC", work)
    verify.check_names(tflite_read.inspect(base), settings)
    with whole_or_not(path) as partial:
        if settings.precision == "float32":
            tflite_write.share_constants(base, partial)
        else:
            static = calibration if settings.precision == "int8" else None
            found = _ranges(model, base, settings, static, work) if static else {}
            notes += _quantize(base, partial, settings, found)
            file = tflite_read.read(partial)
            contents = tflite_read.contents(file)
            notes += [
                *verify.verify(contents, settings),
                *verify.conversions(file, settings),
                *verify.slow_kernels(contents, settings),
                *not_smaller(partial, base, settings),
            ]
    return artifact_of(path, plan, NAME, notes)


def inspect(path: Path) -> Contents:
    """The contents of a .tflite file; see `tflite_read.inspect`."""
    require("ai_edge_litert", EXTRA)
    return tflite_read.inspect(Path(path))


def load(path: Path, *, threads: int = 1) -> LiteRTSession:
    """A session on `threads` threads with LiteRT's default delegate, XNNPACK."""
    require("ai_edge_litert", EXTRA)
    return LiteRTSession(Path(path), threads)


def profile(path: Path, inputs: Arrays, *, threads: int = 1, runs: int = 30) -> list[OpCost]:
    """Median time of each operator of `inspect(path)`, in a child process; see profile.py."""
    from pocketfit.runtimes.litert import profile as litert_profile

    require("ai_edge_litert", EXTRA)
    return litert_profile.profile(Path(path), inputs, threads=threads, runs=runs)


def probe() -> RuntimeInfo:
    """Export a tiny network to float32 and static int8, run both and compare them with torch."""
    try:
        versions = {p: importlib.metadata.version(p) for p in ("ai-edge-litert", "ai-edge-quantizer", "litert-torch")}
    except importlib.metadata.PackageNotFoundError as error:
        detail = f"The package '{error.name}' is not installed; run: pip install 'pocketfit[{EXTRA}]'"
        return RuntimeInfo(NAME, False, "", detail)
    version = versions["ai-edge-litert"]
    try:
        ok, detail = _try_out()
    except PocketfitError as error:
        tail = getattr(error, "log_tail", "").splitlines()[-1:]
        return RuntimeInfo(NAME, False, version, " ".join([str(error), *tail]), environment=versions)
    return RuntimeInfo(NAME, ok, version, detail, ("XNNPACK",), versions)


def _float_file(model: Model, layout: str, work: Path) -> tuple[Path, list[str]]:
    """(`<work>/<model.key>-<layout>.tflite`, made if it is not there; sentences on how the network was changed)."""
    from pocketfit.runtimes.common.traced_network import notes_of, traced

    base = work / f"{model.key}-{layout.lower()}{EXTENSION}"
    if not base.exists():
        child_process.prepare(SERVER, CHILD_ENVIRONMENT)  # it loads while we trace
        payload: dict[str, Any] = {
            "source": str(traced(model, work)),
            "inputs": [t.to_json() for t in model.signature.inputs],
            "outputs": [t.to_json() for t in model.signature.outputs],
            "layout": layout,
        }
        with whole_or_not(base) as partial:
            keep_notes(base, [*notes_of(Path(payload["source"])), *_converted({**payload, "target": str(partial)})])
    return base, kept_notes(base)


def _converted(payload: dict[str, Any]) -> list[str]:
    """convert.convert in a child; where the converter fails or dies, ExportFailed with the layer's name."""
    where: dict[str, Any] = {"environment": CHILD_ENVIRONMENT, "server": SERVER}
    try:
        return list(child_process.call("pocketfit.runtimes.litert.convert:convert", payload, **where))
    except ExportFailed as error:
        if not blame.unexplained(error):
            raise
        raise blame.explained(error, Path(payload["source"]), payload["layout"], where) from error


def _ranges(model: Model, base: Path, settings: ExportSettings, samples: Samples, work: Path) -> ranges.Ranges:
    """The range of every tensor that the float file computes, by `settings.ranges`."""
    contents = tflite_read.inspect(base)
    return ranges.activation_ranges(
        base,
        contents.inputs,
        samples,
        settings,
        gather="pocketfit.runtimes.litert.quantize:gather",
        ends=[t.name for t in (*contents.inputs, *contents.outputs)],
        work=work,
        learned=ranges_for(
            model,
            settings,
            base,
            contents.inputs,
            samples,
            fingerprints="pocketfit.runtimes.litert.quantize:fingerprints",
            environment=CHILD_ENVIRONMENT,
            server=SERVER,
        ),
        environment=CHILD_ENVIRONMENT,
        server=SERVER,
    )


def _quantize(base: Path, target: Path, settings: ExportSettings, found: ranges.Ranges) -> list[str]:
    file, grid = tflite_read.read(base), settings.grid
    ops = tflite_read.contents(file).ops
    end = verify.mixed_end(file, found) if settings.precision == "int8" else mixed_ends.End()
    if end.operators and settings.io != "float32":
        raise UserError(end.why_no_integers(file.name(int(file.graph.outputs[0]))))
    last = [file.name(int(file.graph.operators[index].outputs[0])) for index in end.operators]
    made: list[str] = child_process.call(
        "pocketfit.runtimes.litert.quantize:quantize",
        {
            "source": str(base),
            "target": str(target),
            "precision": settings.precision,
            "activation_bits": grid.activation_bits if grid else None,
            "kept": [*verify.kept_operators(file, settings), *last],
            "narrow": [op.name for op in ops if op.type in verify.NARROW and verify.weight_bits(op, settings) == 4],
            "io": settings.io,
            "ranges": found,
        },
        environment=CHILD_ENVIRONMENT,
        server=SERVER,
        start_server=False,
    )
    return [*made, *([end.sentence] if end.operators else [])]


def _try_out() -> tuple[bool, str]:
    """(it works, a sentence): the probe's tiny network, in float32 and static int8, against torch."""
    import torch
    from torch import nn

    from pocketfit.core.model import Origin
    from pocketfit.core.preprocess import Preprocess
    from pocketfit.core.runtime import answer

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 4)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    preprocess = Preprocess(height=8, width=8, resize="none")
    samples = Samples(
        array=pixels,
        labels=np.zeros(8, np.int64),
        names=[""] * 8,
        split="calibration",
        sha256="probe",
        preprocess=preprocess,
    )
    signature = Signature(
        (TensorSpec("image", (None, 3, 8, 8), "float32", "NCHW"),), (TensorSpec("scores", (None, 4)),)
    )
    model = Model(
        network=network,
        signature=signature,
        preprocess=preprocess,
        labels=("a", "b", "c", "d"),
        origin=Origin("object", "probe"),
        sha256="probe",
    )
    with torch.no_grad():
        expected = network(torch.from_numpy(samples.inputs(slice(None)))).numpy()
    worst = {}
    with temporary_folder() as folder:
        for precision in ("float32", "int8"):
            plan = Plan((), ExportSettings(NAME, precision))
            artifact = export(model, plan, samples, Path(folder, f"{precision}{EXTENSION}"), work=Path(folder))
            session = load(Path(artifact.path))
            got = answer(session, samples.inputs(slice(None), layout="NHWC"))
            session.close()
            worst[precision] = float(np.abs(got - expected).max()) / float(np.ptp(expected))
    detail = ", ".join(f"{name} within {error:.1e} of torch (share of the range)" for name, error in worst.items())
    return worst["float32"] < 1e-4 and worst["int8"] < 0.1, detail
