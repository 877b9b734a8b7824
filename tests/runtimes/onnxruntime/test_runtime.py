from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime import quantization
from torch import nn

from pocketfit.core.artifact import Artifact
from pocketfit.core.errors import ExportFailed, MissingPackage, UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.samples import Samples
from pocketfit.core.support import cpuinfo
from pocketfit.core.support.loading import require
from pocketfit.formats import onnx_read
from pocketfit.numerics import quantization_ranges as numerics
from pocketfit.numerics.affine import fake_quantize, quantize, scale_from_range, symmetric_scale
from pocketfit.runtimes.common import calibration as ranges
from pocketfit.runtimes.onnxruntime import calibrate, runtime
from pocketfit.runtimes.onnxruntime import quantize as onnxruntime_quantize
from pocketfit.testing.tiny_network import SIDE, WEIGHTS, pictures, tiny_model

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


def constants_of(path: str | Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_min_max_ranges_give_the_file_that_quantize_static_makes(
    model: Model, calibration: Samples, exported: Exported, work: Path, tmp_path: Path
) -> None:
    """Every scale, zero point, weight and bias, as integers and bits."""
    ours = constants_of(exported(U8S8).path)
    batches = iter([{"image": calibration.inputs(slice(0, 16))}, {"image": calibration.inputs(slice(16, 32))}])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict | None:
            return next(batches, None)

    quantization.quantize_static(
        str(work / f"{model.key}.prepared.onnx"),
        str(tmp_path / "theirs.onnx"),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )
    theirs = constants_of(tmp_path / "theirs.onnx")
    assert set(ours) == set(theirs)
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values, err_msg=name)


@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_onnxs_reference_evaluator_agrees_within_one_step(*, activations: str, exported: Exported) -> None:
    """The whole file, as integers: kernels may sum and round in another order, and no more than that."""
    path = exported(ExportSettings("onnxruntime", "int8", activations, io=activations)).path  # type: ignore[arg-type]
    session = runtime.load(Path(path))
    scale, zero = session.input_quantization.scales[0], session.input_quantization.zero_points[0]
    image = quantize(pictures(8, seed=5), scale, zero, activations)
    got = session.run({"image": image})["logits"]
    wanted = ReferenceEvaluator(path).run(None, {"image": image})[0]
    assert got.dtype == wanted.dtype == np.dtype(activations)
    assert np.ptp(got.astype(int)) > 50
    assert np.abs(got.astype(int) - wanted.astype(int)).max() <= 1


@pytest.mark.parametrize(("weights", "bits"), [("int8", 8), ("int7", 7)])
def test_integers_of_the_file_are_those_of_the_maths(
    *, weights: str, bits: int, model: Model, exported: Exported, work: Path
) -> None:
    stored = constants_of(exported(replace(U8S8, weights=weights)).path)
    floats = constants_of(work / f"{model.key}.prepared.onnx")
    for layer in WEIGHTS:
        values = floats[f"{layer}.weight"]
        scales = symmetric_scale(np.abs(values).max(axis=tuple(range(1, values.ndim))), bits)
        integers = quantize(values, scales, axis=0)
        np.testing.assert_array_equal(stored[f"{layer}.weight_scale"], scales, err_msg=layer)
        np.testing.assert_array_equal(stored[f"{layer}.weight_quantized"], integers, err_msg=layer)
        assert np.abs(integers.astype(int)).max() == 2 ** (bits - 1) - 1


def test_seven_bits_leave_out_the_layers_that_keep_eight(exported: Exported) -> None:
    stored = constants_of(exported(replace(U8S8, weights="int7", keep_int8=("head",))).path)
    assert np.abs(stored["head.weight_quantized"].astype(int)).max() == 127
    assert np.abs(stored["stem.0.weight_quantized"].astype(int)).max() == 63


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_weight_only_files_hold_integers_and_compute_as_float_files_do(
    *, weights: str, exported: Exported, model: Model
) -> None:
    settings = ExportSettings("onnxruntime", "weight-only", weights=weights, keep_float=("project.0",))  # type: ignore[arg-type]
    artifact, whole = exported(settings), exported(FLOAT)
    ops = {op.layer: op for op in runtime.inspect(Path(artifact.path)).ops if op.layer}
    narrow = {layer: ops[layer].weight_dtype for layer in WEIGHTS}
    assert narrow == {"stem.0": weights, "depthwise.0": "int8", "project.0": "float32", "head": weights}
    assert {op.compute_dtype for op in ops.values()} == {"float32"}
    assert ops["head"].weight_bytes == (40 if weights == "int8" else 20)
    kinds = [
        [cost.type for cost in runtime.profile(Path(file.path), {"image": pictures(1)}, runs=2)]
        for file in (artifact, whole)
    ]
    assert kinds[0] == kinds[1]
    # the same numbers as a float network whose weights have been put on the grid
    constants, bits = constants_of(whole.path), {"stem.0": 4, "depthwise.0": 8, "head": 4}
    path = Path(artifact.path).with_suffix(".expected.onnx")
    expected = onnx.load(whole.path)
    for tensor in expected.graph.initializer:
        if (layer := tensor.name.removesuffix(".weight")) in bits:
            values = constants[tensor.name]
            scales = symmetric_scale(
                np.abs(values).max(axis=tuple(range(1, values.ndim))), bits[layer] if weights == "int4" else 8
            )
            rounded = fake_quantize(values, scales, axis=0)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    onnx.save(expected, path)
    answers = [runtime.load(p).run({"image": pictures(2)})["logits"] for p in (Path(artifact.path), path)]
    np.testing.assert_allclose(*answers, rtol=1e-5, atol=1e-6)
    path.unlink()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (replace(U8S8, activations="int16"), "int16 activations"),
        (replace(U8S8, weights="int4"), "int4 weights"),
        (ExportSettings("onnxruntime", "dynamic-int8", weights="int4"), "int4 weights"),
        (ExportSettings("onnxruntime", "weight-only", weights="int7"), "7 bits"),
    ],
)
def test_what_has_no_kernel_is_refused(*, settings: ExportSettings, word: str, model: Model) -> None:
    assert [reason for reason in runtime.why_not(Plan((), settings), model.signature) if word in reason]


def test_an_unknown_layer_that_should_keep_its_bits_is_named(
    model: Model, calibration: Samples, exported: Exported, work: Path, tmp_path: Path
) -> None:
    exported(FLOAT)
    plan = Plan((), replace(U8S8, weights="int7", keep_int8=("stem.9",)))
    with pytest.raises(UserError, match=r"'stem\.9', so it cannot keep int8 weights: did you mean 'stem\.0'"):
        runtime.export(model, plan, calibration, tmp_path / "a.onnx", work=work)


@pytest.mark.parametrize("method", ["moving-average", "percentile", "mse", "kl"])
def test_a_method_sets_the_scales_of_the_file(
    *, method: str, model: Model, calibration: Samples, exported: Exported, work: Path
) -> None:
    """The scale of the first convolution's output (a ReLU6: zero point 0) is its range / 255."""
    files = {m: constants_of(exported(replace(U8S8, ranges=m)).path) for m in ("min-max", method)}  # type: ignore[arg-type]
    settings, source = replace(U8S8, ranges=method), work / f"{model.key}.prepared.onnx"  # type: ignore[arg-type]
    node = next(n for n in onnx.load(source).graph.node if n.op_type == "Clip")
    about = onnx_read.contents(source)
    found = ranges.summaries(
        source, about.inputs, calibration, settings, gather=f"{runtime.CALIBRATE}:gather", work=work
    )
    name, summary = node.output[0], found[node.output[0]]
    low, high = numerics.range_of(summary, method)  # type: ignore[arg-type]
    scale, zero = scale_from_range(low, high, "uint8")
    assert files[method][f"{name}_scale"] == pytest.approx(float(scale), rel=1e-6)
    assert int(files[method][f"{name}_zero_point"]) == int(zero)
    for end in ("image", "logits"):  # the ends keep all that was seen
        assert files[method][f"{end}_scale"] == files["min-max"][f"{end}_scale"]


def test_fingerprints_are_those_of_the_tensors(exported: Exported, work: Path, tmp_path: Path) -> None:
    values, target = pictures(3), tmp_path / "found.json"
    np.savez(tmp_path / "samples.npz", image=values)
    calibrate.fingerprints(exported(FLOAT).path, str(tmp_path / "samples.npz"), str(target))
    found = json.loads(target.read_text())
    logits = runtime.load(Path(exported(FLOAT).path)).run({"image": values})["logits"]
    assert found["image"] == pytest.approx(numerics.fingerprint(values))
    assert found["logits"] == pytest.approx(numerics.fingerprint(logits), rel=1e-4, abs=1e-5)
    sizes = [size for size, *_ in found.values()]
    assert sizes.count(3 * 8 * 16 * 16) >= 5, "convolutions and their activations, each"


def by_hand(rows: list[list[int]]) -> int:
    """Pairs along the rows whose products with 255 and 255 add up to more than 16 bits hold."""
    beyond = 0
    for row in rows:
        for i in range(0, len(row), 2):
            total = 255 * sum(w for w in row[i : i + 2] if w > 0), 255 * sum(w for w in row[i : i + 2] if w < 0)
            beyond += total[0] > 32767 or total[1] < -32768
    return beyond


def test_pairs_that_overflow_are_counted_in_the_order_of_the_kernel(tmp_path: Path) -> None:
    """Conv [1, 2, 1, 2]: channels are neighbours, taps are not; Gemm without transB: neighbours stand in a column."""

    def quantized(kind: str, weight: np.ndarray, shape: list, axis: int, **attributes: object) -> Path:
        uint8 = {"x_zp": np.uint8(0), "y_zp": np.uint8(0), "s": np.float32(1)}
        outputs = weight.shape[axis]
        constants = {
            "w.weight_quantized": weight,
            "w_s": np.ones(outputs, np.float32),
            "w_zp": np.zeros(outputs, np.int8),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "x_zp"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "x_zp"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w.weight_quantized", "w_s", "w_zp"], ["wd"], axis=axis),
            helper.make_node(kind, ["xd", "wd"], ["h"], **attributes),
            helper.make_node("QuantizeLinear", ["h", "s", "y_zp"], ["y"]),
        ]
        rank = [None] * (weight.ndim)
        ends = {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.UINT8, rank)}
        return graph_file(tmp_path / f"{kind}{weight.ndim}.onnx", nodes, *ends, {**constants, **uint8})

    weight = np.array([[[[100, -100]], [[29, 100]]]], np.int8)  # pairs over channels: (100, 29), (-100, 100)
    found = onnx_read.saturating_pairs(quantized("Conv", weight, [1, 2, 3, 3], 0))
    assert found == [onnx_read.WeightPairs("w", 2, by_hand([[100, 29, -100, 100]]))]
    assert found[0].saturating == 1
    edge = np.array([[[[64]], [[64]], [[-64]], [[-65]], [[127]]]], np.int8)  # 128 does not, 129 does, one alone cannot
    found = onnx_read.saturating_pairs(quantized("Conv", edge, [1, 5, 3, 3], 0))
    assert (found[0].pairs, found[0].saturating) == (3, by_hand([[64, 64, -64, -65, 127]])) == (3, 1)
    matrix = np.array([[100, 1], [100, 2], [-1, -127], [5, -127]], np.int8)  # [inputs, outputs]
    found = onnx_read.saturating_pairs(quantized("Gemm", matrix, [1, 4], 1))
    assert (found[0].pairs, found[0].saturating) == (4, by_hand(matrix.T.tolist())) == (4, 2)
    narrow = (matrix.clip(-63, 63),)
    assert onnx_read.saturating_pairs(quantized("Gemm", *narrow, [1, 4], 1))[0].saturating == 0
    depthwise = np.full((4, 1, 2, 2), 127, np.int8)
    assert onnx_read.saturating_pairs(quantized("Conv", depthwise, [1, 4, 3, 3], 0, group=4)) == []


def test_seven_bits_cannot_overflow_and_eight_bits_can(exported: Exported) -> None:
    eight = onnx_read.saturating_pairs(exported(U8S8).path)
    assert {layer.layer for layer in eight} == {"stem.0", "project.0", "head"}
    assert sum(layer.saturating for layer in eight) > 0
    seven = onnx_read.saturating_pairs(exported(replace(U8S8, weights="int7")).path)
    assert [layer.pairs for layer in seven] == [layer.pairs for layer in eight]
    assert not any(layer.saturating for layer in seven)
    assert onnx_read.saturating_pairs(exported(replace(U8S8, activations="int8")).path) == []


@pytest.mark.parametrize(
    ("cpu_info", "weights", "word"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni\n", "int8", "this one has VNNI"),
        ("flags\t\t: fpu avx2 avx512f\n", "int8", "this one has none"),
        ("flags\t\t: fpu avx2 avx512f\n", "int7", ""),
        (None, "int8", "this one does not tell"),
    ],
)
def test_what_overflows_without_vnni_is_said_on_every_machine(
    *,
    cpu_info: str | None,
    weights: str,
    word: str,
    model: Model,
    calibration: Samples,
    exported: Exported,
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exported(FLOAT)
    if cpu_info is not None:
        (tmp_path / "cpuinfo").write_text(cpu_info)
    monkeypatch.setattr(cpuinfo, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    plan = Plan((), replace(U8S8, weights=weights))  # type: ignore[arg-type]
    artifact = runtime.export(model, plan, calibration, tmp_path / "a.onnx", work=work)
    said = [note for note in artifact.notes if "can overflow 16 bits on x86 processors without VNNI" in note]
    assert bool(said) == bool(word)
    pairs = onnx_read.saturating_pairs(artifact.path)
    share = sum(layer.saturating for layer in pairs) / sum(layer.pairs for layer in pairs)
    assert all(word in note and f"({share:.1%})" in note and '"weights": "int7"' in note for note in said)


def test_a_weight_of_two_gemms_is_turned_once(tmp_path: Path) -> None:
    """x W^T W^T, with one stored W: ONNX Runtime's dynamic quantizer turns W for each of the two."""
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["y"], "first", transB=1),
        helper.make_node("Gemm", ["y", "w"], ["z"], "second", transB=1),
    ]
    ends = {"x": (TensorProto.FLOAT, ["n", 4])}, {"z": (TensorProto.FLOAT, ["n", 4])}
    path = graph_file(tmp_path / "a.onnx", nodes, *ends, {"w": weight})
    plan = Plan((), ExportSettings("onnxruntime", "dynamic-int8")).to_json()
    onnxruntime_quantize.make(str(path), str(tmp_path / "b.onnx"), plan, {}, ranges={})
    x = np.random.default_rng(1).normal(size=(1, 4)).astype(np.float32)
    (got,) = ReferenceEvaluator(onnx.load(tmp_path / "b.onnx")).run(None, {"x": x})
    np.testing.assert_allclose(got, x @ weight.T @ weight.T, atol=0.1)


@pytest.mark.parametrize("scale", [0.0, 1e-40, float("nan")])
def test_a_scale_that_no_kernel_can_use_is_refused(scale: float, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    ends = {"x": (TensorProto.FLOAT, [2])}, {"y": (TensorProto.FLOAT, [2])}
    path = graph_file(tmp_path / "a.onnx", nodes, *ends, {"s": np.float32(scale), "z": np.int8(0)})
    with pytest.raises(ExportFailed, match="'x' got a scale of"):
        onnxruntime_quantize.check_scales(onnx.load(path))


class Gates(nn.Module):
    """Two layers of an LSTM whose weights are larger than what the exporter folds."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.rnn = nn.AvgPool2d(8), nn.LSTM(48, 48, num_layers=2, batch_first=True)
        self.fc = nn.Linear(48, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        steps = self.pool(image).flatten(1).unsqueeze(1).repeat(1, 3, 1)
        return self.fc(self.rnn(steps)[0][:, -1])


@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
def test_recurrent_weights_are_integers_under_their_layers_name(calibration: Samples, tmp_path: Path) -> None:
    model = tiny_model(Gates(), sha256="gates")
    sizes = {}
    for settings in (FLOAT, U8S8, replace(FLOAT, precision="dynamic-int8"), replace(U8S8, keep_float=("rnn",))):
        path = tmp_path / f"{settings.code}.onnx"
        artifact = runtime.export(model, Plan((), settings), calibration, path, work=tmp_path)
        sizes[settings] = artifact.bytes
        layers = [op for op in runtime.inspect(path).ops if op.layer == "rnn"]
        kept = settings.precision == "float32" or settings.keep_float
        assert len(layers) == 2
        assert {op.weight_dtype for op in layers} == {"float32" if kept else "int8"}
        session = runtime.load(path)
        values = pictures(4)
        with torch.no_grad():
            wanted = model.network(torch.from_numpy(values)).numpy()
        got = session.run({"image": values})["logits"]
        np.testing.assert_allclose(got, wanted, atol=1e-6 if settings == FLOAT else 0.02)
        if settings == U8S8:
            assert (
                "no integer kernel for 2 LSTM: with integer weights, these layers compute in float32: rnn"
                in " ".join(artifact.notes)
            )
    assert sizes[U8S8] < 0.4 * sizes[FLOAT]
    assert len(sizes) == 4


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
    path_ops = onnx_read.Contents(
        "onnx",
        (),
        (),
        tuple(
            onnx_read.OpInfo(
                index=i,
                name=f"n{i}",
                type="Conv",
                output_shape=(),
                weight_dtype=dtype,
                compute_dtype="float32",
                weight_shape=(1, 1, 1, 1),
                weight_bytes=1,
                macs=1,
                layer=f"layer{i}",
            )
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
    op = onnx_read.contents(graph_file(tmp_path / "a.onnx", nodes, *ends, {"w": values})).ops[0]
    assert (op.macs, op.weight_dtype, op.weight_bytes) == (macs, "float32", values.nbytes)


def test_a_shared_weight_is_stored_once(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    ends = {"x": (TensorProto.FLOAT, ["n", 4])}, {"y": (TensorProto.FLOAT, ["n", 4])}
    path = graph_file(tmp_path / "a.onnx", nodes, *ends, {"w": np.ones((4, 4), np.float32)})
    assert onnx_read.contents(path).weight_dtypes() == {"float32": 64}


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
