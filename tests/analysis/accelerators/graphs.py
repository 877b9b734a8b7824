"""Small quantized .onnx files made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 4


def quantized_layer(
    path: Path,
    *,
    activations: type[np.generic] | str = np.int8,
    zero: int | None = 0,
    weight_axis: int = 0,
    stated_axis: int | None = None,
    scale: float = 0.02,
    activation_scales: int = 1,
    bias: bool = False,
    layer: str = "Conv",
) -> Path:
    """image -> Q -> DQ -> layer (weights int8 by DQ, a scale a channel) -> Q -> DQ -> out"""
    shape = {"Conv": (8, CHANNELS, 1, 1), "ConvTranspose": (CHANNELS, 8, 1, 1)}[layer]
    scales = shape[weight_axis]
    constants = {
        "s": np.full(activation_scales, scale, np.float32) if activation_scales > 1 else np.float32(scale),
        "w": np.ones(shape, np.int8),
        "ws": np.full(scales, 0.1, np.float32),
        "wz": np.zeros(scales, np.int8),
        "b": np.ones(8, np.int32),
        "bs": np.full(8, 0.002, np.float32),
        "bz": np.zeros(8, np.int32),
    }
    pair = ["s"]
    if zero is not None:
        constants["z"] = np.full(np.shape(constants["s"]), zero, activations)
        pair.append("z")
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["image", *pair], ["q"], "image_q", axis=1),
        node("DequantizeLinear", ["q", *pair], ["x"], "image_dq", axis=1),
        node(
            "DequantizeLinear",
            ["w", "ws", "wz"],
            ["wf"],
            "weight_dq",
            axis=weight_axis if stated_axis is None else stated_axis,
        ),
        node("DequantizeLinear", ["b", "bs", "bz"], ["bf"], "bias_dq", axis=0),
        node(layer, ["x", "wf", "bf"] if bias else ["x", "wf"], ["y"], "layer"),
    ]
    if not bias:
        nodes.pop(3)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ("batch", CHANNELS, 2, 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 8, 2, 2))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, str(path))
    return path
