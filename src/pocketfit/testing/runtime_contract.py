"""What core.runtime.Runtime promises, asked of every runtime in every precision that it supports.

    python -m pytest --pyargs pocketfit.testing.runtime_contract [-k NAME]

A runtime joins by its line in core/plan/runtime_list.py.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.core.artifact import Artifact
from pocketfit.core.errors import CannotRunHere, ExportFailed, UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.runtime_list import RUNTIMES, files_of, for_apps
from pocketfit.core.runtime import Runtime, Session, answer, quantize_input
from pocketfit.core.samples import Samples
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.measurement import run_samples
from pocketfit.runtimes import for_file, get
from pocketfit.testing.tiny_network import CLASSES, MACS, SIDE, WEIGHTS, pictures

Exported = Callable[[ExportSettings], Artifact]
SIGNATURE = Signature(
    (TensorSpec("image", (None, 3, SIDE, SIDE), "float32", "NCHW"),), (TensorSpec("logits", (None, CLASSES)),)
)
CANDIDATES = [
    {"precision": "float32"},
    {"precision": "float32", "layout": "NHWC"},
    {"precision": "float32", "layout": "NCHW"},
    {"precision": "float16"},
    {"precision": "dynamic-int8"},
    {"precision": "dynamic-int8", "weights": "int4"},
    {"precision": "weight-only"},
    {"precision": "weight-only", "weights": "int4"},
    {"precision": "int8"},
    {"precision": "int8", "weights": "int4"},
    {"precision": "int8", "weights": "int4", "keep_int8": ("stem.0",), "ranges": "mse"},
    {"precision": "int8", "activations": "int16"},
    {"precision": "int8", "activations": "uint8", "weights": "int7"},
    {"precision": "int8", "activations": "uint8"},
    {"precision": "int8", "keep_float": ("stem.0", "head")},
    {"precision": "int8", "activations": "uint8", "keep_float": ("stem.0", "head")},
    {"precision": "int8", "io": "int8"},
    {"precision": "int8", "activations": "uint8", "io": "uint8", "layout": "NHWC"},
]
SETTINGS = [
    settings
    for name in RUNTIMES
    for settings in (ExportSettings(name, **candidate) for candidate in CANDIDATES)
    if not get(name).why_not(Plan((), settings), SIGNATURE)
]
every_settings = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.runtime}-{s.code}")
every_runtime = pytest.mark.parametrize("name", RUNTIMES)


def static_int8(name: str) -> ExportSettings:
    """The runtime's first static int8 recipe."""
    return next(settings for settings in get(name).recipes() if settings.precision == "int8")


def opened(artifact: Artifact) -> tuple[Runtime, Session]:
    runtime = get(artifact.runtime)
    return runtime, runtime.load(Path(artifact.path))


def fed(session: Session, values: np.ndarray) -> np.ndarray:
    """NCHW pictures in the layout of the file."""
    nhwc = session.signature.inputs[0].layout == "NHWC"
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1)) if nhwc else values


def as_stated(session: Session, values: np.ndarray) -> dict[str, np.ndarray]:
    """Pictures in the layout and the dtype of the file."""
    spec, quantization = session.signature.inputs[0], session.input_quantization
    given = fed(session, values)
    if quantization is not None:
        given = quantize_input(given, spec.dtype, quantization.scales[0], quantization.zero_points[0])
    return {spec.name: given}


def reference(model: Model, values: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.network(torch.from_numpy(values)).numpy()


@every_settings
def test_round_trip(settings: ExportSettings, exported: Exported, model: Model) -> None:
    _, session = opened(exported(settings))
    values = pictures(32)
    wanted, got = reference(model, values), answer(session, fed(session, values))
    assert got.shape == wanted.shape
    assert got.dtype == np.float32
    noise = float(((got - wanted) ** 2).sum())
    sqnr_db = 10 * np.log10(float((wanted**2).sum()) / max(noise, 1e-30))
    least_db = 10 if settings.weights == "int4" else 20
    assert sqnr_db > {"float32": 90, "float16": 50}.get(settings.precision, least_db)
    if settings.precision != "float32" and not settings.keep_float:
        assert noise > 0, "a quantized file that answers as the float network does was not quantized"


@every_settings
def test_ends_are_as_asked(settings: ExportSettings, exported: Exported) -> None:
    runtime, session = opened(exported(settings))
    spec, out = session.signature.inputs[0], session.signature.outputs[0]
    contents = runtime.inspect(Path(exported(settings).path))
    assert (spec.dtype, out.dtype) == (settings.io, settings.io)
    assert spec.shape == ((None, SIDE, SIDE, 3) if spec.layout == "NHWC" else (None, 3, SIDE, SIDE))
    assert settings.layout in ("", spec.layout)
    assert (spec.name, out.name) == ("image", "logits")
    assert (session.input_quantization is None) == (settings.io == "float32")
    assert (session.output_quantization is None) == (settings.io == "float32")
    if settings.io != "float32":
        assert contents.inputs[0].quantization == session.input_quantization
        assert contents.outputs[0].quantization == session.output_quantization


@every_settings
def test_inputs_are_not_changed_and_outputs_are_owned(settings: ExportSettings, exported: Exported) -> None:
    _, session = opened(exported(settings))
    given = as_stated(session, pictures(2))
    before = {name: value.copy() for name, value in given.items()}
    for value in given.values():
        value.flags.writeable = False
    first = session.run(given)
    kept = {name: value.copy() for name, value in first.items()}
    again = session.run(given)
    session.run(as_stated(session, pictures(2, seed=9)))
    for name, value in given.items():
        np.testing.assert_array_equal(value, before[name])
    for name, value in kept.items():
        np.testing.assert_array_equal(again[name], value)  # the same answer twice
        np.testing.assert_array_equal(first[name], value)  # a later run does not write into an earlier answer
        first[name][...] = 0  # and the caller may write into it


@every_settings
def test_any_batch_equals_single_rows(settings: ExportSettings, exported: Exported) -> None:
    _, session = opened(exported(settings))
    values = pictures(7) * np.geomspace(0.2, 3, 7, dtype=np.float32).reshape(-1, 1, 1, 1)  # ranges of their own
    singles = np.concatenate([answer(session, fed(session, values[i : i + 1])) for i in range(7)])
    # rounding of inner tensors turns where the kernels' order of sums does
    tolerance = {"int8": 0.05 * float(np.abs(singles).max())}.get(settings.precision, 1e-5)
    for rows in (1, 3, 7):
        np.testing.assert_allclose(answer(session, fed(session, values[:rows])), singles[:rows], atol=tolerance)
    np.testing.assert_allclose(answer(session, fed(session, values[:1])), singles[:1], atol=tolerance)


def stored_as(settings: ExportSettings, layer: str) -> set[str]:
    """The dtypes that a layer's weights may have in the file."""
    if settings.grid is None:
        return {settings.precision}
    bits = settings.grid.bits(layer, depthwise=layer.startswith("depthwise"))
    return {"int4", "uint4"} if bits == 4 else {"int8", "uint8"}


@every_settings
def test_inspect_is_honest(settings: ExportSettings, exported: Exported) -> None:
    artifact = exported(settings)
    contents = get(artifact.runtime).inspect(Path(artifact.path))
    by_layer = {op.layer: op for op in contents.ops if op.layer in WEIGHTS}
    assert set(by_layer) == set(WEIGHTS)
    left_in_float = 0
    for layer, op in by_layer.items():
        assert int(np.prod(op.weight_shape)) == WEIGHTS[layer]
        kept = layer in settings.keep_float
        if op.weight_dtype not in stored_as(settings, layer) and not kept:
            left_in_float += 1
            assert layer in " ".join(artifact.notes), "what stays in float is said"
        if kept:
            assert (op.weight_dtype, op.compute_dtype) == ("float32", "float32")
        elif settings.precision == "int8":
            assert op.compute_dtype == settings.activations
        width = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1, "int4": 0.5, "uint4": 0.5}[op.weight_dtype]
        assert op.weight_bytes == WEIGHTS[layer] * width
    assert left_in_float < len(WEIGHTS)
    assert sum(op.macs for op in contents.ops) == MACS
    assert [op.index for op in contents.ops] == list(range(len(contents.ops)))
    assert sum(contents.op_counts().values()) == len(contents.ops) >= len(WEIGHTS) + 2


@every_settings
def test_artifact_states_the_file(settings: ExportSettings, exported: Exported) -> None:
    artifact = exported(settings)
    parts = [path.read_bytes() for path in files_of(artifact.path)]
    data = b"".join(parts)
    assert (artifact.bytes, artifact.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    packed = [(one := zlib.compressobj(9, zlib.DEFLATED, -15)).compress(part) + one.flush() for part in parts]
    assert artifact.download_bytes == pytest.approx(sum(map(len, packed)), rel=0.01)
    assert artifact.plan == Plan((), settings)
    assert artifact.runtime == settings.runtime


@every_settings
def test_same_plan_same_file(
    *, settings: ExportSettings, exported: Exported, model: Model, calibration: Samples, work: Path, tmp_path: Path
) -> None:
    first, runtime = exported(settings), get(settings.runtime)
    again = runtime.export(model, first.plan, calibration, tmp_path / f"b{runtime.EXTENSION}", work=work)
    assert again.sha256 == first.sha256
    assert again.notes == first.notes


@pytest.mark.slow
@every_runtime
def test_same_network_same_file_from_scratch(name: str, exported: Exported, model: Model, tmp_path: Path) -> None:
    settings, runtime = ExportSettings(name), get(name)
    again = runtime.export(model, Plan((), settings), None, tmp_path / f"b{runtime.EXTENSION}", work=tmp_path / "work")
    assert again.sha256 == exported(settings).sha256


@every_settings
def test_profile_times_the_known_operators(settings: ExportSettings, exported: Exported) -> None:
    runtime, session = opened(exported(settings))
    path = Path(exported(settings).path)
    costs = runtime.profile(path, as_stated(session, pictures(1)), runs=5)
    ops = runtime.inspect(path).ops
    assert costs
    assert all(cost.time_us >= 0 and cost.name and cost.type and cost.ran_on for cost in costs)
    assert sum(cost.time_us for cost in costs) > 0
    timed = {ops[cost.index].layer for cost in costs if cost.index >= 0}
    assert len(timed & set(WEIGHTS)) >= 3, "the layers with weights are found again in the profile"


@every_runtime
def test_unsupported_plans_are_refused_in_a_sentence(name: str, model: Model, tmp_path: Path) -> None:
    other = next(n for n in RUNTIMES if n != name)
    runtime = get(name)
    strangers = [ExportSettings(name, "int8", "uint8", io="int8")]
    if name != "litert":  # the caller hands LiteRT its own plans only
        strangers.append(ExportSettings(other))
    for plan in (Plan((), settings) for settings in strangers):
        (reason, *_) = runtime.why_not(plan, model.signature)
        assert len(reason.split()) > 4
        with pytest.raises(UserError):
            runtime.export(model, plan, None, tmp_path / f"x{runtime.EXTENSION}", work=tmp_path / "work")
    assert not list(tmp_path.glob("*.*"))


@pytest.mark.parametrize("name", for_apps())
def test_a_layer_that_matches_nothing_is_refused(
    *, name: str, model: Model, calibration: Samples, exported: Exported, work: Path, tmp_path: Path
) -> None:
    exported(ExportSettings(name))  # the float32 file is there already
    runtime, settings = get(name), replace(static_int8(name), keep_float=("stem.1000",))
    if runtime.why_not(Plan((), settings), model.signature):
        pytest.skip(f"{name} keeps no layer in float")
    with pytest.raises(UserError, match=r"stem\.1000"):
        runtime.export(model, Plan((), settings), calibration, tmp_path / f"x{runtime.EXTENSION}", work=work)
    assert not list(tmp_path.iterdir()), "a failed export leaves nothing behind"


@pytest.mark.parametrize("name", for_apps())
def test_static_int8_without_calibration_is_refused(name: str, model: Model, work: Path, tmp_path: Path) -> None:
    runtime = get(name)
    with pytest.raises(UserError, match="alibrat"):
        runtime.export(model, Plan((), static_int8(name)), None, tmp_path / "x", work=work)
    assert not list(tmp_path.iterdir())


@every_runtime
def test_samples_that_differ_do_not_touch_one_another(
    name: str, apart: Callable[[str], tuple[Model, Artifact]]
) -> None:
    model, artifact = apart(name)
    session = get(name).load(Path(artifact.path))
    scales, shifts = np.geomspace(0.1, 5, 16), np.linspace(-2, 2, 16)
    values = pictures(16) * scales.reshape(-1, 1, 1, 1) + shifts.reshape(-1, 1, 1, 1)
    values = values.astype(np.float32)
    with torch.no_grad():
        wanted = [output.numpy() for output in model.network(torch.from_numpy(values))]
    for rows in (1, 2, 16):
        found = session.run(as_stated(session, values[:rows]))
        for spec, output in zip(session.signature.outputs, wanted, strict=True):
            np.testing.assert_allclose(found[spec.name], output[:rows], atol=1e-4 * np.abs(output).max())


@every_runtime
def test_a_file_whose_first_operator_is_no_convolution_is_fed_as_a_picture(
    name: str, apart: Callable[[str], tuple[Model, Artifact]]
) -> None:
    model, artifact = apart(name)
    (spec,) = get(name).load(Path(artifact.path)).signature.inputs
    assert spec.layout == ("NHWC" if spec.shape[-1] == 3 else "NCHW")
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    samples = Samples(
        array=pixels,
        labels=np.zeros(4, np.int64),
        names=list("abcd"),
        split="train",
        sha256="pixels",
        preprocess=model.preprocess,
    )
    outputs = run_samples.run_all(name, Path(artifact.path), samples).outputs
    with torch.no_grad():
        wanted = model.network(torch.from_numpy(samples.inputs(slice(None))))[0].numpy()
    np.testing.assert_allclose(outputs, wanted, atol=1e-4)


@every_runtime
def test_weights_too_small_to_count_are_zero_in_the_file_and_said(
    name: str, apart: Callable[[str], tuple[Model, Artifact]]
) -> None:
    model, artifact = apart(name)
    weight = model.network.conv.weight.detach().abs().numpy()
    assert int(((weight > 0) & (weight < 1e-30)).sum()) == 8 * 6 * 9 + 1, "the user's network is left as it was"
    assert [note for note in artifact.notes if note.startswith("433 weights in 1 tensors are so small")]
    data = b"".join(path.read_bytes() for path in files_of(artifact.path))
    stored = np.concatenate([np.frombuffer(data[start : len(data) // 4 * 4 - 4 + start], "<f4") for start in range(4)])
    tiny = np.float32(weight[(weight > 0) & (weight < 1e-30)])
    assert not np.isin(tiny, stored).any()


class Branching(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image if image.sum() > 0 else -image


@every_runtime
def test_a_network_that_cannot_be_traced_leaves_nothing(name: str, model: Model, tmp_path: Path) -> None:
    runtime = get(name)
    broken = replace(model, network=nn.Sequential(Branching()), sha256="broken")
    with pytest.raises((ExportFailed, UserError)) as caught:
        runtime.export(
            broken, Plan((), ExportSettings(name)), None, tmp_path / f"x{runtime.EXTENSION}", work=tmp_path / "work"
        )
    assert len(str(caught.value)) < 600
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@every_runtime
@pytest.mark.parametrize("kind", ["garbage", "empty", "truncated", "missing", "folder"])
def test_broken_files_are_refused_in_a_sentence(name: str, kind: str, exported: Exported, tmp_path: Path) -> None:
    runtime = get(name)
    path = tmp_path / f"broken{runtime.EXTENSION}"
    whole = Path(exported(ExportSettings(name)).path).read_bytes()
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes({"garbage": b"no model " * 500, "empty": b"", "truncated": whole[: len(whole) // 2]}[kind])
    values = {"image": pictures(1)}
    for call in (runtime.inspect, runtime.load, lambda p: runtime.profile(p, values, runs=1)):
        with pytest.raises((UserError, CannotRunHere)) as caught:
            call(path)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)


@every_runtime
def test_wrong_inputs_are_refused_in_a_sentence(name: str, exported: Exported) -> None:
    _, session = opened(exported(ExportSettings(name)))
    right = as_stated(session, pictures(1))["image"]
    for wrong in (
        {"photo": right},
        {"image": right[:, :-1]},
        {"image": right[0]},
        {"image": right.astype(np.int32)},
        {},
    ):
        with pytest.raises(UserError):
            session.run(wrong)
    session.run({"image": right})  # and the session goes on


@every_runtime
def test_probe_runs_a_tiny_network(name: str) -> None:
    info = get(name).probe()
    assert info.ok, info.detail
    assert info.name == name
    assert info.version


@every_runtime
def test_the_module_says_what_it_is(name: str) -> None:
    runtime = get(name)
    assert name == runtime.NAME
    assert runtime.EXTENSION.startswith(".")
    assert runtime.HOW in ("measured", "estimated")
    assert "torch" in runtime.ACCEPTS


def test_unknown_names_and_extensions() -> None:
    with pytest.raises(UserError, match=", ".join(RUNTIMES)):
        get("tensorrt")
    with pytest.raises(UserError, match=r"\.tflite"):
        for_file("model.engine")


__all__ = [name for name in dir() if name.startswith("test_")]
