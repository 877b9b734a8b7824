"""A loaded .tflite: named arrays in, named arrays out, any number of rows."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import CannotRunHere, UserError
from pocketfit.core.runtime import Arrays
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.formats import tflite_read
from pocketfit.runtimes.common.session_inputs import grid_of


class LiteRTSession:
    """A loaded .tflite; see core.runtime.Session.

    Files are written for one sample, and the inputs are resized for a batch. Where the file has a fixed batch inside (a
    reshape to a constant shape), or notes that it is right for single rows only, the rows are run one after the other.
    """

    def __init__(self, path: Path, threads: int) -> None:
        if threads < 1:
            raise UserError(f"{threads} threads cannot run anything: give a whole number from 1")
        contents, notes = tflite_read.inspect(path), tflite_read.read(path).notes
        self._path, self._threads = path, threads
        self._row_by_row = notes.get("batch") == "1"
        self._interpreter: Any = None
        self._open()
        self._batch = self._opened_batch = self._shapes()[0][0]
        specs = [
            tuple(TensorSpec(t.name, (None, *t.shape[1:]), t.dtype, t.layout) for t in side)
            for side in (contents.inputs, contents.outputs)
        ]
        self.signature = Signature(*specs)
        self.input_quantization = grid_of(contents.inputs[0])
        self.output_quantization = grid_of(contents.outputs[0])

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Arrays of n rows by name, in the file's dtypes and layouts -> outputs of n rows by name."""
        if self._interpreter is None:
            raise CannotRunHere(f"The session of '{self._path}' is closed")
        arrays = [self._checked(spec, inputs) for spec in self.signature.inputs]
        rows = len(arrays[0])
        if any(len(a) != rows for a in arrays) or rows == 0:
            raise UserError(f"'{self._path}' needs the same number of rows, at least one, for each input")
        if not self._row_by_row and rows != self._batch and not self._resize(rows):
            self._row_by_row = True
        if self._row_by_row and self._opened_batch != 1:
            raise CannotRunHere(f"'{self._path}' takes {self._opened_batch} rows at once and no other number")
        if not self._row_by_row:
            return dict(zip(self._output_names, self._invoke(arrays), strict=True))
        parts = [self._invoke([a[i : i + 1] for a in arrays]) for i in range(rows)]
        return {name: np.concatenate(p) for name, p in zip(self._output_names, zip(*parts, strict=True), strict=True)}

    def close(self) -> None:
        self._interpreter = None

    @property
    def _output_names(self) -> list[str]:
        return [t.name for t in self.signature.outputs]

    def _open(self) -> None:
        from ai_edge_litert.interpreter import Interpreter

        try:
            with _without_chatter():
                self._interpreter = Interpreter(model_path=str(self._path), num_threads=self._threads)
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise CannotRunHere(f"LiteRT cannot run '{self._path}': {error}") from error

    def _shapes(self) -> list[list[int]]:
        return [d["shape"].tolist() for d in self._interpreter.get_input_details()]

    def _resize(self, rows: int) -> bool:
        """Resize the interpreter's inputs to this many rows; False, with the interpreter as it was, if it cannot."""
        before = [d["shape"].tolist() for d in self._interpreter.get_output_details()]
        try:
            with _without_chatter():
                for detail, shape in zip(self._interpreter.get_input_details(), self._shapes(), strict=True):
                    self._interpreter.resize_tensor_input(detail["index"], [rows, *shape[1:]])
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError):
            self._open()
            return False
        after = [d["shape"].tolist() for d in self._interpreter.get_output_details()]
        if after != [[rows, *shape[1:]] for shape in before]:
            self._open()
            return False
        self._batch = rows
        return True

    def _invoke(self, arrays: list[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        for detail, array in zip(self._interpreter.get_input_details(), arrays, strict=True):
            self._interpreter.set_tensor(detail["index"], array)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(detail["index"]) for detail in self._interpreter.get_output_details()]

    def _checked(self, spec: TensorSpec, inputs: Arrays) -> NDArray[np.generic]:
        if spec.name not in inputs:
            raise UserError(f"'{self._path}' has an input '{spec.name}', which was not given")
        array = np.asarray(inputs[spec.name])
        if array.dtype != spec.dtype:
            raise UserError(f"The input '{spec.name}' of '{self._path}' is {spec.dtype}, not {array.dtype}")
        if array.ndim != len(spec.shape) or array.shape[1:] != spec.shape[1:]:
            raise UserError(
                f"The input '{spec.name}' of '{self._path}' has shape {_shown(spec.shape)}, not {_shown(array.shape)}"
            )
        return array


def _shown(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("n" if size is None else str(size) for size in shape) + "]"


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Drop LiteRT's C++ "INFO:" lines; everything else that it writes to stderr is passed on."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            said.seek(0)
            for line in said.read().splitlines(keepends=True):
                if not line.startswith(b"INFO:"):
                    os.write(2, line)
