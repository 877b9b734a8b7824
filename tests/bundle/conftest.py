"""Bundles of tiny networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pocketfit.bundle import write_bundle
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.runtimes.common.output_file import artifact_of
from tests.bundle.tiny_networks import MEASURED, RGB, model_for, samples_for, write_onnx, write_tflite


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Make a file and its bundle: make("onnxruntime", RGB, "uint8") -> <tmp_path>/bundle."""

    def made(runtime: str, preprocess: Preprocess = RGB, io: str = "float32", **options: Any) -> Path:
        folder = options.pop("folder", tmp_path / "bundle")
        result = options.pop("result", None)
        model = options.pop("model", model_for(preprocess))
        golden = options.pop("golden", samples_for(preprocess))
        path = tmp_path / ("tiny.onnx" if runtime == "onnxruntime" else "tiny.tflite")
        (write_onnx if runtime == "onnxruntime" else write_tflite)(path, preprocess, io, **options)
        settings = ExportSettings(runtime, "float32" if io == "float32" else "int8", io=io)  # type: ignore[arg-type]
        artifact = artifact_of(path, Plan((), settings), runtime)
        return write_bundle(folder, artifact, model, golden=golden, measurements=MEASURED, result=result)

    return made
