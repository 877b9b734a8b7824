"""The whole road, with its child process: open, compare, refuse."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from pocketfit.core.errors import UserError
from pocketfit.sources.onnx import compare
from pocketfit.sources.onnx import open as opening
from pocketfit.sources.onnx.file.graph import Graph, Value
from pocketfit.sources.onnx.open import Converted, check_against_onnxruntime, open_onnx
from tests.sources.onnx.onnx_files import conv_net, model, tensor


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    proto = conv_net("batch", "height", "width")
    helper.set_model_props(proto, {"character": "a\nb"})
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture(scope="module")
def converted(file: Path) -> Converted:
    return open_onnx(file, sizes={"width": 16})


def test_what_is_known_of_an_opened_file(file: Path, converted: Converted) -> None:
    (picture,) = converted.signature.inputs
    assert (picture.name, picture.shape, picture.dtype, picture.layout) == ("x", (None, 3, None, 16), "float32", "NCHW")
    assert converted.axes == {"x": {0: "batch", 2: "height"}}
    assert converted.signature.outputs[0].shape == (None, 4)
    assert converted.metadata == {"character": "a\nb"}
    assert converted.difference is not None and 0 <= converted.difference < 1e-5
    assert converted.findings == ()
    assert converted.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert converted.network(torch.randn(2, 3, 8, 16)).shape == (2, 4)


def test_a_changed_network_is_told_from_its_file(file: Path, converted: Converted) -> None:
    pictures = torch.randn(2, 3, 8, 16)
    assert check_against_onnxruntime(file, converted.network, [pictures]) < 1e-5
    wrong = open_copy(converted)
    with torch.no_grad():
        wrong.second.bias += 0.5
    wanted = [converted.network(pictures).detach().numpy()]
    with pytest.raises(UserError, match=r"its output 'y' differs from ONNX Runtime's by [\d.]+ of its range"):
        compare.differences(wrong, [pictures], wanted, ["y"], [0.0])
    with pytest.raises(UserError, match=r"its output 'y' has the shape \[2, 4\], in ONNX Runtime \[1, 4\]"):
        compare.differences(wrong, [pictures], [wanted[0][:1]], ["y"], [0.0])


def open_copy(converted: Converted) -> torch.fx.GraphModule:
    import copy

    return copy.deepcopy(converted.network)


def test_files_that_cannot_be_opened_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nothing\.onnx is no file"):
        open_onnx(tmp_path / "nothing.onnx")
    (tmp_path / "loop.onnx").write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise UserError("the operator Loop 'l' is a loop")

    monkeypatch.setattr("pocketfit.processes.child_process.call", refuse)
    with pytest.raises(UserError, match=r"loop\.onnx: the operator Loop 'l' is a loop"):
        open_onnx(tmp_path / "loop.onnx")


def test_the_end_of_the_child_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETFIT_FORK_SERVER", "0")  # a fork would be done before its time limit is looked at
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"x\.onnx can't be opened: reading it was stopped after 0 s, its time limit"):
        open_onnx(tmp_path / "x.onnx", timeout_s=0.0)
    assert opening._plainly("The step sources.onnx.child.prepare died with exit status -11").endswith("exit status -11")


@pytest.mark.parametrize(("answer", "wanted", "off"), [
    ([1.0, 2.0], [1.0, 2.0], 0.0), ([1.0, 2.1], [1.0, 2.0], 0.05), ([np.inf, 1.0], [np.inf, 1.0], 0.0),
    ([np.nan], [np.nan], 0.0), ([np.nan], [1.0], np.nan), ([], [], 0.0),
])  # fmt: skip
def test_differences_are_parts_of_the_range(answer: list[float], wanted: list[float], off: float) -> None:
    got = compare.relative(torch.tensor(answer), torch.tensor(wanted))
    assert got == pytest.approx(off, rel=1e-4, nan_ok=True)


def test_trials_try_several_sizes_and_kinds_of_numbers() -> None:
    graph = Graph((Value("ids", "int64", ("n", "t")), Value("x", "float32", (None, 3, "h", "w"))), (), (), {})
    tried = list(compare.trials(graph))
    assert len(tried) == len(compare.SIZES) * len(compare.TOKENS)
    assert {tuple(t["ids"].shape) for t in tried} >= {(1, 16), (3, 24)}
    assert tried[0]["ids"].dtype == torch.int64 and int(tried[0]["ids"].max()) > 9
    assert all(t["ids"].shape[0] == t["x"].shape[0] for t in tried)


def test_parameters_without_gradient_are_said(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a.weight"], ["a"]),
        helper.make_node("ArgMax", ["a"], ["i"], axis=1),
        helper.make_node("MatMul", ["x", "b.weight"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    stored = {name: rng.standard_normal((3, 4)).astype(np.float32) for name in ("a.weight", "b.weight")}
    outputs = [tensor("i", [2, 1], onnx.TensorProto.INT64), tensor("y", [2, 4])]
    path = tmp_path / "x.onnx"
    path.write_bytes(model(nodes, [tensor("x", [2, 3])], outputs, stored).SerializeToString())
    from pocketfit.sources.onnx.file.child import prepared

    _, about = prepared(path, {}, {}, check=True)
    assert about["findings"] == ["No gradient reaches a.weight: training leaves them as they are"]
    assert about["difference"] < 1e-5
