"""A .tflite file loaded in TensorFlow Lite for Microcontrollers, as its Python package builds it for this machine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import CannotRunHere, UserError
from pocketfit.core.runtime import Arrays
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.core.support.loading import require
from pocketfit.formats import tflite_read
from pocketfit.runtimes.common.session_inputs import check_inputs, grid_of, row_by_row

EXTRA = "micro"
PACKAGE = "tflite_micro.python.tflite_micro.runtime"
SPARE_BYTES = 2**20  # for the interpreter's own tables, above all tensors at once


class MicroSession:
    """A loaded file, which takes one sample at a time."""

    def __init__(self, interpreter: Any, path: Path) -> None:
        contents = tflite_read.inspect(path)
        self._interpreter: Any = interpreter
        self._path = path
        specs = [
            tuple(TensorSpec(t.name, (None, *t.shape[1:]), t.dtype, t.layout) for t in side)
            for side in (contents.inputs, contents.outputs)
        ]
        self.signature = Signature(*specs)
        self.input_quantization = grid_of(contents.inputs[0])
        self.output_quantization = grid_of(contents.outputs[0])

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Arrays of n rows by name -> outputs of n rows by name; the rows are run one after the other."""
        if self._interpreter is None:
            raise UserError(f"The session of '{self._path}' is closed")
        if not (count := check_inputs(self.signature, inputs)):
            raise UserError(f"'{self._path}' needs at least one row")
        return row_by_row(self._one, inputs, count)

    def _one(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        for place, spec in enumerate(self.signature.inputs):
            self._interpreter.set_input(np.ascontiguousarray(inputs[spec.name]), place)
        self._interpreter.invoke()
        outputs = enumerate(self.signature.outputs)
        return {spec.name: np.array(self._interpreter.get_output(place)) for place, spec in outputs}

    def close(self) -> None:
        self._interpreter = None


def load(path: Path, *, threads: int = 1) -> MicroSession:
    """Load a file; a microcontroller has one thread, whatever is asked. Raises UserError for a missing or damaged file,
    CannotRunHere for one with an operator that the runtime lacks."""
    path = Path(path)
    require("ai_edge_litert", "litert")
    file = tflite_read.read(path)
    return MicroSession(interpreter_of(file), path)


def interpreter_of(file: tflite_read.TfliteFile) -> Any:
    """Its interpreter, with an arena that holds all tensors at once."""
    runtime = require(PACKAGE, EXTRA)
    try:
        return runtime.Interpreter.from_bytes(file.data, arena_size=ample_bytes(file))
    except (RuntimeError, ValueError) as error:
        raise CannotRunHere(f"TensorFlow Lite Micro cannot run '{file.path}': {_cause(file, error)}") from error


def ample_bytes(file: tflite_read.TfliteFile) -> int:
    """More than any arena for this file takes: every computed tensor beside every other, in 4 bytes an element."""
    computed = [i for i in range(len(file.graph.tensors)) if i not in file.stored]
    return SPARE_BYTES + 2 * len(file.data) + sum(8 * math.prod(max(1, n) for n in file.shape(i)) for i in computed)


def _cause(file: tflite_read.TfliteFile, error: Exception) -> str:
    kinds = ", ".join(sorted({file.op_type(op) for op in file.graph.operators}))
    return f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; its operators are {kinds}"
