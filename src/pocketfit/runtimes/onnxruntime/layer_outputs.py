"""The outputs of the layers of an .onnx file: a copy in memory has their tensors as further outputs.

Conv -> Clip -> QuantizeLinear -> DequantizeLinear: read behind the last of these
ConvInteger -> Cast -> Mul (scale) -> Add (bias) -> Clip: read behind the last of these
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.artifact import OpInfo
from pocketfit.core.runtime import Arrays

ACTIVATIONS = ("Relu", "LeakyRelu", "Clip")
INTEGER = ("ConvInteger", "MatMulInteger")


def opened(path: Path, operators: Sequence[OpInfo], threads: int) -> _Opened:
    """The file with the tensors behind these operators as outputs, too."""
    return _Opened.of(path, operators, threads)


def tensors_behind(path: Path, operators: Sequence[OpInfo]) -> dict[str, str]:
    """By layer, the name of the tensor behind it, its bias and its activation."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type != "Constant"]
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants = {tensor.name for tensor in graph.initializer}
    return {op.layer: behind_activation(nodes[op.index], readers, constants) for op in operators}


def behind_activation(node: Any, readers: Mapping[str, list[Any]], constants: Container[str]) -> str:
    """The float tensor behind a layer's scale, bias, activation and quantize pair, followed while each has one reader.

    constants: names of tensors that do not depend on the input (a sum with one is a bias, with another a shortcut)
    """
    tensor = str(node.output[0])
    while following := readers.get(tensor, []):
        after = following[0]
        if after.op_type == "QuantizeLinear" and len(following) == 1:
            pair = readers.get(after.output[0], [])
            if not pair or any(one.op_type != "DequantizeLinear" for one in pair):
                return tensor  # the file's own integer output
            after = pair[0]
            following = pair[:1]  # one integer tensor, dequantized for each of its readers
        elif node.op_type in INTEGER and after.op_type in ("Cast", "Mul", "Add"):
            others = [name for name in after.input if name != tensor]
            if after.op_type == "Add" and not all(name in constants for name in others):
                return tensor
        elif after.op_type not in ACTIVATIONS:
            return tensor
        if len(following) != 1:
            return tensor
        tensor = str(after.output[0])
    return tensor


@dataclass
class _Opened:
    """ONNX Runtime with the layers' tensors as further outputs of a copy in memory."""

    session: Any
    layers: Mapping[str, str]
    output: str

    @classmethod
    def of(cls, path: Path, operators: Sequence[OpInfo], threads: int) -> _Opened:
        import onnx
        import onnxruntime

        model = onnx.load(str(path), load_external_data=False)
        nodes = [node for node in model.graph.node if node.op_type != "Constant"]
        readers: dict[str, list[Any]] = {}
        for node in nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        constants = {tensor.name for tensor in model.graph.initializer}
        for node in model.graph.node:
            if all(name in constants for name in node.input):
                constants.update(node.output)
        layers = {}
        for op in operators:
            node = nodes[op.index]
            layers[op.layer or node.output[0]] = behind_activation(node, readers, constants)
        stated = [value.name for value in model.graph.output]
        types = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
        for tensor in dict.fromkeys(layers.values()):
            if tensor not in stated:
                model.graph.output.append(types.get(tensor) or onnx.ValueInfoProto(name=tensor))
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, threads
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return cls(session, layers, stated[0])

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        wanted = [self.output, *self.layers.values()]
        values = self.session.run(wanted, inputs)
        return {"": values[0]} | dict(zip(self.layers, values[1:], strict=True))
