"""LiteRT in an app: this file stands beside run.py in a bundle, and needs nothing of pocketfit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def opened(path: Path, threads: int) -> Callable[[Any], Any]:
    """A .tflite file with LiteRT's default kernels (XNNPACK where it can): an input as it takes it -> its output."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]

    def run(given: Any) -> Any:
        interpreter.set_tensor(source, given)
        interpreter.invoke()
        return interpreter.get_tensor(target)

    return run
