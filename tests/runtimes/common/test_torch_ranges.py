"""Ranges that training has learned, found again in the files of both runtimes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pocketfit import runtimes
from pocketfit.core.learned import Learned
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.passes.quantize.simulate.simulation import simulate
from tests.runtimes.tiny_network import pictures, tiny_model


def scales_of(path: Path, runtime: str) -> list[float]:
    """Of all tensors that are quantized as a whole."""
    if runtime == "onnxruntime":
        import onnx
        from onnx import numpy_helper

        arrays = [numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
        return [float(one) for one in arrays if one.dtype == np.float32 and one.size == 1]
    from ai_edge_litert.interpreter import Interpreter

    details = Interpreter(model_path=str(path)).get_tensor_details()
    scales = [one["quantization_parameters"]["scales"] for one in details]
    return [float(one[0]) for one in scales if len(one) == 1]


@pytest.mark.parametrize(("runtime", "activations"), [("onnxruntime", "uint8"), ("litert", "int8")])
def test_a_learned_range_is_the_one_in_the_file(runtime: str, activations: str, tmp_path: Path) -> None:
    model = tiny_model()
    settings = ExportSettings(runtime, "int8", activations=activations)  # type: ignore[arg-type]
    assert settings.grid is not None
    (point,) = [p for p in simulate(model, settings.grid).points.values() if p.layer == "depthwise.0"]
    array = pictures(16)
    samples = Samples(
        array=array,
        labels=np.full(16, -1),
        names=[""] * 16,
        split="calibration",
        sha256="noise",
        preprocess=Preprocess(height=32, width=32),
    )
    wanted = 1.2345 / 255
    found = []
    for learned in (Learned(), Learned(ranges={point.name: (0.0, 1.2345)})):
        path = tmp_path / f"{len(learned.ranges)}{runtimes.get(runtime).EXTENSION}"
        runtimes.get(runtime).export(replace(model, learned=learned), Plan((), settings), samples, path, work=tmp_path)
        found.append([scale for scale in scales_of(path, runtime) if abs(scale / wanted - 1) < 1e-4])
    assert not found[0] and found[1], "behind relu6, where torch's tensor and the file's are one"
