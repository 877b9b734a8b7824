"""OpenVINO in an app: this file stands beside run.py in a bundle, and needs nothing of pocketfit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def opened(path: Path, threads: int) -> Callable[[Any], Any]:
    """An .xml file, its .bin beside it, on the CPU: one input as the file takes it -> its first output."""
    import openvino

    # In float32 and integers, as it was measured: on processors with AMX, OpenVINO would choose bfloat16 by itself.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda given: request.infer([given])[0].copy()
