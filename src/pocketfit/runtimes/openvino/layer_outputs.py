"""The outputs of the layers of an .xml file: a copy in memory has their tensors as further outputs.

Convolution -> Add (bias) -> activation -> FakeQuantize: read behind the last of these
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.artifact import OpInfo
from pocketfit.core.runtime import Arrays

BEHIND = ("Relu", "PRelu", "Clamp", "Maximum", "Minimum", "FakeQuantize", "Add")


def opened(path: Path, operators: Sequence[OpInfo], threads: int) -> _Opened:
    """The file with the tensors behind these operators as outputs, too."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    ends = {op.layer or op.name: _behind(nodes[op.name]) for op in operators}
    stated = len(model.outputs)
    for output in ends.values():
        model.add_outputs([output])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return _Opened(request, {layer: layer for layer in ends}, stated)


def _behind(node: Any) -> Any:
    """The output behind a layer's bias, activation and rounding, followed while each has one reader."""
    output = node.output(0)
    while len(readers := output.get_target_inputs()) == 1:
        after = next(iter(readers)).get_node()
        others = [after.input_value(i).get_node() for i in range(after.get_input_size())]
        constant = sum(one.get_type_name() in ("Constant", "Convert") for one in others)
        if after.get_type_name() not in BEHIND or constant != len(others) - 1:
            break
        output = after.output(0)
    return output


@dataclass
class _Opened:
    """OpenVINO with the layers' tensors as further outputs of a copy in memory."""

    request: Any
    layers: Mapping[str, str]
    stated: int

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        results = self.request.infer({name: np.ascontiguousarray(value) for name, value in inputs.items()})
        behind = {layer: np.array(results[self.stated + i]) for i, layer in enumerate(self.layers)}
        return {"": np.array(results[0])} | behind
