"""LiteRT: what was asked for is in the file, read back from its own bytes and run in its own interpreter."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pocketfit.core.artifact import Artifact, OpInfo
from pocketfit.core.errors import CannotRunHere, ExportFailed, UserError
from pocketfit.core.model import Model, Origin
from pocketfit.core.plan import ExportSettings, Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.runtime import answer
from pocketfit.core.samples import Samples
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.runtimes import litert, litert_convert, litert_file, litert_profile

pytest.importorskip("ai_edge_litert")
pytest.importorskip("litert_torch")

SIZE, CLASSES = 48, 5
PREPROCESS = Preprocess(height=SIZE, width=SIZE, resize="none")


class Net(nn.Module):
    """A stem, a depthwise block with a residual, a pooling and a classifier, with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.ReLU6())
        self.project = nn.Conv2d(16, 16, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(x))
        return self.classifier(torch.flatten(self.pool(x), 1))


LAYERS = ("stem.0", "depthwise.0", "project", "classifier")
Export = Callable[..., Artifact]


@pytest.fixture(scope="module")
def samples() -> Samples:
    pixels = np.random.default_rng(0).integers(0, 256, (32, SIZE, SIZE, 3), np.uint8)
    return Samples(pixels, np.zeros(32, np.int64), [str(i) for i in range(32)], "calibration", "0", PREPROCESS)


@pytest.fixture(scope="module")
def model(samples: Samples) -> Model:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    network = Net().train()
    with torch.no_grad():  # running statistics as training leaves them
        for _ in range(20):
            network(torch.from_numpy(samples.inputs(slice(None))))
    return Model(
        network.eval(),
        Signature(
            (TensorSpec("image", (None, 3, SIZE, SIZE), "float32", "NCHW"),), (TensorSpec("scores", (None, CLASSES)),)
        ),
        PREPROCESS,
        tuple("abcde"),
        Origin("object", "Net"),
        sha256="net",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("litert")


@pytest.fixture(scope="module")
def export(model: Model, samples: Samples, folder: Path) -> Export:
    """Export with these settings, once for the whole module."""
    made: dict[ExportSettings, Artifact] = {}

    def make(precision: str = "float32", **settings: Any) -> Artifact:
        wanted = ExportSettings("litert", precision, **settings)  # type: ignore[arg-type]
        if wanted not in made:
            plan = Plan((), wanted)
            made[wanted] = litert.export(
                model, plan, samples, folder / f"{plan.file_stem}.tflite", work=folder / "work"
            )
        return made[wanted]

    return make


def expected(model: Model, samples: Samples) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(model.network(torch.from_numpy(samples.inputs(slice(None)))))


def answers(artifact: Artifact, samples: Samples) -> NDArray[np.float32]:
    session = litert.load(Path(artifact.path))
    return answer(session, samples.inputs(slice(None), layout=session.signature.inputs[0].layout))


def sqnr_db(reference: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    return float(10 * np.log10((reference**2).sum() / ((reference - got) ** 2).sum()))


def by_layer(artifact: Artifact) -> dict[str, OpInfo]:
    return {op.layer: op for op in litert.inspect(Path(artifact.path)).ops if op.layer}


@pytest.mark.parametrize(("layout", "shape"), [("", (1, SIZE, SIZE, 3)), ("NCHW", (1, 3, SIZE, SIZE))])
def test_float32_computes_what_torch_computes(
    layout: str, shape: tuple[int, ...], export: Export, model: Model, samples: Samples
) -> None:
    artifact = export(layout=layout)
    np.testing.assert_allclose(answers(artifact, samples), expected(model, samples), atol=1e-5)
    (given,), (taken,) = (getattr(litert.inspect(Path(artifact.path)), side) for side in ("inputs", "outputs"))
    assert (given.name, given.shape, given.dtype, given.layout) == ("image", shape, "float32", layout or "NHWC")
    assert (taken.name, taken.shape) == ("scores", (1, CLASSES))


def test_layers_keep_their_torch_names_shapes_and_macs(export: Export) -> None:
    ops = by_layer(export())
    assert tuple(ops) == LAYERS
    half = SIZE // 2
    assert {name: (op.type, op.weight_shape, op.macs) for name, op in ops.items()} == {
        "stem.0": ("CONV_2D", (16, 3, 3, 3), half * half * 16 * 27),
        "depthwise.0": ("DEPTHWISE_CONV_2D", (1, 3, 3, 16), half * half * 16 * 9),
        "project": ("CONV_2D", (16, 1, 1, 16), half * half * 16 * 16),
        "classifier": ("FULLY_CONNECTED", (CLASSES, 16), CLASSES * 16),
    }
    assert [op.weight_bytes for op in ops.values()] == [4 * 432, 4 * 144, 4 * 256, 4 * 80]


PRECISIONS = {  # weight dtype, compute dtype, least SQNR in dB
    "float16": ("float16", "float32", 50),
    "dynamic-int8": ("int8", "float32", 25),
    "int8": ("int8", "int8", 20),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_file_states_the_precision_that_was_asked_for(
    precision: str, export: Export, model: Model, samples: Samples
) -> None:
    *dtypes, least_db = PRECISIONS[precision]
    artifact = export(precision)
    stated = {name: (op.weight_dtype, op.compute_dtype) for name, op in by_layer(artifact).items()}
    assert stated == dict.fromkeys(LAYERS, tuple(dtypes))
    assert artifact.notes == ()
    assert sqnr_db(expected(model, samples), answers(artifact, samples)) > least_db


def test_static_int8_weights_are_symmetric_per_channel(export: Export) -> None:
    """LiteRT's 8-bit specification: int8 in [-127, 127], zero point 0, scale max|w| / 127 for each output channel."""
    real, quantized = (litert_file.read(Path(export(p).path)) for p in ("float32", "int8"))
    checked = 0
    for op in quantized.graph.operators:
        if quantized.op_type(op) not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            continue
        index = quantized.weight(op)
        name = quantized.name(index)
        source = next(i for i in range(len(real.graph.tensors)) if real.name(i) == name)
        weight, integers, scale = real.constant(source), quantized.constant(index), quantized.quantization(index)
        axis = 3 if quantized.op_type(op) == "DEPTHWISE_CONV_2D" else 0
        assert scale.axis == axis
        assert set(scale.zero_points) == {0}
        rows, whole = np.moveaxis(weight, axis, 0).reshape(16, -1), np.moveaxis(integers, axis, 0).reshape(16, -1)
        np.testing.assert_allclose(scale.scales, np.abs(rows).max(axis=1) / 127, rtol=1e-6)
        assert np.abs(whole.astype(int)).max(axis=1).tolist() == [127] * 16
        assert np.abs(whole * np.float32(scale.scales)[:, None] - rows).max() <= max(scale.scales) * 0.5001
        checked += 1
    assert checked == 3


@pytest.mark.parametrize("kept", [("depthwise.0",), ("stem.0", "classifier"), LAYERS[:3]])
def test_named_layers_stay_in_float_and_only_they(
    kept: tuple[str, ...], export: Export, model: Model, samples: Samples
) -> None:
    artifact = export("int8", keep_float=kept)
    stated = {name: (op.weight_dtype, op.compute_dtype) for name, op in by_layer(artifact).items()}
    assert stated == {name: ("float32", "float32") if name in kept else ("int8", "int8") for name in LAYERS}
    assert sqnr_db(expected(model, samples), answers(artifact, samples)) > 20


def test_a_layer_that_is_not_there_is_named(export: Export) -> None:
    with pytest.raises(UserError, match=r"'stem\.1', 'nose', which no operator .* stem\.0, depthwise\.0"):
        export("int8", keep_float=("stem.1", "nose", "project"))


def test_a_file_that_breaks_the_plan_is_not_handed_over(export: Export) -> None:
    stated = litert.inspect(Path(export("int8").path))
    with pytest.raises(ExportFailed, match="should have stayed in float32, but the file says otherwise: project"):
        litert._verify(stated, ExportSettings("litert", "int8", keep_float=("project",)))
    with pytest.raises(ExportFailed, match="Nothing in the file is int8"):
        litert._verify(litert.inspect(Path(export().path)), ExportSettings("litert", "int8"))
    with pytest.raises(ExportFailed, match="is float32, where the plan asks for uint8"):
        litert._verify(stated, ExportSettings("litert", "int8", io="uint8"))
    half = replace(
        stated, ops=tuple(replace(o, compute_dtype="float32") if o.layer == "project" else o for o in stated.ops)
    )
    assert "project" in litert._verify(half, ExportSettings("litert", "int8"))[0]


@pytest.mark.parametrize("io", ["int8", "uint8"])
@pytest.mark.parametrize("kept", [(), ("stem.0", "classifier")])
def test_integer_inputs_and_outputs(
    io: str, kept: tuple[str, ...], export: Export, model: Model, samples: Samples
) -> None:
    artifact = export("int8", io=io, keep_float=kept)
    session = litert.load(Path(artifact.path))
    assert session.signature.inputs[0].dtype == session.signature.outputs[0].dtype == io
    span = session.input_quantization.scales[0] * 255
    values = samples.inputs(slice(None), layout="NHWC")
    assert span == pytest.approx(float(np.ptp(values)), rel=0.02)
    assert sqnr_db(expected(model, samples), answer(session, values)) > 20


@pytest.mark.slow
def test_the_same_network_and_data_give_the_same_bytes(
    model: Model, samples: Samples, export: Export, tmp_path: Path
) -> None:
    """Everything again, from the trace on: each step in a fresh process."""
    for precision in ("float32", "int8"):
        plan = Plan((), ExportSettings("litert", precision))  # type: ignore[arg-type]
        again = litert.export(model, plan, samples, tmp_path / f"{precision}.tflite", work=tmp_path)
        assert again.sha256 == export(precision).sha256
        assert again.sha256 == hashlib.sha256(Path(again.path).read_bytes()).hexdigest()


def test_batches_and_single_rows_agree(export: Export, samples: Samples) -> None:
    session = litert.load(Path(export("int8").path))
    values = samples.inputs(slice(0, 7), layout="NHWC")
    before = values.copy()
    together = session.run({"image": values})["scores"]
    alone = np.concatenate([session.run({"image": values[i : i + 1]})["scores"] for i in range(7)])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(values, before)
    first = session.run({"image": values})["scores"]
    session.run({"image": values[::-1].copy()})
    np.testing.assert_array_equal(first, together)  # what was returned is the caller's own


def test_a_file_with_a_fixed_batch_inside_runs_row_by_row(export: Export, samples: Samples, tmp_path: Path) -> None:
    file = litert_file.read(Path(export().path))
    _append_fixed_reshape(file)
    path = tmp_path / "fixed.tflite"
    path.write_bytes(litert_convert.serialize(file.model))
    session = litert.load(path)
    values = samples.inputs(slice(0, 3), layout="NHWC")
    plain = litert.load(Path(export().path)).run({"image": values})["scores"]
    np.testing.assert_allclose(session.run({"image": values})["scores"], plain, atol=1e-6)


def _append_fixed_reshape(file: litert_file.TfliteFile) -> None:
    """scores [1, 5] -> RESHAPE to the constant [1, 5]."""
    from ai_edge_litert import schema_py_generated as schema

    graph, model = file.graph, file.model
    model.buffers.append(schema.BufferT(data=np.frombuffer(np.array([1, CLASSES], np.int32).tobytes(), np.uint8)))
    shape = schema.TensorT(shape=[2], type=schema.TensorType.INT32, buffer=len(model.buffers) - 1, name=b"shape")
    output = schema.TensorT(shape=[1, CLASSES], type=schema.TensorType.FLOAT32, buffer=0, name=b"reshaped")
    graph.tensors += [shape, output]
    model.operatorCodes.append(
        schema.OperatorCodeT(builtinCode=schema.BuiltinOperator.RESHAPE, deprecatedBuiltinCode=22, version=1)
    )
    last = len(graph.tensors) - 1
    graph.operators.append(
        schema.OperatorT(
            opcodeIndex=len(model.operatorCodes) - 1, inputs=[int(graph.outputs[0]), last - 1], outputs=[last]
        )
    )
    graph.outputs = [last]
    model.signatureDefs[0].outputs[0].tensorIndex = last


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({}, "has an input 'image', which was not given"),
        ({"image": np.zeros((1, SIZE, SIZE, 3), np.float64)}, "is float32, not float64"),
        ({"image": np.zeros((1, 3, SIZE, SIZE), np.float32)}, r"has shape \[n, 48, 48, 3\], not \[1, 3, 48, 48\]"),
        ({"image": np.zeros((0, SIZE, SIZE, 3), np.float32)}, "at least one"),
    ],
)
def test_wrong_inputs_are_refused_in_a_sentence(inputs: dict[str, Any], sentence: str, export: Export) -> None:
    session = litert.load(Path(export().path))
    with pytest.raises(UserError, match=sentence):
        session.run(inputs)
    session.close()
    with pytest.raises(CannotRunHere, match="closed"):
        session.run({"image": np.zeros((1, SIZE, SIZE, 3), np.float32)})


def test_what_is_no_tflite_file_is_refused(export: Export, tmp_path: Path) -> None:
    whole = Path(export("int8").path).read_bytes()
    path = tmp_path / "a.tflite"
    for data, sentence in [(b"", "is not a .tflite"), (b"PK\3\4" + bytes(99), "is not a .tflite"), (None, "not there")]:
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)
        for reader in (litert.inspect, litert.load):
            with pytest.raises(UserError, match=sentence):
                reader(path)
    for length in range(8, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.tflite' is damaged"):
            litert.inspect(path)


def test_random_damage_is_refused_or_read_but_never_a_crash(export: Export, tmp_path: Path) -> None:
    whole, random, path = Path(export("int8").path).read_bytes(), np.random.default_rng(0), tmp_path / "a.tflite"
    for _ in range(60):
        data = bytearray(whole)
        for position in random.integers(8, len(data), 20):
            data[position] = random.integers(256)
        path.write_bytes(bytes(data))
        try:
            litert.inspect(path)
        except UserError as error:
            assert "a.tflite" in str(error)


def test_plans_that_litert_cannot_carry_out(model: Model, samples: Samples, tmp_path: Path) -> None:
    signature = model.signature
    assert litert.why_not(Plan((), ExportSettings("litert", "int8", io="uint8")), signature) == []
    bad = Plan((), ExportSettings("litert", "int8", activations="uint8"))
    assert "int8 activations, not uint8" in litert.why_not(bad, signature)[0]
    with pytest.raises(UserError, match="int8 activations"):
        litert.export(model, bad, samples, tmp_path / "x.tflite", work=tmp_path)
    integer = Signature((TensorSpec("x", (None, 3), "int64"),), signature.outputs)
    assert "int64" in litert.why_not(Plan((), ExportSettings("litert")), integer)[0]
    with pytest.raises(UserError, match="needs calibration samples"):
        litert.export(model, Plan((), ExportSettings("litert", "int8")), None, tmp_path / "x.tflite", work=tmp_path)
    assert not (tmp_path / "x.tflite").exists()


def test_profile_names_kernels_and_adds_up(export: Export) -> None:
    for precision, kernel in (("float32", "F32"), ("int8", "QC8")):
        path = Path(export(precision).path)
        ops = litert.inspect(path).ops
        costs = litert.profile(path, {"image": np.zeros((1, SIZE, SIZE, 3), np.float32)}, runs=20)
        assert [(c.index, c.name, c.type) for c in costs] == [(op.index, op.name, op.type) for op in ops]
        ran_on = {c.index: c.ran_on for c in costs}
        weighted = [ran_on[op.index] for op in ops if op.layer]
        assert all(name.startswith("XNNPACK: ") and kernel in name for name in weighted)
        assert 0 < sum(c.time_us for c in costs) < 1e6


def test_profile_says_which_operators_no_delegate_took(export: Export) -> None:
    """XNNPACK has no depthwise kernel for float activations with int8 weights."""
    path = Path(export("dynamic-int8").path)
    costs = litert.profile(path, {"image": np.zeros((1, SIZE, SIZE, 3), np.float32)}, runs=5)
    assert [c.type for c in costs if c.ran_on == "builtin"] == ["DEPTHWISE_CONV_2D"]


def test_profile_refuses_another_version(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litert_profile, "version", lambda _: "9.9.9")
    with pytest.raises(CannotRunHere, match=r"checked with 2\.3\.0 only; ai-edge-litert 9\.9\.9 is installed"):
        litert.profile(Path(export().path), {"image": np.zeros((1, SIZE, SIZE, 3), np.float32)})


def test_times_go_to_the_nodes_that_they_belong_to(export: Export) -> None:
    contents = litert.inspect(Path(export().path))
    kinds = [op.type for op in contents.ops]
    assert kinds == ["PAD", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED"]
    timed = litert_profile.Timed
    events = [
        timed("Convert (NC, F32, QD8)", True, 0),  # made for the convolution behind it
        timed("Convolution (NHWC, F32) IGEMM", True, 1),
        timed("Convolution (NHWC, F32) DWConv", False, 2),
        timed("Fully Connected (NC, F32) GEMM", True, 0),
        timed("Add (ND)", True, 1),
        timed("Mean (ND)", True, 2),
        timed("Fully Connected (NC, F32) GEMM", True, 3),
        timed("Copy (NC)", True, 4),  # left by the classifier before it
    ]
    costs = litert_profile.costs(contents, events, [[2**i] * 3 for i in range(8)])
    assert [c.time_us for c in costs] == [0, 1 + 2, 4, 8, 16, 32, 64 + 128]
    assert [c.ran_on for c in costs][:3] == ["XNNPACK: fused", "XNNPACK: Convolution (NHWC, F32) IGEMM", "builtin"]
    with pytest.raises(CannotRunHere, match="node 3"):
        litert_profile.costs(contents, events[2:], [[1]] * 6)


def test_layers_with_the_same_weights_are_told_apart_by_order(export: Export) -> None:
    file = litert_file.read(Path(export().path))
    weights = {op.layer: _stored(file, op) for op in litert.inspect(Path(export().path)).ops if op.layer}
    of_op = {op.index: op.layer for op in litert.inspect(Path(export().path)).ops if op.layer}
    assert litert_convert.match_layers(file, weights, list(LAYERS)) == of_op
    project = next(index for index, layer in of_op.items() if layer == "project")
    twins = {**weights, "twin": weights["project"]}  # two layers, one operator: nobody can say which
    assert project not in litert_convert.match_layers(file, twins, [*LAYERS, "twin"])
    scaled = {**weights, "project": weights["project"] * np.linspace(1, 3, 16, dtype=np.float32).reshape(-1, 1, 1, 1)}
    assert litert_convert.match_layers(file, scaled, list(LAYERS))[project] == "project"
    other = {**weights, "project": -weights["project"]}
    assert project not in litert_convert.match_layers(file, other, list(LAYERS))


def _stored(file: litert_file.TfliteFile, op: OpInfo) -> NDArray[np.float32]:
    """A file's weight, back in torch's order."""
    weight = np.asarray(file.constant(file.weight(file.graph.operators[op.index])))
    if op.type == "FULLY_CONNECTED":
        return weight
    return weight.transpose(3, 0, 1, 2) if op.type == "DEPTHWISE_CONV_2D" else weight.transpose(0, 3, 1, 2)


@pytest.mark.slow
def test_padding_with_minus_infinity_takes_the_range_of_what_it_pads(samples: Samples, tmp_path: Path) -> None:
    """A max pooling with padding after a layer without ReLU: the converter pads with minus infinity."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(8 * 12 * 12, CLASSES)
    )
    signature = Signature(
        (TensorSpec("image", (None, 3, SIZE, SIZE), "float32", "NCHW"),), (TensorSpec("scores", (None, CLASSES)),)
    )
    pooled = Model(network.eval(), signature, PREPROCESS, (), Origin("object", "Pooled"), sha256="pooled")
    plan = Plan((), ExportSettings("litert", "int8"))
    artifact = litert.export(pooled, plan, samples, tmp_path / "pooled.tflite", work=tmp_path)
    assert "PADV2" in litert.inspect(Path(artifact.path)).op_counts()
    assert sqnr_db(expected(pooled, samples), answers(artifact, samples)) > 20


def test_stdout_stays_clean(export: Export) -> None:
    """stdout carries the command's JSON, and LiteRT's INFO lines do not belong on the terminal."""
    program = (
        "import sys, numpy as np; from pathlib import Path; from pocketfit.runtimes import litert;"
        f"litert.load(Path(sys.argv[1])).run({{'image': np.zeros((2, {SIZE}, {SIZE}, 3), np.float32)}})"
    )
    done = subprocess.run([sys.executable, "-c", program, export().path], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "INFO" not in done.stderr


@pytest.mark.slow
def test_probe_runs_a_network() -> None:
    info = litert.probe()
    assert info.ok, info.detail
    assert info.delegates == ("XNNPACK",)
