"""An .onnx file loaded in ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.artifact import Quantization
from pocketfit.core.errors import CannotRunHere, UserError
from pocketfit.core.runtime import Arrays
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.core.support.loading import require
from pocketfit.formats import onnx_read
from pocketfit.runtimes.common.session_inputs import row_by_row

EXTRA = "onnxruntime"
PROVIDER = "CPUExecutionProvider"
_DTYPES = {"float": "float32", "double": "float64"}


class OnnxSession:
    """A loaded .onnx file on the CPU provider. Where the file's notes say that it is right for single rows only, the
    rows of a batch are run one after the other."""

    def __init__(self, session: Any) -> None:
        self._session: Any = session
        about: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
        self.signature = Signature(
            tuple(_spec(value, about.get("pocketfit.layout", "")) for value in session.get_inputs()),
            tuple(_spec(value, None) for value in session.get_outputs()),
        )
        self._row_by_row = about.get("pocketfit.batch") == "1"
        self.input_quantization = _stated(about, "input")
        self.output_quantization = _stated(about, "output")

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Arrays by name -> arrays by name. Raises UserError where a name, shape or dtype does not fit the file."""
        if self._session is None:
            raise UserError("This session has been closed")
        rows = {len(value) for value in inputs.values() if value.ndim}
        if self._row_by_row and len(rows) == 1 and (count := rows.pop()) > 1:
            return row_by_row(self._run, inputs, count)
        return self._run(inputs)

    def _run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        errors = require("onnxruntime", EXTRA).capi.onnxruntime_pybind11_state
        try:
            results = self._session.run(None, {name: np.ascontiguousarray(value) for name, value in inputs.items()})
        except (ValueError, errors.InvalidArgument) as error:
            raise UserError(f"The inputs do not fit the file: {str(error).splitlines()[0]}") from error
        except errors.Fail as error:
            raise CannotRunHere(f"ONNX Runtime failed while running: {str(error).splitlines()[0]}") from error
        names = [spec.name for spec in self.signature.outputs]
        return {
            name: value if value.flags.owndata and value.flags.writeable else value.copy()
            for name, value in zip(names, results, strict=True)
        }

    def close(self) -> None:
        self._session = None


def load(path: Path, *, threads: int = 1) -> OnnxSession:
    """Load on the CPU provider. Raises UserError for a missing file, CannotRunHere for one that does not load."""
    onnxruntime = require("onnxruntime", EXTRA)
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file '{path}'")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_mem_pattern = False  # as in_app.py has it
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise CannotRunHere(f"ONNX Runtime cannot load '{path}': {str(error).splitlines()[0][:300]}") from error
    if PROVIDER not in session.get_providers():
        raise CannotRunHere(f"This ONNX Runtime has no {PROVIDER}: it has {', '.join(session.get_providers())}")
    return OnnxSession(session)


def _spec(value: Any, layout: str | None) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(
        value.name, shape, _DTYPES.get(kind, kind), "" if layout is None else onnx_read.layout_of(shape, layout)
    )


def _stated(about: Mapping[str, str], word: str) -> Quantization | None:
    if f"pocketfit.{word}_scale" not in about:
        return None
    return Quantization((float(about[f"pocketfit.{word}_scale"]),), (int(about[f"pocketfit.{word}_zero_point"]),))
