"""NNCF and OpenVINO: make files, run them, time them. Run as a program, by any interpreter that has nncf and openvino:

    python -m benchmarks.quantization.compare.openvino_worker FUNCTION PAYLOAD.json RESULT.json

Nothing here imports pocketfit, so that NNCF can stand in an environment of its own. OpenVINO computes in float32
throughout (INFERENCE_PRECISION_HINT), on 1 thread, at batch 1.

calibration, inputs: .npy files, float32 [n, C, H, W].
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1"}
WARM_UP_RUNS = 5
Values = NDArray[np.float32]


def versions() -> dict[str, str]:
    """Versions of nncf and openvino; raises ImportError where one is not installed."""
    return {name: str(importlib.import_module(name).__version__) for name in ("nncf", "openvino")}


def convert(source: str, target: str) -> None:
    """The float32 .onnx file -> OpenVINO's .xml and .bin, weights in float32, batch 1."""
    import openvino

    model = openvino.convert_model(source)
    model.reshape(_batch_of_one(model))
    openvino.save_model(model, target, compress_to_fp16=False)


def quantize(
    source: str,
    target: str,
    calibration: str,
    *,
    preset: str = "performance",
    fast_bias_correction: bool = True,
    control: str = "",
    max_drop: float = 0.0,
) -> None:
    """`nncf.quantize` on an .xml (-> .xml) or .onnx (-> .onnx) file.

    preset    "performance" (its default: symmetric activations) or "mixed" (asymmetric)
    control   "" or the metric of `quantize_with_accuracy_control` on the calibration pictures against float32, whose
              drop may be at most max_drop: "agreement" (share of equal top classes), "noise" (1 - noise / signal)
    """
    import nncf

    onnx_file = source.endswith(".onnx")
    model, name = _read(source)
    values: Values = np.load(calibration, allow_pickle=False)
    rows = [values[i : i + 1] for i in range(len(values))]
    data = nncf.Dataset(rows, (lambda row: {name: row}) if onnx_file else None)
    settings: dict[str, Any] = {
        "preset": nncf.QuantizationPreset(preset),
        "fast_bias_correction": fast_bias_correction,
        "subset_size": len(rows),
    }
    if control:
        wanted = run_model(model, values)
        judged = nncf.Dataset([(row, wanted[i : i + 1]) for i, row in enumerate(rows)])
        model = nncf.quantize_with_accuracy_control(
            model, data, judged, METRICS[control], max_drop=max_drop, **settings
        )
    else:
        model = nncf.quantize(model, data, **settings)
    _write(model, target)


Judged = Iterable[tuple[Values, Values]]  # (input, float32's answer); NNCF may give a part of them


def _agreement(compiled: Any, judged: Judged) -> tuple[float, list[float]]:
    """Share of equal top classes, and 1 or 0 for every picture."""
    hits = [float(compiled(row)[0].argmax() == wanted.argmax()) for row, wanted in judged]
    return float(np.mean(hits)), hits


def _noise(compiled: Any, judged: Judged) -> tuple[float, list[float]]:
    """1 - noise / signal over all pictures, and of every picture."""
    pairs = [(float(np.sum((compiled(row)[0] - wanted) ** 2)), float(np.sum(wanted**2))) for row, wanted in judged]
    noise, signal = (sum(column) for column in zip(*pairs, strict=True))
    return 1 - noise / signal, [1 - one / of for one, of in pairs]


METRICS = {"agreement": _agreement, "noise": _noise}


def run(path: str, inputs: str, outputs: str) -> None:
    """First output of a file for every input, one at a time, as .npy float32 [n, ...]."""
    import openvino

    values: Values = np.load(inputs, mmap_mode="r", allow_pickle=False)
    np.save(outputs, run_model(openvino.Core().read_model(path), values))


def run_model(model: Any, values: Values) -> Values:
    compiled = _compiled(model)
    return np.concatenate([np.array(compiled(values[i : i + 1])[0]) for i in range(len(values))])


def times(paths: list[str], seed: int, seconds: float, min_rounds: int, max_rounds: int) -> list[list[list[float]]]:
    """One session: ms by file [rounds][1]; the files are loaded in this order and take turns in random order."""
    files = [_compiled(path) for path in paths]
    random = np.random.default_rng(seed)
    values = random.standard_normal(tuple(files[0].input(0).shape), np.float32)
    for file in files:
        for _ in range(WARM_UP_RUNS):
            file(values)
    taken: list[list[list[float]]] = [[] for _ in files]
    begin = time.monotonic()
    for done in range(max_rounds):
        if done >= min_rounds and time.monotonic() - begin > seconds:
            break
        for index in random.permutation(len(files)):
            files[index](values)  # untimed: the file before has taken the caches
            start = time.perf_counter_ns()
            files[index](values)
            taken[index].append([(time.perf_counter_ns() - start) / 1e6])
    return taken


def _compiled(model: Any) -> Any:
    import openvino

    return openvino.Core().compile_model(model, "CPU", SETTINGS)


def _batch_of_one(model: Any) -> Any:
    shape = model.inputs[0].partial_shape
    shape[0] = 1
    return shape


def _read(source: str) -> tuple[Any, str]:
    """(model, name of its input)."""
    if source.endswith(".onnx"):
        import onnx

        model = onnx.load(source)
        return model, model.graph.input[0].name
    import openvino

    network = openvino.Core().read_model(source)
    return network, network.inputs[0].any_name


def _write(model: Any, target: str) -> None:
    if target.endswith(".onnx"):
        import onnx

        onnx.save(model, target)
        return
    import openvino

    openvino.save_model(model, target, compress_to_fp16=False)


def main(function: str, payload: str, result: str) -> None:
    found = globals()[function](**json.loads(Path(payload).read_text()))
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
