"""The outputs of the layers of a .tflite, dequantized; LiteRT's operators contain their activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.artifact import OpInfo
from pocketfit.core.runtime import Arrays
from pocketfit.numerics.affine import dequantize


def opened(path: Path, operators: Sequence[OpInfo], threads: int) -> _Opened:
    """The file with the outputs of these operators kept."""
    return _Opened.of(path, operators, threads)


@dataclass
class _Opened:
    """A .tflite run by the builtin kernels with all tensors kept; the XNNPACK delegate keeps none of its inner ones."""

    interpreter: Any
    layers: Mapping[str, str]
    indices: Mapping[str, int]
    details: Mapping[int, Any]

    @classmethod
    def of(cls, path: Path, operators: Sequence[OpInfo], threads: int) -> _Opened:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        interpreter = Interpreter(
            model_path=str(path),
            num_threads=threads,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        interpreter.allocate_tensors()
        details = {one["index"]: one for one in interpreter.get_tensor_details()}
        by_name = {one["name"]: index for index, one in details.items()}
        layers = {op.layer or op.name: op.name for op in operators if op.name in by_name}
        return cls(interpreter, layers, {name: by_name[tensor] for name, tensor in layers.items()}, details)

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        for given, detail in zip(inputs.values(), self.interpreter.get_input_details(), strict=True):
            self.interpreter.set_tensor(detail["index"], given)
        self.interpreter.invoke()
        found = {"": self._real(self.interpreter.get_output_details()[0]["index"])}
        return found | {name: self._real(index) for name, index in self.indices.items()}

    def _real(self, index: int) -> NDArray[np.float32]:
        values, stated = self.interpreter.get_tensor(index), self.details[index]["quantization_parameters"]
        if values.dtype.kind == "f" or len(stated["scales"]) == 0:
            return np.asarray(values, np.float32)
        axis = int(stated["quantized_dimension"]) if len(stated["scales"]) > 1 else None
        return dequantize(values, stated["scales"], stated["zero_points"], axis=axis)
