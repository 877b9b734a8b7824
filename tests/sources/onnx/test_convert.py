"""The network that a file becomes: sizes stay numbers, layers have names, channels may be pruned later."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.passes.graph import channel_graph
from pocketfit.sources.onnx.convert import convert
from pocketfit.sources.onnx.file.specialise import specialise
from tests.sources.onnx.onnx_files import INT, assert_same, conv_net, graph_of, model, network_of, random, tensor

node = helper.make_node
Built = tuple[list[onnx.NodeProto], dict[str, Any]]


def test_answers_as_onnxruntime_at_any_size() -> None:
    proto = conv_net()
    for shape in ((1, 3, 16, 16), (3, 3, 10, 24)):
        assert_same(proto, torch.randn(shape))


def test_torch_export_follows_with_dynamic_axes_and_the_file_of_it_is_the_same() -> None:
    network = network_of(conv_net())
    dim = torch.export.Dim.DYNAMIC
    program = torch.export.export(network, (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: dim, 2: dim, 3: dim},))
    other = torch.randn(5, 3, 8, 20)
    assert torch.equal(program.module()(other), network(other))


def test_layers_are_called_by_their_weights_and_all_of_them_train() -> None:
    network = network_of(conv_net())
    kinds = {name: type(module).__name__ for name, module in network.named_modules() if not list(module.children())}
    assert kinds["stem"] == "Conv2d" and kinds["n"] == "BatchNorm2d" and kinds["head"] == "Linear"
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not network.training


def pruned(network: Any, half: Sequence[str], reads: Sequence[str]) -> Any:
    """Half of the outputs of the first layers, and of the inputs of the others, cut by hand."""
    network = copy.deepcopy(network)
    for name in half:
        layer = network.get_submodule(name)
        for key in ("weight", "bias", "running_mean", "running_var"):
            numbers = getattr(layer, key, None)
            if numbers is not None:
                cut = numbers[: len(numbers) // 2].detach().clone()
                setattr(layer, key, nn.Parameter(cut) if isinstance(numbers, nn.Parameter) else cut)
    for name in reads:
        layer = network.get_submodule(name)
        layer.weight = nn.Parameter(layer.weight[:, : layer.weight.shape[1] // 2].detach().clone())
    return network


def test_a_shuffle_holds_for_fewer_channels() -> None:
    """The file says 2 x 4 and 8; after pruning there are 2 x 2 and 4."""
    network = network_of(conv_net())
    small = pruned(network, ["stem", "n"], ["second"])
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 4)
    picture = Signature((TensorSpec("x", (None, 3, 8, 8), "float32", "NCHW"),), ())
    found = channel_graph.trace(network, picture)
    assert {"stem", "second"} <= {name for group in found.groups if group.prunable for name in group.layers}


def attention() -> onnx.ModelProto:
    """[batch, steps, 12] -> 3 heads of 4, as exporters write it with numbers in the file."""
    nodes = [node("MatMul", ["x", f"{n}.weight"], [n], n) for n in "qkv"]
    nodes += [node("Reshape", [n, "apart"], [f"{n}1"], f"{n}_apart") for n in "qkv"]
    nodes += [node("Transpose", [f"{n}1"], [f"{n}2"], perm=[0, 2, 3, 1] if n == "k" else [0, 2, 1, 3]) for n in "qkv"]
    nodes += [
        node("MatMul", ["q2", "k2"], ["scores"]),
        node("Softmax", ["scores"], ["shares"], axis=-1),
        node("MatMul", ["shares", "v2"], ["mixed"]),
        node("Transpose", ["mixed"], ["turned"], perm=[0, 2, 1, 3]),
        node("Reshape", ["turned", "whole"], ["joined"], "joined"),
        node("MatMul", ["joined", "out.weight"], ["made"], "out"),
        node("Add", ["out.bias", "made"], ["y"], "bias"),
    ]
    stored = {f"{n}.weight": random(12, 12, seed=i) for i, n in enumerate(("q", "k", "v", "out"))}
    stored |= {"out.bias": random(12), "apart": np.array([0, 0, 3, 4]), "whole": np.array([0, 0, 12])}
    shape = ["batch", "steps", 12]
    return model(nodes, [tensor("x", shape)], [tensor("y", shape)], stored)


def test_heads_follow_when_they_are_pruned() -> None:
    proto = attention()
    network = assert_same(proto, torch.randn(2, 5, 12))
    assert isinstance(network.out, nn.Linear) and network.out.bias is not None  # the sum became its bias
    small = copy.deepcopy(network)
    for name in "qkv":  # the last of three heads goes
        small.get_submodule(name).weight = nn.Parameter(small.get_submodule(name).weight[:8].detach())
    small.out.weight = nn.Parameter(small.out.weight[:, :8].detach())
    assert small(torch.randn(2, 5, 12)).shape == (2, 5, 12)


@pytest.mark.parametrize(("before", "after"), [
    ([2, 6, 4, 5], [2, 6, 20]), ([2, 6, 20], [2, 6, 4, 5]), ([2, 6], [2, 6, 1, 1]), ([2, 6, 1, 1], [2, 6]),
    ([2, 6, 4], [12, 4]), ([12, 4], [2, 6, 4]), ([2, 6, 4], [8, 6]), ([2, 6], [12]), ([12], [3, 2, 2]),
    ([2, 1, 6], [2, 6, 1]), ([4, 6], [2, 2, 3, 2]), ([2, 6, 4], [2, 6, 4]), ([1], [1, 1, 1]),
])  # fmt: skip
@pytest.mark.parametrize("dynamic", [False, True])
def test_every_reshape_is_what_the_file_says(before: list[int], after: list[int], dynamic: bool) -> None:
    target = [-1, *after[1:]] if dynamic else after
    nodes = [node("Reshape", ["x", "target"], ["y"])]
    given = tensor("x", ["n", *before[1:]] if dynamic else before)
    proto = model(nodes, [given], [tensor("y", ["m", *after[1:]])], {"target": np.array(target)})
    assert_same(proto, torch.randn(before))
    if dynamic and before[0] == after[0]:
        assert_same(proto, torch.randn(3 * before[0], *before[1:]))


def test_sizes_are_computed_as_numbers() -> None:
    """Shape -> Gather -> Mul -> Div -> Concat -> Expand, and a range over a size."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "one"], ["width"]),
        node("Mul", ["width", "six"], ["six_widths"]),
        node("Div", ["six_widths", "three"], ["two_widths"]),
        node("Unsqueeze", ["two_widths", "zeros"], ["list"]),
        node("Concat", ["list", "ones"], ["target"], axis=0),
        node("Expand", ["row", "target"], ["wide"]),
        node("Range", ["zero", "width", "one"], ["steps"]),
        node("Cast", ["steps"], ["floats"], to=TensorProto.FLOAT),
        node("Add", ["x", "floats"], ["y"]),
    ]
    stored = {"one": np.array(1), "six": np.array(6), "three": np.array(3), "zero": np.array(0)}
    stored |= {"zeros": np.array([0]), "ones": np.array([1]), "row": random(1, 3)}
    proto = model(nodes, [tensor("x", ["n", "w"])], [tensor("y", ["n", "w"]), tensor("wide", ["a", 3])], stored)
    network = assert_same(proto, torch.randn(2, 5))
    assert_same(proto, torch.randn(4, 7))
    dim = torch.export.Dim.DYNAMIC
    program = torch.export.export(network, (torch.randn(2, 5),), dynamic_shapes=({0: dim, 1: dim},))
    assert program.module()(torch.randn(3, 9))[1].shape == (18, 3)


def test_what_is_trained_and_what_is_not() -> None:
    """A scale behind a layer is; one number, a mask, a grid, the means of a preprocessing are not."""
    stored: dict[str, Any] = {
        "mean": random(1, 3, 1, 1),
        "w.weight": random(4, 3, 1, 1),
        "scale": random(4, 1, 1),
        "half": np.array([0.37], np.float32),
        "grid": np.arange(6, dtype=np.float32).reshape(1, 1, 1, 6),
        "mask": np.array([0, -np.inf, 0, 0, 0, 0], np.float32),
    }
    names = ["x", "mean", "w.weight", "scale", "half", "grid", "mask"]
    nodes = [node("Sub", ["x", "mean"], ["1"]), node("Conv", ["1", "w.weight"], ["2"])]
    nodes += [node("Mul", [str(i), names[i + 1]], [str(i + 1)]) for i in (2, 3)]
    nodes += [node("Add", [str(i), names[i + 1]], [str(i + 1) if i < 5 else "y"]) for i in (4, 5)]
    proto = model(nodes, [tensor("x", [2, 3, 5, 6])], [tensor("y", [2, 4, 5, 6])], stored)
    network = assert_same(proto, torch.randn(2, 3, 5, 6))
    assert {name for name, _ in network.named_parameters()} == {"w.weight", "scale"}
    assert {name for name, _ in network.named_buffers()} == {"mean", "grid", "mask"}


def test_shared_weights_stay_shared_and_get_no_bias_of_one_use() -> None:
    nodes = [node("MatMul", ["x", "w.weight"], ["a"]), node("MatMul", ["a", "w.weight"], ["b"])]
    nodes.append(node("Add", ["b", "c"], ["y"]))
    proto = model(nodes, [tensor("x", [2, 3])], [tensor("y", [2, 3])], {"w.weight": random(3, 3), "c": random(3)})
    network = assert_same(proto, torch.randn(2, 3))
    assert [name for name, module in network.named_modules() if isinstance(module, nn.Linear)] == ["w"]


def test_equal_numbers_that_were_stored_once_are_no_shared_layer() -> None:
    """Two layer norms with the same scale: one place each in torch, and biases of their own."""
    nodes = [node("LayerNormalization", ["x", "n1.weight", "n1.bias"], ["a"], "/n1/LayerNormalization")]
    nodes += [node("LayerNormalization", ["a", "n1.weight", "n2.bias"], ["b"], "/n2/LayerNormalization")]
    nodes += [node("LayerNormalization", ["b", "n1.weight", "n1.bias"], ["y"], "/n3/LayerNormalization")]
    stored = {"n1.weight": np.ones(6, np.float32), "n1.bias": random(6), "n2.bias": random(6, seed=1)}
    network = assert_same(model(nodes, [tensor("x", [2, 6])], [tensor("y", [2, 6])], stored), torch.randn(2, 6))
    assert [name for name, module in network.named_modules() if isinstance(module, nn.LayerNorm)] == ["n1", "n2", "n3"]


def branch(*nodes: onnx.NodeProto, name: str = "g") -> onnx.GraphProto:
    return helper.make_graph(list(nodes), name, [], [tensor(nodes[-1].output[0], [2])])


def test_branches_that_are_decided_are_taken_others_are_named() -> None:
    then = branch(node("Neg", ["x"], ["t"]))
    otherwise = branch(node("Exp", ["x"], ["e"]))
    nodes = [
        node("Equal", ["rate", "fast"], ["is_fast"]),
        node("If", ["is_fast"], ["y"], "choice", then_branch=then, else_branch=otherwise),
    ]
    proto = model(nodes, [tensor("x", [2]), tensor("rate", [], INT)], [tensor("y", [2])], {"fast": np.array(16)})
    with pytest.raises(UserError, match=r"If 'choice' can't be carried over.*fix the input that decides it"):
        network_of(proto)
    x = torch.randn(2)
    for rate, wanted in ((16, -x), (8, x.exp())):
        network, _ = convert(specialise(graph_of(proto), {}, {"rate": rate}))
        assert torch.equal(network(x), wanted)
    with pytest.raises(UserError, match=r"no input 'speed' that could be fixed; its inputs are 'x', 'rate'"):
        specialise(graph_of(proto), {}, {"speed": 1})


def test_axes_are_fixed_by_name() -> None:
    graph = specialise(graph_of(conv_net()), {"height": 16, "x:3": 8}, {})
    assert graph.inputs[0].shape == ("batch", 3, 16, 8)
    with pytest.raises(UserError, match="no dynamic axis 'hight'; it has 'batch', 'height', 'width'"):
        specialise(graph_of(conv_net()), {"hight": 16}, {})


@pytest.mark.parametrize(("operator", "words"), [
    ("QLinearConv", "take the float network"), ("Loop", "fixed number of steps"), ("NoSuch", "extract_model"),
    ("NonMaxSuppression", "picks boxes"), ("RandomNormal", "random numbers"), ("StringConcat", "works on texts"),
])  # fmt: skip
def test_operators_that_are_not_carried_are_named_with_a_way_out(operator: str, words: str) -> None:
    proto = model([node(operator, ["x"], ["y"], "place")], [tensor("x", [2])], [tensor("y", [2])])
    with pytest.raises(UserError, match=f"the operator {operator} 'place' .*{words}"):
        network_of(proto)


def test_an_operator_of_another_domain_is_named_with_it() -> None:
    proto = model([node("Thing", ["x"], ["y"], "t", domain="com.x")], [tensor("x", [2])], [tensor("y", [2])])
    with pytest.raises(UserError, match=r"the operator com\.x\.Thing 't' is no standard operator of ONNX"):
        network_of(proto)


@pytest.mark.parametrize(("operator", "stored", "attributes"), [
    ("ConstantOfShape", [np.array([2**40, 2**20])], {}),
    ("Pad", [None, np.array([0, 2**40])], {}),
    ("Expand", [None, np.array([2**50, 2])], {}),
    ("Tile", [None, np.array([2**50])], {}),
    ("Range", [np.array(0), np.array(2**60), np.array(1)], {}),
    ("EyeLike", [None], {"dtype": 99}),
])  # fmt: skip
def test_sizes_beyond_any_memory_are_refused_before_they_are_allocated(
    operator: str, stored: list[Any], attributes: dict[str, Any]
) -> None:
    names = ["x" if array is None else f"c{i}" for i, array in enumerate(stored)]
    constants = {name: array for name, array in zip(names, stored, strict=True) if array is not None}
    nodes = [node(operator, names, ["y"], "big", **attributes)]
    proto = model(nodes, [tensor("x", [2])], [tensor("y", ["n"])], constants)
    with pytest.raises(UserError, match=f"{operator} 'big'"):
        network_of(proto)


def test_hostile_names_become_harmless_ones() -> None:
    evil = "x'); __import__('os').system('echo'); ('"
    nodes = [node("MatMul", [evil, "train.weight"], ["class"]), node("Relu", ["class"], ["self"])]
    stored = {"train.weight": random(3, 4)}
    proto = model(nodes, [tensor(evil, [2, 3])], [tensor("self", [2, 4])], stored)
    network = network_of(proto)
    assert "system(" not in network.code.replace("__", "") and network(torch.ones(2, 3)).shape == (2, 4)


def lstm(kind: str, gates: int, **attributes: Any) -> onnx.ModelProto:
    both = attributes.get("direction") == "bidirectional"
    nodes = [node(kind, ["x", "w", "r", "b"], ["y", "last"], kind, hidden_size=5, **attributes)]
    stored = {
        "w": random(1 + both, gates * 5, 3),
        "r": random(1 + both, gates * 5, 5),
        "b": random(1 + both, 2 * gates * 5),
    }
    return model(
        nodes,
        [tensor("x", ["t", "n", 3])],
        [tensor("y", ["t", 1 + both, "n", 5]), tensor("last", [1 + both, "n", 5])],
        stored,
    )


@pytest.mark.parametrize(("kind", "gates", "attributes"), [
    ("LSTM", 4, {}), ("LSTM", 4, {"direction": "reverse"}), ("LSTM", 4, {"direction": "bidirectional"}),
    ("GRU", 3, {"linear_before_reset": 1}), ("RNN", 1, {"activations": ["Relu"]}),
])  # fmt: skip
def test_recurrent_layers_are_torch_s_own(kind: str, gates: int, attributes: dict[str, Any]) -> None:
    network = assert_same(lstm(kind, gates, **attributes), torch.randn(4, 2, 3))
    assert any(isinstance(module, nn.RNNBase) for module in network.modules())


def test_integers_that_stand_for_weights_become_floats() -> None:
    nodes = [
        node("DequantizeLinear", ["w", "scale", "zero"], ["wf"], axis=0),
        node("Conv", ["x", "wf"], ["y"], "c"),
    ]
    stored = {
        "w": np.arange(-6, 6, dtype=np.int8).reshape(4, 3, 1, 1),
        "scale": random(4),
        "zero": np.zeros(4, np.int8),
    }
    proto = model(nodes, [tensor("x", [1, 3, 4, 4])], [tensor("y", [1, 4, 4, 4])], stored)
    network = assert_same(proto, torch.randn(1, 3, 4, 4))
    assert [name for name, _ in network.named_parameters()] == ["conv.weight"]


def test_a_size_that_decides_a_branch_is_said() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Greater", ["n", "zero"], ["many"]),
        node(
            "If",
            ["many"],
            ["y"],
            then_branch=branch(node("Neg", ["x"], ["t"])),
            else_branch=branch(node("Exp", ["x"], ["e"])),
        ),
    ]
    graph = graph_of(model(nodes, [tensor("x", ["n", 2])], [tensor("y", ["n", 2])], {"zero": np.array(0)}))
    network, findings = convert(graph)
    assert torch.equal(network(torch.ones(3, 2)), -torch.ones(3, 2)) and findings == ()
    graph = graph_of(model(nodes, [tensor("x", ["n", 2])], [tensor("y", ["n", 2])], {"zero": np.array(3)}))
    with pytest.raises(UserError, match="Gather"):
        convert(graph)


def test_stored_weights_of_older_files() -> None:
    """Paddle's files hold weights in Constant nodes, and biases as sums behind layers."""
    weight = numpy_helper.from_array(random(4, 3, 1, 1), "")
    bias = numpy_helper.from_array(random(4), "")
    nodes = [
        node("Constant", [], ["conv2d_0.w_0"], value=weight),
        node("Conv", ["x", "conv2d_0.w_0"], ["a"]),
        node("Constant", [], ["conv2d_0.b_0"], value=bias),
        node("Constant", [], ["shape"], value=numpy_helper.from_array(np.array([1, -1, 1, 1]), "")),
        node("Reshape", ["conv2d_0.b_0", "shape"], ["b"]),
        node("Add", ["a", "b"], ["y"]),
    ]
    network = assert_same(
        model(nodes, [tensor("x", [1, 3, 4, 4])], [tensor("y", [1, 4, 4, 4])]), torch.randn(1, 3, 4, 4)
    )
    assert [name for name, _ in network.named_parameters()] == ["conv2d_0.weight", "conv2d_0.bias"]


@pytest.mark.parametrize("end", [999_999_999, 2**31 - 1, 2**63 - 1])
def test_a_slice_to_the_end_says_nothing_about_the_size(end: int) -> None:
    nodes = [helper.make_node("Slice", ["x", "start", "end", "axis"], ["y"], "part")]
    stored = {"start": np.array([1]), "end": np.array([end]), "axis": np.array([0])}
    network = assert_same(model(nodes, [tensor("x", ["n", 3])], [tensor("y", ["m", 3])], stored), torch.randn(4, 3))
    assert str(end) not in network.code
