"""LiteRT in an app: this file stands beside run.py in a bundle, and needs nothing of pocketfit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def opened(path: Path, threads: int) -> Callable[..., Any]:
    """A .tflite file with LiteRT's default kernels (XNNPACK where it can): its inputs, in its order -> its output."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    sources = [detail["index"] for detail in interpreter.get_input_details()]
    target = interpreter.get_output_details()[0]["index"]

    def run(*given: Any) -> Any:
        for source, array in zip(sources, given, strict=True):
            interpreter.set_tensor(source, array)
        interpreter.invoke()
        return interpreter.get_tensor(target)

    return run
