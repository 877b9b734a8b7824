"""An .xml file loaded in OpenVINO, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import CannotRunHere, UserError
from pocketfit.core.runtime import Arrays
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.core.support.loading import require
from pocketfit.formats import openvino_read
from pocketfit.runtimes.common.session_inputs import check_inputs, row_by_row

EXTRA = "openvino"
DEVICE = "CPU"


class OpenVinoSession:
    """A compiled file. It computes in float32 and integers: on processors with AMX, OpenVINO would choose bfloat16."""

    input_quantization = None
    output_quantization = None

    def __init__(self, compiled: Any, signature: Signature, *, row_by_row: bool) -> None:
        self._request: Any = compiled.create_infer_request()
        self.signature = signature
        self._row_by_row = row_by_row

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Arrays by name -> arrays by name. Raises UserError where a name, shape or dtype does not fit the file."""
        if self._request is None:
            raise UserError("This session has been closed")
        count = check_inputs(self.signature, inputs)
        if self._row_by_row and count > 1:
            return row_by_row(self._run, inputs, count)
        return self._run(inputs)

    def _run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        try:
            results = self._request.infer({name: np.ascontiguousarray(value) for name, value in inputs.items()})
        except RuntimeError as error:
            raise CannotRunHere(f"OpenVINO failed while running: {str(error).splitlines()[0][:300]}") from error
        return {spec.name: np.array(results[index]) for index, spec in enumerate(self.signature.outputs)}

    def close(self) -> None:
        self._request = None


def load(path: Path, *, threads: int = 1) -> OpenVinoSession:
    """Compile for the CPU. Raises UserError for a missing or damaged file, CannotRunHere for one that is refused."""
    path = Path(path)
    compiled = compiled_model(path, threads)
    contents = openvino_read.contents(path)
    signature = Signature(
        tuple(TensorSpec(one.name, one.shape, one.dtype, one.layout) for one in contents.inputs),
        tuple(TensorSpec(one.name, one.shape, one.dtype) for one in contents.outputs),
    )
    return OpenVinoSession(compiled, signature, row_by_row=openvino_read.metadata(path).get("pocketfit.batch") == "1")


def compiled_model(path: Path, threads: int, **properties: Any) -> Any:
    """The file, checked and compiled, with these properties beside ours."""
    openvino = require("openvino", EXTRA)
    openvino_read.contents(path)  # its sentences are better than the runtime's
    core = openvino.Core()
    try:
        return core.compile_model(str(path), DEVICE, {**settings_for(threads), **properties})
    except RuntimeError as error:
        raise CannotRunHere(f"OpenVINO cannot load '{path}': {_cause(error)}") from error


def settings_for(threads: int) -> dict[str, Any]:
    """How files are compiled. in_app.py has the same precision and streams."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # on a shared machine, other work may hold the core
    }


def _cause(error: RuntimeError) -> str:
    """The line of OpenVINO's message that says what is wrong: those before it name places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
