"""The .ort form of an .onnx file, for ONNX Runtime's builds for phones, and what such a build has to contain.

ONNX Runtime's own tool writes both, with the graph optimized for any processor (no NCHWc layout, which is x86's) and
int8 kept (target "arm").
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pocketfit.core.errors import ExportFailed, UserError
from pocketfit.core.signature import TensorSpec
from pocketfit.core.support.loading import require
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.processes import child_process
from pocketfit.runtimes.onnxruntime.session import EXTRA, load

MAKE = "pocketfit.runtimes.onnxruntime.mobile:make"
CONFIG = "required_operators_and_types.config"
# Of the largest output: both files compute the same operators, whose sums other fusions round in another order; an int8
# file can round a tie to the next integer.
TOLERANCE, STEPS = 1e-4, 0.02
SAMPLES = 4


def write(path: Path, folder: Path) -> dict[str, Any]:
    """Write `<name>.ort` and `<name>.required_operators_and_types.config`; -> the two paths, the lines of the list, and
    how far the answers of the .ort file in ONNX Runtime are from those of the .onnx file, on random inputs.

    Raises UserError where the folder has such files, ExportFailed where the .ort file answers otherwise.
    """
    for package in ("onnx", "onnxruntime"):
        require(package, EXTRA)
    targets = [folder / f"{path.stem}.ort", folder / f"{path.stem}.{CONFIG}"]
    if there := [target for target in targets if target.exists()]:
        raise UserError(f"'{there[0]}' is there already: name another folder, or remove it")
    with temporary_folder() as work:
        made = [Path(name) for name in child_process.call(MAKE, {"path": str(path.resolve()), "folder": str(work)})]
        apart = difference(path, made[0])
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in zip(made, targets, strict=True):
            shutil.move(source, target)
    required = targets[1].read_text(encoding="utf-8")
    return {
        "ort": str(targets[0]),
        "ort_bytes": targets[0].stat().st_size,
        "onnx_bytes": path.stat().st_size,
        "config": str(targets[1]),
        "required": [line for line in required.splitlines() if line and not line.startswith("#")],
        "largest_difference": apart,
    }


def make(path: str, folder: str) -> list[str]:
    """In a child process: run ONNX Runtime's converter; -> the two files that it wrote."""
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    source = Path(folder, f"network{Path(path).suffix}")
    shutil.copyfile(path, source)
    convert_onnx_models_to_ort(
        source,
        optimization_styles=[OptimizationStyle.Fixed],
        target_platform="arm",
        enable_type_reduction=True,
    )
    return [str(Path(folder, "network.ort")), str(Path(folder, f"network.{CONFIG}"))]


def difference(onnx: Path, ort: Path) -> float:
    """The largest difference of two files' outputs on SAMPLES random inputs, one by one, as a share of the largest
    output. Raises ExportFailed where it is beyond the tolerance."""
    sessions = [load(file) for file in (onnx, ort)]
    quantized = b"DequantizeLinear" in onnx.read_bytes()
    rng, worst = np.random.default_rng(0), 0.0
    for _ in range(SAMPLES):
        given = {spec.name: _values(spec, rng) for spec in sessions[0].signature.inputs}
        theirs, ours = (session.run(given) for session in sessions)
        for name, expected in theirs.items():
            wide = np.asarray(expected, np.float64)
            scale = max(float(np.abs(wide).max(initial=0.0)), 1e-12)
            worst = max(worst, float(np.abs(wide - np.asarray(ours[name], np.float64)).max(initial=0.0)) / scale)
    for session in sessions:
        session.close()
    if not worst <= (STEPS if quantized else TOLERANCE):
        raise ExportFailed(f"The .ort file of '{onnx}' answers otherwise: outputs differ by {worst:.2g} of the largest")
    return worst


def _values(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Random values for one input; axes that are open have one entry."""
    shape = [size or 1 for size in spec.shape]
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype) if dtype.itemsize > 1 else rng.integers(0, 100, shape).astype(dtype)
