"""Zeros of a sparse network are zeros among the integers of both runtimes' files, whatever passes came between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pocketfit import runtimes
from pocketfit.core.learned import Learned
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Sparsify
from pocketfit.core.plan.quantize import CorrectBias, Equalize, QuantTrain, Round
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.passes.prune import sparsify
from pocketfit.passes.quantize import bias_correction, qat, rounding
from pocketfit.passes.quantize.equalize import equalize
from tests.runtimes.litert.test_quantize import stored
from tests.runtimes.tiny_network import pictures, tiny_model

SPARSITY = 0.6


def integers(path: Path, runtime: str) -> dict[str, NDArray[np.generic]]:
    """By layer: its weights as they are stored."""
    if runtime == "litert":
        return {layer: values for layer, (values, _) in stored(path).items()}
    import onnx
    from onnx import numpy_helper

    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    return {
        name.split(".weight")[0]: values
        for name, values in arrays.items()
        if values.dtype == np.int8
        if values.ndim > 1
    }


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "activations"), [("onnxruntime", "uint8"), ("litert", "int8")])
@pytest.mark.parametrize("rungs", [False, True])
def test_zeros_arrive_in_the_file(runtime: str, activations: str, rungs: bool, tmp_path: Path) -> None:
    array = pictures(16)
    samples = Samples(
        array=array,
        labels=np.full(16, -1),
        names=[""] * 16,
        split="calibration",
        sha256="noise",
        preprocess=Preprocess(height=32, width=32),
    )
    settings = ExportSettings(runtime, "int8", activations=activations)  # type: ignore[arg-type]
    assert settings.grid is not None
    model = sparsify.apply(tiny_model(), Sparsify(SPARSITY), None)
    assert model.learned.sparse == ("project.0", "head")
    if rungs:
        model = equalize.apply(model, Equalize(samples=16), samples)
        model = bias_correction.apply(model, CorrectBias(samples=16), samples, settings.grid)
        model = rounding.apply(model, Round(sweeps=3, samples=16), samples, settings.grid)
        model = qat.apply(model, QuantTrain(2, batch_size=4, split="calibration"), samples, settings.grid)
        model = replace(model, learned=Learned(sparse=model.learned.sparse))
    path = tmp_path / f"sparse{runtimes.get(runtime).EXTENSION}"
    runtimes.get(runtime).export(model, Plan((), settings), samples, path, work=tmp_path)
    found = integers(path, runtime)
    for layer in model.learned.sparse:
        count = found[layer].size
        assert (found[layer] == 0).sum() >= round(SPARSITY * count), layer
    assert (found["depthwise.0"] == 0).mean() < SPARSITY, "as it was"
