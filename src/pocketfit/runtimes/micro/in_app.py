"""TensorFlow Lite Micro on a computer: this file stands beside run.py in a bundle, and needs nothing of pocketfit. It
answers as a microcontroller does; network.h and network.cc are what goes there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def opened(path: Path, threads: int) -> Callable[[Any], Any]:
    """A .tflite file: an input as it takes it -> its output. There is one thread, whatever is asked."""
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_file(str(path), arena_size=64 * 2**20)

    def run(given: Any) -> Any:
        interpreter.set_input(given, 0)
        interpreter.invoke()
        return interpreter.get_output(0).copy()

    return run
