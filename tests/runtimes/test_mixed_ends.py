"""A detector's int8 file keeps its probabilities beside its pixels, in the runtimes of phones; where a file
gives integers, it is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pocketfit import runtimes
from pocketfit.core.errors import UserError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.runtime import answer
from tests.tasks.examples import data_of, model_of


@pytest.mark.parametrize("name", ("litert", "onnxruntime"))
def test_probabilities_survive_beside_pixels(name: str, tmp_path: Path) -> None:
    runtime, model = runtimes.get(name), model_of("detection")
    samples = data_of("detection", tmp_path, labelled=False, count=150).split("train", model.preprocess, split_seed=0)
    static = next(export for export in runtime.recipes() if export.precision == "int8")
    outputs = {}
    for export in (ExportSettings(name), static):
        calibration = samples if export is static else None
        path = tmp_path / f"{export.precision}{runtime.EXTENSION}"
        artifact = runtime.export(model, Plan((), export), calibration, path, work=tmp_path)
        session = runtime.load(path, threads=1)
        outputs[export.precision] = answer(
            session, samples.inputs(slice(64), session.signature.inputs[0].layout or "NCHW")
        )
        session.close()
    assert any("join tensors whose ranges are far apart" in note for note in artifact.notes)
    wanted, found = (outputs[precision][:, 4:] for precision in ("float32", "int8"))
    spread = wanted - wanted.mean(axis=(0, 2), keepdims=True)
    noise_db = 10 * np.log10(np.square(spread).sum() / np.square(found - wanted).sum())
    assert noise_db > 25, "one scale for pixels and probabilities leaves 4 dB or less"
    whole = ExportSettings(name, "int8", activations=static.activations, io=static.activations, calibration=64)
    if not runtime.why_not(Plan((), whole), model.signature):
        with pytest.raises(UserError, match="joins tensors whose ranges are far apart"):
            runtime.export(model, Plan((), whole), samples, tmp_path / f"io{runtime.EXTENSION}", work=tmp_path)
