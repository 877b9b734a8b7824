"""Child process of the OpenVINO export: an .onnx file becomes an .xml with its .bin.

OpenVINO's own reader makes five operators of a pair QuantizeLinear, DequantizeLinear. They are written in the one that
its CPU plugin documents: FakeQuantize -> Convert -> Convert -> Subtract -> Multiply becomes FakeQuantize.
https://docs.openvino.ai: "Low Precision Transformations", "Quantized models"
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from pocketfit.core.support.scratch import temporary_folder

COUNTED = re.compile(r".*_\d+")  # names that the reader makes up, with a counter of its process
LAYER_END = ("Convolution", "GroupConvolution", "MatMul", "ConvolutionBackpropData", "GroupConvolutionBackpropData")


def to_ir(source: str, path: str, *, half: bool) -> None:
    """Write `path` (.xml) and the .bin beside it; half: weights in float16."""
    import openvino

    with temporary_folder() as folder:
        plain = Path(folder, "plain.onnx")
        _drop_zero_points(Path(source), plain)
        model = openvino.Core().read_model(plain)
    _drop_ones(model)
    _merge_pairs(model)
    _write_shapes(model)
    _name(model)
    openvino.save_model(model, path, compress_to_fp16=half)
    text = Path(path).read_text(encoding="utf-8")
    Path(path).write_text(re.sub(r">\s+<", "><", text), encoding="utf-8")  # a fifth of the text is indentation


def _drop_zero_points(source: Path, target: Path) -> None:
    """Leave out the zero points of weights that are all 0: each would be four operators."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(source))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) > 2 and node.input[0] in constants:
            zero = constants.get(node.input[2])
            if zero is not None and not numpy_helper.to_array(zero).any():
                del node.input[2:]
    onnx.save(model, str(target))


def _drop_ones(model: Any) -> None:
    """Leave out products with the number 1, which the reader makes of each Gemm."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Multiply":
            continue
        for index in (0, 1):
            one, rest = _constant(node, index), node.input_value(1 - index)
            if one is not None and one.size == 1 and float(one.ravel()[0]) == 1.0:
                if rest.get_partial_shape() == node.output(0).get_partial_shape():
                    node.output(0).replace(rest)
                break


def _merge_pairs(model: Any) -> None:
    """FakeQuantize(x, a, b, 0, 255) -> Convert -> Convert -> Subtract z -> Multiply s: FakeQuantize(x, a, b, -z s,
    (255 - z) s)."""
    from openvino import opset13

    for multiply in model.get_ordered_ops():
        chain = _pair(multiply)
        if chain is None:
            continue
        fake, zero, scale = chain
        low, high = ((float(_constant(fake, index)) - zero) * scale for index in (3, 4))
        ends = [opset13.constant(np.float32(value)) for value in (low, high)]
        sources = [fake.input_value(index) for index in range(3)]
        levels = int(fake.get_attributes()["levels"])
        merged = opset13.fake_quantize(*sources, *ends, levels)
        merged.set_friendly_name(f"{multiply.get_friendly_name()}/FakeQuantize")
        multiply.output(0).replace(merged.output(0))


def _pair(multiply: Any) -> tuple[Any, float, float] | None:
    """(the FakeQuantize, zero point, scale) in front of a DequantizeLinear's last operator; None for another one."""
    if multiply.get_type_name() != "Multiply" or (scale := _constant(multiply, 1)) is None or scale.size != 1:
        return None
    node, zero = multiply.input_value(0).get_node(), 0.0
    if node.get_type_name() == "Subtract":
        shift = _constant(node, 1)
        if shift is None or shift.size != 1:
            return None
        node, zero = node.input_value(0).get_node(), float(shift.ravel()[0])
    for _ in range(2):
        if node.get_type_name() != "Convert":
            return None
        node = node.input_value(0).get_node()
    if node.get_type_name() != "FakeQuantize" or any(_constant(node, i) is None for i in (1, 2, 3, 4)):
        return None
    return node, zero, float(scale.ravel()[0])


def _constant(node: Any, index: int) -> Any:
    """The array behind an input, through Convert; None for what is computed."""
    found = node.input_value(index).get_node()
    if found.get_type_name() == "Convert":
        found = found.input_value(0).get_node()
    return np.asarray(found.data) if found.get_type_name() == "Constant" else None


def _write_shapes(model: Any) -> None:
    """Write the target of a Reshape with a known shape as a constant, where it is computed: weights of depthwise
    layers have seven operators for it."""
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() == "Reshape" and node.output(0).get_partial_shape().is_static:
            target = opset13.constant(np.array(list(node.output(0).get_shape()), np.int64))
            node.input(1).replace_source_output(target.output(0))


def _name(model: Any) -> None:
    """Number the operators that have no name of the network, in their order: the same network gives the same file."""
    for index, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() not in ("Parameter", "Result", *LAYER_END) and COUNTED.fullmatch(
            node.get_friendly_name()
        ):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")
    for index, node in enumerate(model.get_results()):
        node.set_friendly_name(f"result_{index}")
