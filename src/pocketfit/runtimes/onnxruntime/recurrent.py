"""LSTM, GRU and RNN in .onnx files: find their weights, name them after the layer, and store them as integers.

torch's exporter writes these weights as slices of torch's own, concatenated in ONNX's order of gates. ONNX Runtime's
quantizers leave such operators in float, with their weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

RECURRENT = ("LSTM", "GRU", "RNN")
CONSTANTS = {1: "weight_ih_l{number}", 2: "weight_hh_l{number}", 3: "bias_l{number}"}  # ONNX's W, R, B


def name_weights(model: ModelProto) -> None:
    """Turn W, R and B of every recurrent operator into initializers "<layer>.weight_ih_l0", "<layer>.weight_hh_l0",
    "<layer>.bias_l0" (both directions in one, gates in ONNX's order; l1, l2 … where a layer has several)."""
    from onnx import numpy_helper

    graph, seen = model.graph, dict[str, int]()
    for node in graph.node:
        if node.op_type not in RECURRENT:
            continue
        layer = node.name.rpartition("/")[0] or "recurrent"
        number = seen[layer] = seen.get(layer, -1) + 1
        for place, name in CONSTANTS.items():
            if place >= len(node.input) or not node.input[place]:
                continue
            values = _value(model, node.input[place])
            if values is None:
                continue
            node.input[place] = f"{layer}.{name.format(number=number)}#"  # torch's own tensor may still have the name
            graph.initializer.append(numpy_helper.from_array(values, node.input[place]))
    if seen:
        _drop_unused(model)
        for holder in (*graph.initializer, *graph.node):
            if hasattr(holder, "dims"):
                holder.name = holder.name.removesuffix("#")
            else:
                holder.input[:] = [name.removesuffix("#") for name in holder.input]


def _value(model: ModelProto, name: str) -> NDArray[np.generic] | None:
    """The value of a tensor that depends on constants only; None where it depends on the network's input."""
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    if name in stored:
        return numpy_helper.to_array(stored[name])
    producers = {output: node for node in model.graph.node for output in node.output}
    needed: list[NodeProto] = []

    def collect(tensor: str) -> bool:
        if not tensor or tensor in stored:
            return True
        node = producers.get(tensor)
        if node is None:
            return False
        if node in needed:
            return True
        if not all(collect(given) for given in node.input):
            return False
        needed.append(node)
        return True

    if not collect(name):
        return None
    used = {given for node in needed for given in node.input}
    output = helper.make_empty_tensor_value_info(name)
    graph = helper.make_graph(needed, "constant", [], [output], [stored[given] for given in used if given in stored])
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    (value,) = ReferenceEvaluator(part).run(None, {})
    return np.asarray(value)


def _drop_unused(model: ModelProto) -> None:
    """Remove nodes and initializers that nothing reads any more."""
    graph, outputs = model.graph, {value.name for value in model.graph.output}
    while True:
        read = {name for node in graph.node for name in node.input} | outputs
        idle = [node for node in graph.node if not read & set(node.output)]
        if not idle:
            break
        for node in idle:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def weights_of(model: ModelProto) -> dict[str, tuple[int, bool]]:
    """The weights [directions, gates x hidden, in], one scale for each row; in the form of quantize.weights_of."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return {
        node.input[place]: (1, False)
        for node in model.graph.node
        if node.op_type in RECURRENT
        for place in (1, 2)
        if node.input[place] in stored
    }
