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
from pocketfit.formats.openvino_read import LOOK_THROUGH
from pocketfit.runtimes.openvino.session import DEVICE, settings_for

BEHIND = ("Relu", "PRelu", "Clamp", "Maximum", "Minimum", "FakeQuantize", "Add")


def opened(path: Path, operators: Sequence[OpInfo], threads: int) -> _Opened:
    """The file with the tensors behind these operators as outputs, too."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    ends = {op.layer or op.name: _behind(nodes[op.name]) for op in operators}
    sources = [_key(result.input_value(0)) for result in model.get_results()]
    for output in ends.values():
        if _key(output) not in sources:
            model.add_outputs([output])
            sources.append(_key(output))
    request = core.compile_model(model, DEVICE, settings_for(threads)).create_infer_request()
    places = {layer: sources.index(_key(output)) for layer, output in ends.items()}
    return _Opened(request, {layer: _key(output)[0] for layer, output in ends.items()}, places)


def _key(output: Any) -> tuple[str, int]:
    return output.get_node().get_friendly_name(), output.get_index()


def _behind(node: Any) -> Any:
    """The output behind a layer's bias, activation and rounding, followed while each has one reader."""
    output = node.output(0)
    while len(readers := output.get_target_inputs()) == 1:
        after = next(iter(readers)).get_node()
        others = [after.input_value(i).get_node() for i in range(after.get_input_size())]
        if after.get_type_name() not in BEHIND or sum(map(_stored, others)) != len(others) - 1:
            break
        output = after.output(0)
    return output


def _stored(node: Any) -> bool:
    """Whether a node's output does not depend on the input."""
    if node.get_type_name() == "Constant":
        return True
    sources = [node.input_value(i).get_node() for i in range(node.get_input_size())]
    return node.get_type_name() in LOOK_THROUGH and all(map(_stored, sources))


@dataclass
class _Opened:
    """OpenVINO with the layers' tensors as further outputs of a copy in memory."""

    request: Any
    layers: Mapping[str, str]
    places: Mapping[str, int]  # of the layers' tensors among the outputs

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        results = self.request.infer({name: np.ascontiguousarray(value) for name, value in inputs.items()})
        return {"": np.array(results[0])} | {layer: np.array(results[place]) for layer, place in self.places.items()}
