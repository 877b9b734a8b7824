"""Each rule of TensorRT's parser, by a file that breaks it alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pocketfit.analysis.accelerators.tensorrt_rules import breaches, commands
from pocketfit.core.artifact import FileTensor
from tests.analysis.accelerators.graphs import CHANNELS, quantized_layer

READY: dict[str, dict] = {
    "symmetric int8": {},
    "a transposed convolution by its output channels": {"layer": "ConvTranspose", "weight_axis": 1},
}
BROKEN: dict[str, tuple[dict, set[str], str]] = {
    "unsigned": ({"activations": np.uint8}, {"image_q", "image_dq"}, "is uint8"),
    "16 bits": ({"activations": np.int16}, {"image_q", "image_dq"}, "is int16"),
    "a zero point": ({"zero": 3}, {"image_q", "image_dq"}, "zero point other than 0"),
    "no zero point": ({"zero": None}, {"image_q"}, "no zero point"),
    "no positive scale": ({"scale": 0.0}, {"image_q", "image_dq"}, "not positive"),
    "activations by channel": ({"activation_scales": CHANNELS}, {"image_q", "image_dq"}, "stored weights only"),
    "an integer bias": ({"bias": True}, {"bias_dq"}, "int32 (a bias)"),
    "an axis of another size": (
        {"weight_axis": 1, "stated_axis": 0},
        {"weight_dq"},
        "4 scales along axis 0 of a weight",
    ),
    "an axis that is not there": ({"stated_axis": 7}, {"weight_dq"}, "8 scales along axis 7"),
    "the wrong axis": ({"weight_axis": 1}, {"weight_dq"}, "output channels of Conv are axis 0"),
    "the wrong axis of a transposed one": ({"layer": "ConvTranspose"}, {"weight_dq"}, "ConvTranspose are axis 1"),
}


@pytest.mark.parametrize("name", READY)
def test_a_file_that_is_ready_breaks_no_rule(tmp_path, name):
    assert breaches(quantized_layer(tmp_path / "net.onnx", **READY[name])) == []


@pytest.mark.parametrize("name", BROKEN)
def test_the_nodes_that_break_a_rule_are_named(tmp_path, name):
    options, nodes, words = BROKEN[name]
    found = breaches(quantized_layer(tmp_path / "net.onnx", **options))
    assert {one.node for one in found} == nodes
    assert all(words in one.rule for one in found), found


def test_integer_operators_are_no_explicit_quantization(tmp_path):
    values = [helper.make_tensor_value_info(name, kind, ("n", 2)) for name, kind in (("x", TensorProto.FLOAT),)]
    outputs = [helper.make_tensor_value_info("q", TensorProto.UINT8, ("n", 2))]
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "dynamic")
    graph = helper.make_graph([node], "g", values, outputs)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(tmp_path / "n.onnx")
    )
    (one,) = breaches(tmp_path / "n.onnx")
    assert one.node == "dynamic" and "Q/DQ pairs only" in one.rule


def test_lines_for_devices_give_shapes_where_axes_are_open():
    image, mask = FileTensor("image", (None, 3, 48, None), "float32"), FileTensor("mask", (1, 8), "float32")
    lines = commands("out/net.onnx", (image, mask))
    assert "--saveEngine=out/net.plan" in lines["jetson"] and "--shapes=image:1x3x48xSIZE,mask:1x8" in lines["jetson"]
    assert "--stronglyTyped" in lines["jetson"] and "--stronglyTyped" not in lines["server"]
    assert "--maxShapes=image:32x3x48xSIZE,mask:1x8" in lines["server"]
    assert "hapes" not in commands("net.onnx", (mask,))["server"]
    assert not any(flag in line for line in lines.values() for flag in ("--int8", "--fp16", "--best"))
