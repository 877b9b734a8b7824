"""Small ONNX files, and the road from one to a network without a child process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from pocketfit.sources.onnx.convert import convert
from pocketfit.sources.onnx.file.graph import Graph
from pocketfit.sources.onnx.file.normalise import written_out
from pocketfit.sources.onnx.file.read import inlined, to_graph

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def tensor(name: str, shape: Sequence[int | str], kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def random(*shape: int, seed: int = 0, scale: float = 0.3) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    stored: Mapping[str, Any] | None = None,
    *,
    version: int = 17,
    **about: Any,
) -> onnx.ModelProto:
    """A file in memory; `stored`: arrays by name."""
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (stored or {}).items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=9, **about)


def graph_of(proto: onnx.ModelProto, folder: Path = Path()) -> Graph:
    return to_graph(written_out(inlined(proto)), folder)


def network_of(proto: onnx.ModelProto) -> fx.GraphModule:
    return convert(graph_of(proto))[0]


def in_onnxruntime(proto: onnx.ModelProto, *inputs: Tensor) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {value.name: array.numpy() for value, array in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(np.asarray(answer)) for answer in session.run(None, feed)]


def assert_same(proto: onnx.ModelProto, *inputs: Tensor) -> fx.GraphModule:
    """The converted network answers as ONNX Runtime does."""
    network = network_of(proto)
    with torch.no_grad():
        answers = network(*inputs)
    answers = answers if isinstance(answers, tuple) else (answers,)
    for answer, wanted in zip(answers, in_onnxruntime(proto, *inputs), strict=True):
        torch.testing.assert_close(answer, wanted, rtol=1e-4, atol=1e-5)
    return network


def conv_net(*sizes: int | str) -> onnx.ModelProto:
    """[batch, 3, height, width] (or `sizes`) -> [batch, 4]: convolutions, a norm, a shuffle, a linear layer."""
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["a"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "n.weight", "n.bias", "n.mean", "n.var"], ["b"], "norm"),
        helper.make_node("Relu", ["b"], ["c"], "act"),
        helper.make_node("Shape", ["c"], ["s"], "shape"),
        helper.make_node("Gather", ["s", "zero"], ["batch"], "batch", axis=0),
        helper.make_node("Gather", ["s", "two"], ["rows"], "rows", axis=0),
        helper.make_node("Gather", ["s", "three"], ["columns"], "columns", axis=0),
        helper.make_node("Concat", ["batch", "groups", "half", "rows", "columns"], ["target"], "target", axis=0),
        helper.make_node("Reshape", ["c", "target"], ["d"], "apart"),
        helper.make_node("Transpose", ["d"], ["e"], "turn", perm=[0, 2, 1, 3, 4]),
        helper.make_node("Concat", ["batch", "all", "rows", "columns"], ["back"], "back", axis=0),
        helper.make_node("Reshape", ["e", "back"], ["f"], "together"),
        helper.make_node("Conv", ["f", "second.weight", "second.bias"], ["g"], "second", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["g"], ["h"], "pool"),
        helper.make_node("Flatten", ["h"], ["i"], "flat"),
        helper.make_node("Gemm", ["i", "head.weight", "head.bias"], ["y"], "head", transB=1),
    ]
    stored = {
        "stem.weight": random(8, 3, 3, 3),
        **{f"n.{name}": random(8, seed=i, scale=0.1) + 1 for i, name in enumerate(("weight", "bias", "mean", "var"))},
        "second.weight": random(6, 8, 1, 1),
        "second.bias": random(6),
        "head.weight": random(4, 6),
        "head.bias": random(4),
        **{name: np.array([number]) for name, number in (("zero", 0), ("two", 2), ("three", 3))},
        **{name: np.array([number]) for name, number in (("groups", 2), ("half", 4), ("all", 8))},
    }
    batch, height, width = sizes or ("batch", "height", "width")
    return model(nodes, [tensor("x", [batch, 3, height, width])], [tensor("y", [batch, 4])], stored)
