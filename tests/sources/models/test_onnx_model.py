"""An .onnx file as a Model: opened, compared with ONNX Runtime, saved and loaded again, or refused in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.prune import Prune
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.passes.graph import channel_graph
from pocketfit.passes.prune import prune_channels
from pocketfit.passes.train.fine_tune import replace_head
from pocketfit.sources.models.onnx_model import labels_of
from pocketfit.sources.models.open_model import load_model, open_model, save_model
from tests.sources.onnx.onnx_files import conv_net, in_onnxruntime, model, random, tensor

HALF = Preprocess(height=16, width=24, resize="none", mean=(0.5,) * 3, std=(0.25,) * 3)


def written(proto: onnx.ModelProto, folder: Path, name: str = "net.onnx") -> Path:
    (folder / name).write_bytes(proto.SerializeToString())
    return folder / name


def answers(found: Model, given: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = found.network(given)
    return result


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    proto = conv_net("batch", "height", "width")
    helper.set_model_props(proto, {"names": "{0: 'cat', 1: \"bird's nest\", 2: 'dog', 3: 'owl'}"})
    return written(proto, tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def opened(dynamic: Path) -> Model:
    return open_model(dynamic, input_shape="3x16x24", preprocess=HALF)


def test_a_file_becomes_a_model(dynamic: Path, opened: Model) -> None:
    (given,), (out,) = opened.signature.inputs, opened.signature.outputs
    assert given == TensorSpec("x", (None, 3, 16, 24), "float32", "NCHW")
    assert (out.name, out.shape) == ("y", (None, 4))
    assert opened.labels == ("cat", "bird's nest", "dog", "owl")
    assert any("4 labels are those in the file's metadata ('names')" in finding for finding in opened.findings)
    assert (opened.preprocess.height, opened.preprocess.width) == (16, 24)
    assert (opened.origin.kind, opened.origin.name) == ("onnx", "net.onnx")
    assert opened.origin.arguments == {"x:2": 16, "x:3": 24, "free": 0}
    assert {"stem", "n", "second", "head"} <= {name for name, _ in opened.network.named_modules()}
    x = torch.randn(3, 3, 16, 24)
    (wanted,) = in_onnxruntime(onnx.load(dynamic), x)
    torch.testing.assert_close(answers(opened, x), wanted, rtol=1e-4, atol=1e-5)
    assert channel_graph.trace(opened.network, opened.signature).groups


def test_open_axes_are_asked_for_and_may_come_from_the_preprocessing(dynamic: Path) -> None:
    with pytest.raises(
        UserError, match=r"leaves the size of axes 2 \('height'\), 3 \('width'\) open: say with --input"
    ):
        open_model(dynamic)
    assert open_model(dynamic, preprocess=HALF).signature.inputs[0].shape == (None, 3, 16, 24)
    with pytest.raises(UserError, match=r"size of axis 1 of its input 'x' is 3, and the input shape given is 1x16x24"):
        open_model(dynamic, input_shape="1x16x24")
    with pytest.raises(UserError, match=r"a sample of its input 'x' is 3x.x., and the input shape given is 16x24"):
        open_model(dynamic, input_shape="16x24")
    with pytest.raises(UserError, match="has its own weights and classes: leave out --weights"):
        open_model(dynamic, classes=3)
    with pytest.raises(UserError, match="There are 2 labels, but the network has 4 outputs"):
        open_model(dynamic, input_shape="3x16x24", labels=["a", "b"])


def test_saved_and_loaded_again(opened: Model, tmp_path: Path) -> None:
    pruned = prune_channels.apply(opened, Prune(0.5, multiple=2), None)
    save_model(pruned, tmp_path / "m")
    found = load_model(tmp_path / "m")
    x = torch.randn(2, 3, 16, 24)
    assert torch.equal(answers(found, x), answers(pruned, x))
    assert (found.key, found.origin, found.labels) == (pruned.key, pruned.origin, pruned.labels)
    assert sum(p.numel() for p in found.network.parameters()) < sum(p.numel() for p in opened.network.parameters())
    save_model(found, tmp_path / "again")
    files = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    assert sorted(files) == ["model.json", "model.onnx", "weights.safetensors"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == files
    headed = replace_head(found, ("one", "two", "three"), seed=0)
    save_model(headed, tmp_path / "head")
    assert answers(open_model(tmp_path / "head"), x).shape == (2, 3)


def test_damaged_folders_are_sentences(opened: Model, tmp_path: Path) -> None:
    save_model(opened, tmp_path / "m")
    file, about = tmp_path / "m/model.onnx", tmp_path / "m/model.json"
    whole, told = file.read_bytes(), json.loads(about.read_text())
    file.write_bytes(conv_net(1, 8, 8).SerializeToString())
    with pytest.raises(UserError, match=r"model\.onnx"):
        load_model(tmp_path / "m")
    file.unlink()
    with pytest.raises(UserError, match=r"There is no .*model\.onnx, from which the network is built"):
        load_model(tmp_path / "m")
    file.write_bytes(whole)
    for origin, words in (
        ({"sha256": "0" * 64}, "is not the file that the model was made from"),
        ({"sha256": "evil"}, "give 64 hexadecimal digits"),
        ({"arguments": {"x:2": 16, "x:3": 10**9, "free": 0}}, "larger than"),
        ({"arguments": {"y:2": 16, "free": 0}}, "no dynamic axis 'y:2'"),
        ({"arguments": {"x:2": 16, "x:3": 24, "free": 7}}, "its batch is another one"),
    ):
        about.write_text(json.dumps({**told, "origin": {**told["origin"], **origin}}))
        with pytest.raises(UserError, match=words) as refusal:
            load_model(tmp_path / "m")
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("target", [[-1, 24], [1, 24], [1, -1]])
def test_a_fixed_batch_is_freed(target: list[int], tmp_path: Path) -> None:
    """Networks that torch exports at one sample have the batch in the targets of their reshapes."""
    nodes = [
        helper.make_node("Conv", ["x", "c.weight"], ["a"], "c", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Reshape", ["a", "target"], ["b"], "flat"),
        helper.make_node("Gemm", ["b", "fc.weight"], ["y"], "fc", transB=1),
    ]
    stored = {"c.weight": random(6, 3, 3, 3), "target": np.array(target), "fc.weight": random(5, 24)}
    proto = model(nodes, [tensor("x", [1, 3, 4, 4])], [tensor("y", [1, 5])], stored)
    found = open_model(written(proto, tmp_path))
    assert found.signature.inputs[0].shape == (None, 3, 4, 4) and found.origin.arguments["free"] in (1, 2)
    x = torch.randn(3, 3, 4, 4)
    wanted = torch.cat([in_onnxruntime(proto, row[None])[0] for row in x])
    torch.testing.assert_close(answers(found, x), wanted, rtol=1e-4, atol=1e-5)
    save_model(found, tmp_path / "m")
    assert torch.equal(answers(load_model(tmp_path / "m"), x), answers(found, x))


def test_a_batch_that_cannot_be_freed_is_said(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "m"),
        helper.make_node("Reshape", ["a", "target"], ["b"], "turn"),
        helper.make_node("Reshape", ["b", "back"], ["y"], "back"),
    ]
    stored = {"w": random(6, 8), "target": np.array([2, 2, 4]), "back": np.array([2, 8])}
    proto = model(nodes, [tensor("x", [2, 6])], [tensor("y", [2, 8])], stored)
    assert open_model(written(proto, tmp_path, "two.onnx")).origin.arguments["free"] in (1, 2)
    stored["target"] = np.array([4, 4])
    nodes[1:] = [
        helper.make_node("Reshape", ["a", "target"], ["b"], "turn"),
        helper.make_node("Softmax", ["b"], ["c"], "s", axis=0),
        helper.make_node("Reshape", ["c", "back"], ["y"], "back"),
    ]
    proto = model(nodes, [tensor("x", [2, 6])], [tensor("y", [2, 8])], stored)
    with pytest.raises(UserError, match=r"its batch is fixed to 2 and can't be freed: export it with a dynamic batch"):
        open_model(written(proto, tmp_path))


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    stored = {"fc.weight": random(5, 6).astype(np.float16)}
    nodes = [
        helper.make_node("Gemm", ["x", "fc.weight"], ["a"], "fc", transB=1),
        helper.make_node("Cast", ["a"], ["b"], "up", to=TensorProto.FLOAT),
        helper.make_node("Relu", ["b"], ["c"], "act"),
        helper.make_node("Cast", ["c"], ["y"], "down", to=TensorProto.FLOAT16),
    ]
    kind = TensorProto.FLOAT16
    proto = model(nodes, [tensor("x", ["n", 6], kind)], [tensor("y", ["n", 5], kind)], stored)
    found = open_model(written(proto, tmp_path))
    assert "The file's numbers are float16: the network computes in float32." in found.findings
    assert {p.dtype for p in found.network.parameters()} == {torch.float32}
    assert found.signature.inputs[0].dtype == found.signature.outputs[0].dtype == "float32"
    x = torch.randn(2, 6)
    (wanted,) = in_onnxruntime(proto, x.half())
    torch.testing.assert_close(answers(found, x), wanted.float(), rtol=1e-2, atol=1e-2)


def test_several_outputs_keep_their_names_and_integers_are_an_input(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["a"], "look"),
        helper.make_node("ReduceMean", ["a"], ["b"], "pool", axes=[1], keepdims=0),
        helper.make_node("MatMul", ["b", "head.weight"], ["scores"], "head"),
    ]
    stored = {"words": random(20, 8), "head.weight": random(8, 3)}
    inputs, outputs = (
        [tensor("ids", ["n", "t"], TensorProto.INT64)],
        [tensor("scores", ["n", 3]), tensor("b", ["n", 8])],
    )
    found = open_model(written(model(nodes, inputs, outputs, stored), tmp_path), input_shape="7")
    assert found.signature == Signature(
        (TensorSpec("ids", (None, 7), "int64"),), (TensorSpec("scores", (None, 3)), TensorSpec("b", (None, 8)))
    )
    save_model(found, tmp_path / "m")
    assert load_model(tmp_path / "m").key == found.key


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.graph.node.append(helper.make_node("NoSuch", ["y"], ["z"], "odd")), "operator NoSuch 'odd'"),
        (lambda p: p.graph.input.append(tensor("mask", [3, 4])), "its inputs .x, mask. have different batches"),
        (lambda p: p.graph.initializer[0].dims.__setitem__(0, 2**40), "weights"),
        (lambda p: setattr(p.graph.node[6], "input", ["y"]), "circle"),
    ],
)
def test_what_cannot_be_opened_is_named(change: Any, words: str, tmp_path: Path) -> None:
    proto = conv_net("n", 16, 16)
    try:
        change(proto)
    except AttributeError:  # a list of protobuf is changed in place
        proto.graph.node[6].input[0] = "y"
    with pytest.raises(UserError, match=words) as refusal:
        open_model(written(proto, tmp_path))
    assert "\n" not in str(refusal.value) and "net.onnx" in str(refusal.value)


@pytest.mark.parametrize("location", ["../w.bin", "w.bin", "/etc/hostname", "link.bin"])
def test_weights_outside_of_the_folder_are_not_read(location: str, tmp_path: Path) -> None:
    proto = conv_net("n", 16, 16)
    weight = proto.graph.initializer[0]
    raw = numpy_helper.to_array(weight).tobytes()
    (tmp_path / "a").mkdir()
    (tmp_path / "w.bin").write_bytes(raw)
    (tmp_path / "a/link.bin").symlink_to(tmp_path / "w.bin")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    path = written(proto, tmp_path / "a")
    if location != "w.bin":
        with pytest.raises(UserError, match="outside of the folder of the file"):
            open_model(path)
        return
    with pytest.raises(UserError, match=r"the file 'w\.bin' with its weights 'stem\.weight' is not there"):
        open_model(path)
    shutil.copy(tmp_path / "w.bin", tmp_path / "a/w.bin")
    found = open_model(path)
    save_model(found, tmp_path / "m")
    assert load_model(tmp_path / "m").key == found.key
    assert not any(
        t.data_location == TensorProto.EXTERNAL for t in onnx.load(tmp_path / "m/model.onnx").graph.initializer
    )


def test_labels_in_the_metadata() -> None:
    def signature(*shape: int | None) -> Signature:
        return Signature((TensorSpec("x", (None, 3, 8, 8)),), (TensorSpec("y", shape),))

    assert labels_of({"character": "a\nb\n"}, signature(None, 7, 4))[0] == ("blank", "a", "b", " ")
    for metadata, shape, words in (
        ({"character": "a\nb"}, (None, 7, 5), "name 4 labels ('character')"),
        ({"names": "{0: 'a', 1: 'a'}"}, (None, 2), "a twice"),
        ({"names": "{0: 'a', 1: ''}"}, (None, 2), "an empty one"),
        ({"names": "{0: 'a', 1: 'b'}"}, (None, 2, 8, 8), "name 2 labels"),
    ):
        found, said = labels_of(metadata, signature(*shape))
        assert found == () and words in said[0] and "give --labels" in said[0]
    for text in ("x", "{1: 'a'}", "{0: f()}", "{" * 10**5, "{0: 'a', 0: 'b'}" * 10**5):
        assert labels_of({"names": text}, signature(None, 1))[0] == ()


def test_a_state_that_an_output_feeds_is_refused_by_name(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, 8] x, float[1, batch, 8] state) => (float[batch, 8] y, float[1, batch, 8] stateN) {
            stateN = Add(x, state) y = Tanh(x) }""")
    with pytest.raises(UserError, match="'state' is a state, which its output 'stateN' gives for the next step"):
        open_model(written(proto, tmp_path))
