"""LiteRT (.tflite): converted by litert-torch, quantized by ai-edge-quantizer, run by its Interpreter with XNNPACK."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.artifact import Artifact, Contents, OpCost, OpInfo
from pocketfit.core.errors import ExportFailed, PocketfitError, UserError
from pocketfit.core.model import Model
from pocketfit.core.plan import ExportSettings, Plan
from pocketfit.core.runtime import Arrays, RuntimeInfo
from pocketfit.core.samples import Samples
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.runtimes import child, litert_file, require
from pocketfit.runtimes.artifact import artifact_of, whole_or_not
from pocketfit.runtimes.litert_session import LiteRTSession

NAME = "litert"
EXTRA = "litert"
EXTENSION = ".tflite"
ACCEPTS = ("torch",)
HOW = "measured"

FLOAT = ("float32", "float16")
CHILD_ENVIRONMENT = {  # the same file each time: no order of sets by hash, one thread
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


def why_not(plan: Plan, signature: Signature) -> list[str]:
    """What LiteRT's exporter and quantizer cannot do of this plan."""
    settings, reasons = plan.export, []
    if settings.activations != "int8":
        reasons.append(f"LiteRT's kernels take int8 activations, not {settings.activations}: use activations int8")
    if settings.precision == "float32" and settings.keep_float:
        reasons.append("A float32 file keeps every layer in float32: keep_float is for quantized files")
    if dtypes := sorted({t.dtype for t in signature.inputs} - {"float32"}):
        reasons.append(f"The export to LiteRT takes networks with float32 inputs, this one has {', '.join(dtypes)}")
    if settings.precision == "int8" and settings.calibration < 1:
        reasons.append("Static int8 needs at least one calibration sample to set the ranges of the activations")
    return reasons


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
    base = _float_file(model, settings.layout or "NHWC", work)
    kept = _kept_operators(litert_file.inspect(base), settings.keep_float)
    with whole_or_not(path) as partial:
        if settings.precision == "float32":
            shutil.copyfile(base, partial)
            notes: list[str] = []
        else:
            ranges = None
            if calibration and settings.precision == "int8":
                ranges = _ranges_file(base, settings, calibration, work)
            _quantize(base, partial, settings, kept, ranges)
            notes = _verify(litert_file.inspect(partial), settings)
    return artifact_of(path, plan, NAME, notes)


def inspect(path: Path) -> Contents:
    """What a .tflite file states; see `litert_file.inspect`."""
    require("ai_edge_litert", EXTRA)
    return litert_file.inspect(Path(path))


def load(path: Path, *, threads: int = 1) -> LiteRTSession:
    """A session on `threads` threads with LiteRT's default delegate, XNNPACK."""
    require("ai_edge_litert", EXTRA)
    return LiteRTSession(Path(path), threads)


def profile(path: Path, inputs: Arrays, *, threads: int = 1, runs: int = 30) -> list[OpCost]:
    """Median time of each operator of `inspect(path)`, in a child process; see `litert_profile`."""
    from pocketfit.runtimes import litert_profile

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


def _float_file(model: Model, layout: str, work: Path) -> Path:
    """`<work>/<model.key>-<layout>.tflite`, made if it is not there."""
    from pocketfit.runtimes.traced import traced

    base = work / f"{model.key}-{layout.lower()}{EXTENSION}"
    if not base.exists():
        source = traced(model, work)
        with whole_or_not(base) as partial:
            child.call(
                "pocketfit.runtimes.litert_convert:convert",
                {
                    "source": str(source),
                    "target": str(partial),
                    "inputs": [t.to_json() for t in model.signature.inputs],
                    "outputs": [t.to_json() for t in model.signature.outputs],
                    "layout": layout,
                },
                environment=CHILD_ENVIRONMENT,
            )
    return base


def _quantize(base: Path, target: Path, settings: ExportSettings, kept: list[str], ranges: Path | None) -> None:
    child.call(
        "pocketfit.runtimes.litert_convert:quantize",
        {
            "source": str(base),
            "target": str(target),
            "precision": settings.precision,
            "kept": kept,
            "io": settings.io,
            "ranges": str(ranges or ""),
        },
        environment=CHILD_ENVIRONMENT,
    )


def _ranges_file(base: Path, settings: ExportSettings, samples: Samples, work: Path) -> Path:
    """`<work>/<float file>-<hash of the samples>.ranges.json`: made once, for all static int8 files of a network."""
    inputs = litert_file.inspect(base).inputs
    if len(inputs) != 1:
        raise UserError(f"This network has {len(inputs)} inputs; calibration feeds networks with one")
    (given,) = inputs
    values = samples.inputs(slice(0, settings.calibration), layout=given.layout or "NCHW")
    values = _as_stated(values, samples, given.shape)
    digest = hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()[:16]
    ranges = work / f"{base.stem}-{digest}.ranges.json"
    if not ranges.exists():
        with tempfile.TemporaryDirectory(prefix=".calibration-", dir=work) as folder, whole_or_not(ranges) as partial:
            data = Path(folder, "samples.npz")
            np.savez(data, **{given.name: values})
            child.call(
                "pocketfit.runtimes.litert_convert:calibrate",
                {"source": str(base), "samples": str(data), "target": str(partial)},
                environment=CHILD_ENVIRONMENT,
            )
    return ranges


def _as_stated(values: NDArray[np.float32], samples: Samples, shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    """Ready tensors lie as the network takes them, [n, C, H, W]; the file may take channels last."""
    if values.shape[1:] == shape[1:]:
        return values
    if samples.array.dtype != np.uint8 and values.ndim == 4 and values.transpose(0, 2, 3, 1).shape[1:] == shape[1:]:
        return np.ascontiguousarray(values.transpose(0, 2, 3, 1))
    raise UserError(f"Calibration samples of shape {list(values.shape[1:])} do not fit the input {list(shape[1:])}")


def _kept_operators(contents: Contents, keep_float: tuple[str, ...]) -> list[str]:
    """The output tensors of the operators that a plan's keep_float names; UserError for a name that is no layer."""
    layers = {op.layer for op in contents.ops if op.layer}
    if unknown := [name for name in keep_float if name not in layers]:
        listed = ", ".join(f"'{name}'" for name in unknown)
        raise UserError(
            f"keep_float names {listed}, which no operator of the file comes from; its layers are: "
            + ", ".join(op.layer for op in contents.ops if op.layer)
        )
    return [op.name for op in contents.ops if op.layer in keep_float]


def _verify(contents: Contents, settings: ExportSettings) -> list[str]:
    """Compare what was asked for with what the file states: sentences on what stayed in float.

    Raises ExportFailed where a named layer is not in float, nothing is quantized, or inputs have another dtype.
    """
    weighted = [op for op in contents.ops if op.layer or op.type in litert_file.WEIGHTED]
    kept = [op for op in weighted if op.layer in settings.keep_float]
    missing = set(settings.keep_float) - {op.layer for op in kept}
    if wrong := [op.layer for op in kept if not _is_float32(op)] + sorted(missing):
        raise ExportFailed(
            f"These layers should have stayed in float32, but the file says otherwise: {', '.join(wrong)}"
        )
    others = [op for op in weighted if op.layer not in settings.keep_float]
    done = [op for op in others if _is_as_asked(op, settings.precision)]
    if not done:
        raise ExportFailed(f"Nothing in the file is {settings.precision}: the quantizer took no operator")
    for tensor in (*contents.inputs, *contents.outputs):
        if settings.precision == "int8" and tensor.dtype != settings.io:
            raise ExportFailed(f"'{tensor.name}' of the file is {tensor.dtype}, where the plan asks for {settings.io}")
    notes = []
    if left := [op for op in others if op not in done]:
        named = ", ".join(op.layer or f"operator {op.index}" for op in left)
        notes.append(f"The quantizer left {len(left)} layers as they were, not {settings.precision}: {named}")
    if settings.precision == "int8":
        floats = [op for op in contents.ops if op not in weighted and _runs_in_float(op)]
        if floats:
            counts = ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(op.type for op in floats).items()))
            notes.append(f"Operators that ai-edge-quantizer has no int8 form for stay in float32: {counts}")
    return notes


def _is_float32(op: OpInfo) -> bool:
    return op.weight_dtype == "float32" and op.compute_dtype == "float32"


def _is_as_asked(op: OpInfo, precision: str) -> bool:
    if precision == "float16":
        return op.weight_dtype == "float16"
    return op.weight_dtype == "int8" and op.compute_dtype == ("int8" if precision == "int8" else "float32")


def _runs_in_float(op: OpInfo) -> bool:
    return op.compute_dtype in FLOAT and op.type not in litert_file.CASTS


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
    samples = Samples(pixels, np.zeros(8, np.int64), [""] * 8, "calibration", "probe", preprocess)
    signature = Signature(
        (TensorSpec("image", (None, 3, 8, 8), "float32", "NCHW"),), (TensorSpec("scores", (None, 4)),)
    )
    model = Model(network, signature, preprocess, ("a", "b", "c", "d"), Origin("object", "probe"), sha256="probe")
    with torch.no_grad():
        expected = network(torch.from_numpy(samples.inputs(slice(None)))).numpy()
    worst = {}
    with tempfile.TemporaryDirectory(prefix="pocketfit-") as folder:
        for precision in ("float32", "int8"):
            plan = Plan((), ExportSettings(NAME, precision))  # type: ignore[arg-type]
            artifact = export(model, plan, samples, Path(folder, f"{precision}{EXTENSION}"), work=Path(folder))
            session = load(Path(artifact.path))
            got = answer(session, samples.inputs(slice(None), layout="NHWC"))
            session.close()
            worst[precision] = float(np.abs(got - expected).max()) / float(np.ptp(expected))
    detail = ", ".join(f"{name} within {error:.1e} of torch (share of the range)" for name, error in worst.items())
    return worst["float32"] < 1e-4 and worst["int8"] < 0.1, detail
