"""ONNX Runtime in an app: this file stands beside run.py in a bundle, and needs nothing of pocketfit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def opened(path: Path, threads: int) -> Callable[..., Any]:
    """An .onnx file on the CPU: its inputs as it takes them, in its order -> its first output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A pattern is a block for all inner tensors, one a shape of the input, beside what the first run has allocated.
    options.enable_mem_pattern = False
    options.log_severity_level = 3  # its warnings are about the file's making, not about this run
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    sources, target = [value.name for value in session.get_inputs()], session.get_outputs()[0].name
    return lambda *given: session.run([target], dict(zip(sources, given, strict=True)))[0]
