"""Inputs and outputs of an .onnx file in another form: integers, or channels last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pocketfit.core.errors import ExportFailed
from pocketfit.formats.onnx_read import set_metadata

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def integer_ends(model: ModelProto) -> None:
    """image -> QuantizeLinear -> DequantizeLinear -> … -> QuantizeLinear -> DequantizeLinear -> logits
    becomes image -> DequantizeLinear -> … -> QuantizeLinear -> logits, with integer image and logits."""
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    first, last = graph.input[0], graph.output[0]
    readers = [node for node in graph.node if first.name in node.input]
    if len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
        raise ExportFailed(
            f"The file cannot take integers: what reads its input ({_names(readers)}) stays in float32; "
            "take the first layer out of keep_float, or ask for float32 inputs"
        )
    writers = [node for node in graph.node if last.name in node.output]
    if len(writers) != 1 or writers[0].op_type != "DequantizeLinear":
        raise ExportFailed(
            f"The file cannot give integers: what writes its output ({_names(writers)}) stays in float32; "
            "take the last layer out of keep_float, or ask for float32 outputs"
        )
    start, end = readers[0], writers[0]
    notes = {}
    for word, node, value in (("input", start, first), ("output", end, last)):
        zero_point = constants[node.input[2]]
        notes[f"pocketfit.{word}_scale"] = repr(float(numpy_helper.to_array(constants[node.input[1]])))
        notes[f"pocketfit.{word}_zero_point"] = str(int(numpy_helper.to_array(zero_point)))
        value.type.tensor_type.elem_type = zero_point.data_type
    for node in graph.node:  # image_quantized -> image, logits_quantized -> logits
        node.input[:] = [first.name if name == start.output[0] else name for name in node.input]
        inner = end.input[0]
        node.input[:] = [last.name if name == inner and node is not end else name for name in node.input]
        node.output[:] = [last.name if name == inner else name for name in node.output]
    graph.node.remove(start)
    graph.node.remove(end)
    set_metadata(model, notes)


def channels_last_input(model: ModelProto) -> None:
    """image [N, C, H, W] -> …  becomes  image [N, H, W, C] -> Transpose -> …"""
    from onnx import helper

    graph = model.graph
    value = graph.input[0]
    inner = f"{value.name}_nchw"
    for node in graph.node:
        node.input[:] = [inner if name == value.name else name for name in node.input]
    sizes = value.type.tensor_type.shape.dim
    order = [type(size)() for size in sizes]
    for new, old in zip(order, (0, 2, 3, 1), strict=True):
        new.CopyFrom(sizes[old])
    del sizes[:]
    sizes.extend(order)
    graph.node.insert(0, helper.make_node("Transpose", [value.name], [inner], "layout/Transpose", perm=[0, 3, 1, 2]))


def _names(nodes: Sequence[NodeProto]) -> str:
    return ", ".join(node.name or node.op_type for node in nodes) or "nothing"
