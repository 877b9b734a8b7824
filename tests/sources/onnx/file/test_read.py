"""What is read of a file, and what is refused: nothing outside its folder, nothing larger than it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pocketfit.core.errors import UserError
from pocketfit.sources.onnx.file.graph import load_graph, save_graph
from pocketfit.sources.onnx.file.read import parse, read
from tests.sources.onnx.onnx_files import FLOAT, assert_same, conv_net, graph_of, model, network_of, random, tensor


def with_weights_outside(location: str, offset: str = "0") -> onnx.ModelProto:
    proto = conv_net(2, 8, 8)
    weights = next(t for t in proto.graph.initializer if t.name == "second.weight")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    weights.external_data.add(key="offset", value=offset)
    return proto


def test_weights_in_a_file_beside_the_model(tmp_path: Path) -> None:
    wanted = random(6, 8, 1, 1, seed=3)
    (tmp_path / "weights.bin").write_bytes(b"12345678" + wanted.tobytes())
    graph = graph_of(with_weights_outside("weights.bin", "8"), tmp_path)
    assert np.array_equal(graph.constants["second.weight"].numpy(), wanted)


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/passwd", "", "..", "a/../../secret.bin", "C:\\secret.bin", "..\\secret.bin"]
)
def test_weights_outside_of_the_folder_are_never_opened(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.bin").write_bytes(b"0" * 4096)
    folder = tmp_path / "model"
    folder.mkdir()
    proto = with_weights_outside(location)
    opened: list[str] = []
    monkeypatch.setattr(Path, "open", lambda self, *_: opened.append(str(self)))
    with pytest.raises(UserError, match="outside of the folder"):
        graph_of(proto, folder)
    assert opened == []


def test_a_link_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(b"0" * 4096)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(UserError, match="outside of the folder"):
        graph_of(with_weights_outside("weights.bin"), folder)


def test_parts_that_nobody_reads_lead_nowhere_either(tmp_path: Path) -> None:
    """ONNX Runtime opens the same file by itself."""
    hidden = with_weights_outside("../secret.bin").graph.initializer
    weights = next(t for t in hidden if t.data_location == TensorProto.EXTERNAL)
    proto = conv_net(2, 8, 8)
    proto.functions.append(function("Unused", helper.make_node("Constant", [], ["b"], value=weights)))
    path = tmp_path / "x.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match="outside of the folder"):
        parse(path)


@pytest.mark.parametrize(("location", "offset", "words"), [
    ("nothing.bin", "0", "is not there"),
    ("short.bin", "0", "too short"),
    ("short.bin", "-8", "too short"),
    ("short.bin", "many", "no number"),
])  # fmt: skip
def test_missing_weights(location: str, offset: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "short.bin").write_bytes(b"0" * 16)
    with pytest.raises(UserError, match=words):
        graph_of(with_weights_outside(location, offset), tmp_path)


@pytest.mark.parametrize("dims", [[2**62, 2], [-3], [10**9]])
def test_weights_that_are_not_there_are_not_allocated(dims: list[int]) -> None:
    proto = conv_net(2, 8, 8)
    proto.graph.initializer[0].dims[:] = dims
    with pytest.raises(UserError, match="'stem"):
        graph_of(proto)


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "holds no network"), (b"\x00\xff" * 9, "damaged"), (b"PK\x03\x04", "damaged")]
)
def test_files_that_are_no_networks(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(UserError, match=words):
        parse(tmp_path / "x.onnx")


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    whole = conv_net(2, 8, 8).SerializeToString()
    (tmp_path / "x.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError):
        read(tmp_path / "x.onnx")


def test_operators_in_a_circle() -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], "first"), helper.make_node("Relu", ["a"], ["b"], "second")]
    with pytest.raises(UserError, match="in a circle: Add 'first'"):
        graph_of(model(nodes, [tensor("x", [2])], [tensor("b", [2])]))


def test_operators_in_any_order() -> None:
    nodes = [helper.make_node("Neg", ["a"], ["y"]), helper.make_node("Exp", ["x"], ["a"])]
    network = network_of(model(nodes, [tensor("x", [2])], [tensor("y", [2])]))
    x = torch.randn(2)
    assert torch.equal(network(x), -x.exp())


@pytest.mark.parametrize(("nodes", "words"), [
    ([("Relu", ["nothing"], ["y"])], "nothing makes the value 'nothing'"),
    ([("Relu", ["x"], ["z"])], "nothing makes its output 'y'"),
    ([("Relu", ["x"], ["y"]), ("Neg", ["x"], ["y"])], "two operators make the same value 'y'"),
])  # fmt: skip
def test_values_that_nothing_or_two_make(nodes: list[tuple[str, list[str], list[str]]], words: str) -> None:
    made = [helper.make_node(*node) for node in nodes]
    with pytest.raises(UserError, match=words):
        graph_of(model(made, [tensor("x", [2])], [tensor("y", [2])]))


def function(name: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    return helper.make_function(
        "own", name, ["a"], ["b"], list(nodes), [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    )


def test_functions_are_written_out_and_never_without_bound() -> None:
    halve = function("Halve", helper.make_node("Add", ["a", "a"], ["b"]))
    call = helper.make_node("Halve", ["x"], ["y"], domain="own")
    proto = model([call], [tensor("x", [3])], [tensor("y", [3])], functions=[halve])
    proto.opset_import.append(helper.make_opsetid("own", 1))
    assert torch.equal(network_of(proto)(torch.ones(3)), torch.full((3,), 2.0))

    itself = function("Halve", helper.make_node("Halve", ["a"], ["b"], domain="own"))
    del proto.functions[:]
    proto.functions.append(itself)
    with pytest.raises(UserError, match="'Halve' calls itself"):
        graph_of(proto)

    twice = [function("F0", helper.make_node("Neg", ["a"], ["b"]))]
    for i in range(1, 40):
        inner = [helper.make_node(f"F{i - 1}", [name], [out], domain="own") for name, out in (("a", "t"), ("t", "b"))]
        twice.append(function(f"F{i}", *inner))
    proto.graph.node[0].op_type = "F39"
    del proto.functions[:]
    proto.functions.extend(twice)
    with pytest.raises(UserError, match="more than 100000 operators"):
        graph_of(proto)


def test_sparse_weights_are_written_out_within_bounds() -> None:
    values = numpy_helper.from_array(np.array([1.5, -2.0], np.float32), "w")
    places = numpy_helper.from_array(np.array([1, 5]), "places")
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"])]
    proto = model(nodes, [tensor("x", [2, 3])], [tensor("y", [2, 3])])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2, 3]))
    assert network_of(proto)(torch.ones(2, 3)).tolist() == [[0, 1.5, 0], [0, 0, -2]]
    proto.graph.sparse_initializer[0].dims[0] = 2**40
    with pytest.raises(UserError, match="too large to be written out"):
        graph_of(proto)


def test_a_graph_survives_its_files(tmp_path: Path) -> None:
    graph = graph_of(conv_net())
    save_graph(graph, tmp_path)
    again = load_graph(tmp_path)
    assert again.nodes == graph.nodes and again.inputs == graph.inputs
    assert all(torch.equal(again.constants[name], graph.constants[name]) for name in graph.constants)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8])
def test_numbers_of_every_kind(kind: int) -> None:
    stored = helper.make_tensor("w", kind, [3], [1, -2, 3])
    nodes = [helper.make_node("Cast", ["w"], ["c"], to=FLOAT), helper.make_node("Add", ["x", "c"], ["y"])]
    proto = model(nodes, [tensor("x", [3])], [tensor("y", [3])])
    proto.graph.initializer.append(stored)
    assert network_of(proto)(torch.zeros(3)).tolist() == [1, -2, 3]


def test_texts_matter_only_where_they_are_used() -> None:
    proto = conv_net(2, 8, 8)
    proto.graph.initializer.append(helper.make_tensor("labels", TensorProto.STRING, [1], [b"cat"]))
    assert_same(proto, torch.randn(2, 3, 8, 8))
    proto.graph.node[2].input[0] = "labels"
    with pytest.raises(
        UserError, match="the constant 'labels' that Relu 'act' reads can't be carried over: it holds texts"
    ):
        network_of(proto)
