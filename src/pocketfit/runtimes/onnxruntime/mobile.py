"""The .ort form of an .onnx file, for ONNX Runtime's builds for phones, and what such a build has to contain.

ONNX Runtime's own tool writes both, with the graph optimized for ARM: without the NCHWc layout, which is x86's, and
with int8 activations kept, which ONNX Runtime turns into uint8 on x86. To compare, the .onnx file is loaded in the same
way.
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
from pocketfit.runtimes.onnxruntime.session import EXTRA, PROVIDER, load

MAKE = "pocketfit.runtimes.onnxruntime.mobile:make"
CONFIG = "required_operators_and_types.config"
# Of the largest output: the same operators on the same processor, whose sums other fusions round in another order.
TOLERANCE = 1e-4
SAMPLES = 4


def write(path: Path, folder: Path) -> dict[str, Any]:
    """Write `<name>.ort` and `<name>.required_operators_and_types.config`; -> the two paths, the lines of the list, and
    how far the answers of the .ort file in ONNX Runtime are from those of the .onnx file, on random inputs: loaded for
    ARM, as the .ort file is, and as ONNX Runtime loads it here.

    Raises UserError where the folder has such files, ExportFailed where the .ort file answers otherwise.
    """
    for package in ("onnx", "onnxruntime"):
        require(package, EXTRA)
    targets = [folder / f"{path.stem}.ort", folder / f"{path.stem}.{CONFIG}"]
    if there := [target for target in targets if target.exists()]:
        raise UserError(f"'{there[0]}' is there already: name another folder, or remove it")
    with temporary_folder() as work:
        made = [Path(name) for name in child_process.call(MAKE, {"path": str(path.resolve()), "folder": str(work)})]
        apart, from_here = difference(path, made[0], for_arm=True), difference(path, made[0], for_arm=False)
        if not apart <= TOLERANCE:
            raise ExportFailed(
                f"The .ort file of '{path}' answers otherwise: outputs differ by {apart:.2g} of the largest"
            )
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
        "largest_difference_here": from_here,
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


def difference(onnx: Path, ort: Path, *, for_arm: bool) -> float:
    """The largest difference of two files' outputs on SAMPLES random inputs, one by one, as a share of the largest
    output; for_arm: with the .onnx file optimized as the .ort file is."""
    onnxruntime = require("onnxruntime", EXTRA)
    session = load(onnx)
    session.close()
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if for_arm:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    reference, ours = (
        onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER], disabled_optimizers=left_out)
        for path, left_out in ((onnx, ["NchwcTransformer"] if for_arm else None), (ort, None))
    )
    rng, worst = np.random.default_rng(0), 0.0
    for _ in range(SAMPLES):
        given = {spec.name: _values(spec, rng) for spec in session.signature.inputs}
        for expected, found in zip(reference.run(None, given), ours.run(None, given), strict=True):
            wide = np.asarray(expected, np.float64)
            scale = max(float(np.abs(wide).max(initial=0.0)), 1e-12)
            worst = max(worst, float(np.abs(wide - np.asarray(found, np.float64)).max(initial=0.0)) / scale)
    return worst


def _values(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Random values for one input; axes that are open have one entry."""
    shape = [size or 1 for size in spec.shape]
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype) if dtype.itemsize > 1 else rng.integers(0, 100, shape).astype(dtype)
