"""Operators in the forms that ONNX Runtime computes in integers: the same answers, fewer roundings."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pocketfit.core.plan.export import ExportSettings
from pocketfit.runtimes.onnxruntime import integer_forms, quantize
from pocketfit.runtimes.onnxruntime.convert import open_session

UINT8 = ExportSettings("onnxruntime", "int8", activations="uint8")
INT8 = ExportSettings("onnxruntime", "int8")


def model_of(nodes: list[Any], constants: dict[str, Any], shape: tuple[int, ...], out: tuple[int, ...]) -> Any:
    """A file from x to y, with the shapes of all tensors."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made)
    return onnx.shape_inference.infer_shapes(made)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], f"{output}/{kind}", **attributes)


def run(model: Any, x: NDArray[np.float32], tensors: tuple[str, ...] = ("y",)) -> list[NDArray[np.float32]]:
    model = type(model).FromString(model.SerializeToString())
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    return list(open_session(model.SerializeToString()).run(list(tensors), {"x": x}))


def kinds(model: Any) -> Counter[str]:
    return Counter(one.op_type for one in model.graph.node)


def quantized(model: Any, x: NDArray[np.float32], settings: ExportSettings = UINT8) -> Any:
    """The static int8 file, with ranges from `x`."""
    names = ("x", *(name for one in model.graph.node for name in one.output))
    ranges = {
        name: (float(min(values.min(), 0)), float(max(values.max(), 0)))
        for name, values in zip(names, [x, *run(model, x, names[1:])], strict=True)
    }
    return quantize._static(model, settings, [], ranges)


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32) * 3


@pytest.mark.parametrize("keepdims", [0, 1])
def test_pieces_with_integer_kernels_give_the_same(keepdims: int) -> None:
    nodes = [
        node("Conv", "x weight", "wide"),
        node("HardSigmoid", "wide", "gate", alpha=1 / 6, beta=0.5),
        node("Mul", "wide gate", "swish"),
        node("ReduceMean", "swish axes", "mean", keepdims=keepdims),
        node("Sigmoid", "mean", "y"),
    ]
    constants = {"axes": np.array([-1, -2]), "weight": -np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1)}
    model = model_of(nodes, constants, (1, 8, 5, 7), (1, 8, 1, 1) if keepdims else (1, 8))
    x = noise(1, 8, 5, 7)
    (wanted,) = run(model, x)
    integer_forms.prepare(model)
    onnx.checker.check_model(model)
    assert not {"HardSigmoid", "ReduceMean"} & kinds(model).keys() and kinds(model)["GlobalAveragePool"] == 1
    np.testing.assert_allclose(run(model, x)[0], wanted, rtol=1e-5, atol=1e-6)
    for settings in (UINT8, INT8):
        file = quantized(model, x, settings)
        assert kinds(file)["Add"] == 0 and kinds(file)["Mul"] == 1, "the gate is x's own integers on another scale"
        (clip,) = (one for one in file.graph.node if one.op_type == "Clip")
        assert clip.input[0].endswith("QuantizeLinear_Output"), "at most 6, in integers"
        np.testing.assert_allclose(run(file, x)[0], wanted, atol=0.02)
        (of_layer,) = (
            one for one in file.graph.node if one.op_type == "QuantizeLinear" and one.input[0] == "wide_above"
        )
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in file.graph.initializer}
        lowest = np.iinfo(stored[of_layer.input[2]].dtype).min - int(stored[of_layer.input[2]])
        assert -3.1 < lowest * stored[of_layer.input[1]] < -2.9, "below -3, hard-swish is 0"


def test_a_mean_over_something_else_stays() -> None:
    model = model_of([node("ReduceMean", "x axes", "y")], {"axes": np.array([1, 2])}, (1, 8, 5, 7), (1, 1, 1, 7))
    integer_forms.prepare(model)
    assert kinds(model) == {"ReduceMean": 1}


@pytest.mark.parametrize("settings", [UINT8, INT8])
@pytest.mark.parametrize(("offset", "merged"), [(9.0, True), (-7.0, True), (0.1, True), (-0.6, True), (400.0, False)])
def test_a_number_added_before_padding_is_another_zero_point(
    offset: float, merged: bool, settings: ExportSettings
) -> None:
    """The padding holds zeros behind the sum: integers that stand for minus the number."""
    weight = np.random.default_rng(1).normal(size=(4, 1, 3, 3)).astype(np.float32)
    first = np.random.default_rng(2).normal(size=(4, 4, 1, 1)).astype(np.float32)
    constants = {"w0": first, "w": weight, "two": np.float32(2), "n": np.float32(offset)}
    nodes = [
        node("Conv", "x w0", "a"),
        node("Mul", "a two", "b"),
        node("Add", "b n", "c"),
        node("Conv", "c w", "y", group=4, pads=[1, 1, 1, 1]),
    ]
    model, x = model_of(nodes, constants, (1, 4, 6, 6), (1, 4, 6, 6)), noise(1, 4, 6, 6)
    (wanted,) = run(model, x)
    file = quantized(model, x, settings)
    assert (kinds(file)["Mul"], kinds(file)["Add"]) == (0, 0 if merged else 1)
    onnx.checker.check_model(file)
    (got,) = run(file, x)
    assert np.abs(got - wanted).max() < 0.03 * np.abs(wanted).max()
    if merged:
        assert np.abs((got - wanted).mean()) < 0.001 * np.abs(wanted).max(), "nothing moves all values alike"


def test_what_softmax_and_norms_read_stays_in_float() -> None:
    rng = np.random.default_rng(3)
    constants = {name: rng.normal(size=(16, 16)).astype(np.float32) / 4 for name in ("w0", "w1", "w2")}
    constants |= {name: rng.normal(size=16).astype(np.float32) for name in ("b0", "b1", "b2", "scale", "shift")}
    nodes = [
        node("MatMul", "x w0", "p0"), node("Add", "p0 b0", "s0"), node("Add", "x s0", "sum"),
        node("LayerNormalization", "sum scale shift", "normed"),
        node("MatMul", "normed w1", "p1"), node("Add", "p1 b1", "s1"), node("Sigmoid", "s1", "gate"),
        node("MatMul", "gate w2", "p2"), node("Add", "p2 b2", "s2"), node("Softmax", "s2", "y"),
    ]  # fmt: skip
    model, x = model_of(nodes, constants, (1, 5, 16), (1, 5, 16)), noise(1, 5, 16)
    names, products = integer_forms.in_float(model, but_outputs=False)
    assert {name.split("/")[0] for name in names} == {"s0", "sum", "normed", "s2", "y"} and products == {"p0", "p2"}
    (wanted,) = run(model, x)
    file = quantized(model, x)
    after = {one.input[0]: one.op_type for one in file.graph.node if one.op_type == "QuantizeLinear"}
    assert not {"p0", "s0", "sum", "p2", "s2", "y"} & after.keys() and {"normed", "s1", "gate"} <= after.keys()
    assert np.abs(run(file, x)[0] - wanted).max() < 0.03
    names, products = integer_forms.in_float(model, but_outputs=True)
    assert "y/Softmax" not in names and products == {"p0"}, "a file with integer outputs ends in integers"
