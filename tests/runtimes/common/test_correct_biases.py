"""Biases lose the mean error of everything before them, one layer after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pocketfit.core.plan.export import ExportSettings
from pocketfit.runtimes.common.correct_biases import correct
from pocketfit.runtimes.onnxruntime import quantize
from pocketfit.runtimes.onnxruntime.convert import open_session, open_unoptimized

UINT8 = ExportSettings("onnxruntime", "int8", activations="uint8")


def network() -> Any:
    """Two convolutions with a ReLU between them."""
    random = np.random.default_rng(0)
    stored = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in (("a.weight", (8, 3, 3, 3)), ("a.bias", (8,)), ("b.weight", (4, 8, 1, 1)), ("b.bias", (4,)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a.weight", "a.bias"], ["a"], "a/Conv"),
        helper.make_node("Relu", ["a"], ["relu"], "relu/Relu"),
        helper.make_node("Conv", ["relu", "b.weight", "b.bias"], ["y"], "b/Conv"),
    ]
    ends = [helper.make_tensor_value_info(n, 1, ["n", c, 8 + d, 8 + d]) for n, c, d in (("x", 3, 2), ("y", 4, 0))]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made)
    return onnx.shape_inference.infer_shapes(made)


def outputs(model: Any, x: np.ndarray) -> np.ndarray:
    found: np.ndarray = open_session(model.SerializeToString()).run(None, {"x": x})[0]
    return found


def test_the_mean_error_of_clipped_tensors_is_taken_off() -> None:
    x = np.random.default_rng(1).normal(size=(16, 3, 10, 10)).astype(np.float32)
    exact = network()
    ranges = {"x": (-2.0, 2.0), "a": (-9.0, 9.0), "relu": (0.0, 9.0), "y": (-60.0, 60.0)}  # clipped: a third too narrow
    made = quantize._static(network(), UINT8, [], ranges)
    wanted, before = outputs(exact, x), outputs(made, x)
    correct(made, exact, {exact.graph.input[0].name: x}, open_unoptimized)
    after = outputs(made, x)
    errors = [np.abs((found - wanted).mean((0, 2, 3))).max() for found in (before, after)]
    assert errors[0] > 0.2, "there is something to correct"
    assert errors[1] < 0.1 * errors[0]
    assert np.square(after - wanted).mean() < np.square(before - wanted).mean()


def test_without_integer_biases_nothing_happens() -> None:
    model = network()
    before = model.SerializeToString()
    correct(model, network(), {model.graph.input[0].name: np.zeros((2, 3, 10, 10), np.float32)}, open_unoptimized)
    assert model.SerializeToString() == before
