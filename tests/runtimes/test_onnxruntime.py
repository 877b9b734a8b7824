from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_net import SIDE, pictures, tiny_model
from torch import nn

from pocketfit.core.artifact import Artifact
from pocketfit.core.errors import ExportFailed, MissingPackage, UserError
from pocketfit.core.model import Model
from pocketfit.core.plan import ExportSettings, Plan
from pocketfit.core.samples import Samples
from pocketfit.runtimes import onnx_file, require
from pocketfit.runtimes import onnxruntime as runtime

Exported = Callable[[ExportSettings], Artifact]
FLOAT = ExportSettings("onnxruntime")
U8S8 = ExportSettings("onnxruntime", "int8", "uint8")


def graph_file(path: Path, nodes: list, inputs: dict, outputs: dict, constants: dict) -> Path:
    """A small .onnx made by hand; inputs and outputs are name -> (elem_type, shape)."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *about) for name, about in inputs.items()],
        [helper.make_tensor_value_info(name, *about) for name, about in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return path


def test_the_float_file_is_made_once(exported: Exported, model: Model, work: Path) -> None:
    exported(FLOAT)
    before = (work / f"{model.key}.onnx").stat().st_mtime_ns
    exported(U8S8)
    assert (work / f"{model.key}.onnx").stat().st_mtime_ns == before


def test_names_are_torchs_and_nothing_of_this_machine_is_in_the_file(exported: Exported) -> None:
    path = Path(exported(FLOAT).path)
    model = onnx.load(path)
    assert {"stem.0.weight", "stem.0.bias", "head.weight"} <= {tensor.name for tensor in model.graph.initializer}
    assert {"stem.0/Conv", "head/Gemm"} <= {node.name for node in model.graph.node}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    data = path.read_bytes()
    assert str(Path(torch.__file__).parent.parent).encode() not in data
    assert b"conftest.py" not in data
    assert b"forward" not in data


def test_a_linear_layer_over_tokens_keeps_its_name(tmp_path: Path) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 4, 4)
            self.mix = nn.Linear(8, 5)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.mix(self.stem(image).flatten(2).transpose(1, 2)).mean(1)

    model = tiny_model(Tokens(), sha256="tokens")
    artifact = runtime.export(model, Plan((), FLOAT), None, tmp_path / "a.onnx", work=tmp_path)
    op = {op.layer: op for op in runtime.inspect(Path(artifact.path)).ops}["mix"]
    assert (op.type, op.macs, op.weight_bytes) == ("MatMul", (SIDE // 4) ** 2 * 8 * 5, 160)


def test_a_layer_kept_in_float_is_run_in_float(exported: Exported) -> None:
    """ONNX Runtime quantizes a float layer between QDQ pairs while loading, unless something stands in the way."""
    settings = replace(U8S8, keep_float=("project.0", "head"))
    costs = runtime.profile(Path(exported(settings).path), {"image": pictures(1)}, runs=3)
    ops = runtime.inspect(Path(exported(settings).path)).ops
    kinds = {ops[cost.index].layer: cost.type for cost in costs if cost.index >= 0 and ops[cost.index].layer}
    assert kinds["project.0"] in ("Conv", "FusedConv")
    assert kinds["head"] in ("Gemm", "FusedGemm")
    assert kinds["stem.0"] == "QLinearConv"


def test_what_was_not_fused_is_said(exported: Exported) -> None:
    """Each convolution is a QLinearConv in the profile, or a note says how many are not."""
    for settings in (U8S8, replace(U8S8, activations="int8")):
        artifact = exported(settings)
        costs = runtime.profile(Path(artifact.path), {"image": pictures(1)}, runs=3)
        integer = sum(cost.type == "QLinearConv" for cost in costs)
        said = [note for note in artifact.notes if f"fused {integer} of 3 quantized convolutions" in note]
        assert bool(said) == (integer < 3)


def test_float16_runs_the_same_kernels_as_float32(exported: Exported) -> None:
    half = exported(ExportSettings("onnxruntime", "float16"))
    whole = exported(FLOAT)
    types = [
        [cost.type for cost in runtime.profile(Path(artifact.path), {"image": pictures(1)}, runs=2)]
        for artifact in (half, whole)
    ]
    assert types[0] == types[1]


def test_weights_beyond_float16_are_refused(model: Model, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 5))
    with torch.no_grad():
        network[1].weight[0, 0] = 1e6
    broken = replace(model, network=network.eval(), sha256="large")
    plan = Plan((), ExportSettings("onnxruntime", "float16"))
    with pytest.raises(ExportFailed, match=r"'1\.weight' holds values beyond 65504"):
        runtime.export(broken, plan, None, tmp_path / "a.onnx", work=tmp_path / "work")
    assert not (tmp_path / "a.onnx").exists()


def test_an_operator_without_onnx_form_is_named(model: Model, tmp_path: Path) -> None:
    class Special(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.special.i1(image).mean((2, 3))

    broken = replace(model, network=nn.Sequential(Special()), sha256="special")
    with pytest.raises(ExportFailed, match=r"prims\.bessel_i1") as caught:
        runtime.export(broken, Plan((), FLOAT), None, tmp_path / "a.onnx", work=tmp_path / "work")
    assert len(str(caught.value)) < 500
    assert not list(tmp_path.rglob("*.onnx"))


@pytest.mark.parametrize(("layer", "end"), [("stem.0", "take"), ("head", "give")])
def test_integer_ends_need_integer_layers(
    *, layer: str, end: str, model: Model, calibration: Samples, exported: Exported, work: Path, tmp_path: Path
) -> None:
    exported(FLOAT)
    plan = Plan((), replace(U8S8, io="uint8", keep_float=(layer,)))
    with pytest.raises(ExportFailed, match=f"cannot {end} integers"):
        runtime.export(model, plan, calibration, tmp_path / "a.onnx", work=work)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("machine", "cpu_info", "reduced", "word"),
    [
        ("x86_64", "flags\t\t: fpu avx2 avx512_vnni\n", False, ""),
        ("x86_64", "flags\t\t: fpu avx2 avx_vnni\n", False, ""),
        ("x86_64", "flags\t\t: fpu avx2 avx512f\n", True, "no VNNI"),
        ("aarch64", "Features\t: fp asimd\n", False, ""),
        ("AMD64", None, True, "does not tell"),
    ],
)
def test_weights_of_seven_bits_where_eight_would_saturate(
    *, machine: str, cpu_info: str | None, reduced: bool, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cpu_info is not None:
        (tmp_path / "cpuinfo").write_text(cpu_info)
    monkeypatch.setattr(runtime, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)
    found, note = runtime.reduced_range(U8S8)
    assert found is reduced
    assert word in note
    assert bool(note) is reduced
    assert runtime.reduced_range(replace(U8S8, activations="int8")) == (False, "")


def test_reduced_weights_stay_within_seven_bits(
    *,
    model: Model,
    calibration: Samples,
    exported: Exported,
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exported(FLOAT)
    (tmp_path / "cpuinfo").write_text("flags : avx2\n")
    monkeypatch.setattr(runtime, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    artifact = runtime.export(model, Plan((), U8S8), calibration, tmp_path / "a.onnx", work=work)
    assert any("7 bits" in note for note in artifact.notes)
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(artifact.path).graph.initializer}
    assert np.abs(weights["stem.0.weight_quantized"].astype(int)).max() <= 64


def test_calibration_takes_the_first_samples(
    model: Model, calibration: Samples, exported: Exported, work: Path, tmp_path: Path
) -> None:
    exported(FLOAT)
    few = replace(U8S8, calibration=4)
    loud = replace(calibration, array=np.concatenate([calibration.array[:4], 50 * calibration.array[4:]]))
    files = [
        runtime.export(model, Plan((), few), samples, tmp_path / f"{i}.onnx", work=work).sha256
        for i, samples in enumerate((calibration, loud))
    ]
    assert files[0] == files[1]
    assert any("32 samples" in note for note in exported(U8S8).notes), "fewer samples than asked for are said"


def test_what_the_child_could_not_quantize_is_not_called_int8() -> None:
    path_ops = onnx_file.Contents(
        "onnx",
        (),
        (),
        tuple(
            onnx_file.OpInfo(i, f"n{i}", "Conv", (), dtype, "float32", (1, 1, 1, 1), 1, 1, f"layer{i}")
            for i, dtype in enumerate(("int8", "float32", "int8"))
        ),
    )
    assert runtime.read_back(path_ops, U8S8) == ["1 layer stayed in float32: layer1"]
    assert runtime.read_back(path_ops, replace(U8S8, keep_float=("layer1",))) == []
    with pytest.raises(ExportFailed, match="layer0"):
        runtime.read_back(path_ops, replace(U8S8, keep_float=("layer0",)))
    with pytest.raises(ExportFailed, match="No weight"):
        runtime.read_back(path_ops, ExportSettings("onnxruntime", "float16"))


MACS_BY_HAND = [
    ("Conv", {"group": 2}, (1, 4, 6, 6), (8, 2, 3, 3), 8 * 4 * 4 * 2 * 9),
    ("Conv", {"strides": [2, 2], "pads": [1, 1, 1, 1]}, (1, 4, 6, 6), (8, 4, 3, 3), 8 * 3 * 3 * 4 * 9),
    ("ConvTranspose", {"strides": [2, 2]}, (1, 4, 5, 5), (4, 3, 2, 2), 25 * 4 * 3 * 4),
    ("Gemm", {"transB": 1}, (1, 7), (3, 7), 21),
    ("MatMul", {}, (1, 5, 7), (7, 3), 5 * 7 * 3),
]


@pytest.mark.parametrize(("kind", "attributes", "shape", "weight", "macs"), MACS_BY_HAND)
def test_macs_are_those_counted_by_hand(
    *, kind: str, attributes: dict, shape: tuple, weight: tuple, macs: int, tmp_path: Path
) -> None:
    values = np.ones(weight, np.float32)
    nodes = [helper.make_node(kind, ["x", "w"], ["h"], **attributes), helper.make_node("Relu", ["h"], ["y"])]
    ends = {"x": (TensorProto.FLOAT, ["n", *shape[1:]])}, {"y": (TensorProto.FLOAT, list("abcd")[: len(shape)])}
    op = onnx_file.contents(graph_file(tmp_path / "a.onnx", nodes, *ends, {"w": values})).ops[0]
    assert (op.macs, op.weight_dtype, op.weight_bytes) == (macs, "float32", values.nbytes)


def test_a_shared_weight_is_stored_once(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    ends = {"x": (TensorProto.FLOAT, ["n", 4])}, {"y": (TensorProto.FLOAT, ["n", 4])}
    path = graph_file(tmp_path / "a.onnx", nodes, *ends, {"w": np.ones((4, 4), np.float32)})
    assert onnx_file.contents(path).weight_dtypes() == {"float32": 64}


def test_a_fixed_batch_of_another_tool_is_read_as_it_is(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["picture"], ["y"])
    ends = {"picture": (TensorProto.FLOAT, [1, 8, 8, 3])}, {"y": (TensorProto.FLOAT, [1, 8, 8, 3])}
    session = runtime.load(graph_file(tmp_path / "a.onnx", [node], *ends, {}))
    (spec,) = session.signature.inputs
    assert (spec.name, spec.shape, spec.layout) == ("picture", (1, 8, 8, 3), "NHWC")


def test_external_weights_are_refused(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported(FLOAT).path)
    onnx.save(model, str(tmp_path / "a.onnx"), save_as_external_data=True, size_threshold=0, location="weights.bin")
    with pytest.raises(UserError, match="in other files"):
        runtime.inspect(tmp_path / "a.onnx")


def test_two_threads_give_the_same_answer(exported: Exported) -> None:
    path = Path(exported(U8S8).path)
    answers = [runtime.load(path, threads=n).run({"image": pictures(2)})["logits"] for n in (1, 2)]
    np.testing.assert_array_equal(*answers)


def test_a_missing_package_becomes_its_pip_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: object) -> object:
        if name.split(".", maxsplit=1)[0] == "onnxruntime":
            raise ModuleNotFoundError(f"No module named '{name}'", name="onnxruntime")
        return real(name, *rest)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(MissingPackage, match=r"pip install 'pocketfit\[onnxruntime\]'"):
        runtime.load(tmp_path / "a.onnx")
    with pytest.raises(MissingPackage):
        require("onnxruntime", "onnxruntime")
