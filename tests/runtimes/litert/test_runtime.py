"""LiteRT: what was asked for is in the file, read back from its own bytes and run in its own interpreter."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from pocketfit.core.errors import UserError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.runtime import answer
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.runtimes.litert import runtime
from tests.runtimes.litert.network import (
    CLASSES,
    LAYERS,
    MODEL,
    SAMPLES,
    SIZE,
    answers,
    by_layer,
    expected,
    export,
    sqnr_db,
)


@pytest.mark.parametrize(("layout", "shape"), [("", (1, SIZE, SIZE, 3)), ("NCHW", (1, 3, SIZE, SIZE))])
def test_float32_computes_what_torch_computes(layout: str, shape: tuple[int, ...]) -> None:
    artifact = export(layout=layout)
    np.testing.assert_allclose(answers(artifact), expected(), atol=1e-5)
    (given,), (taken,) = (getattr(runtime.inspect(Path(artifact.path)), side) for side in ("inputs", "outputs"))
    assert (given.name, given.shape, given.dtype, given.layout) == ("image", shape, "float32", layout or "NHWC")
    assert (taken.name, taken.shape) == ("scores", (1, CLASSES))


PRECISIONS = {  # weight dtype, compute dtype, how many notes, least SQNR in dB
    "float16": ("float16", "float32", 0, 50),
    "dynamic-int8": ("int8", "float32", 1, 25),
    "weight-only": ("int8", "float32", 1, 25),
    "int8": ("int8", "int8", 0, 20),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_file_states_the_precision_that_was_asked_for(precision: str) -> None:
    *dtypes, notes, least_db = PRECISIONS[precision]
    artifact = export(precision)
    stated = {name: (op.weight_dtype, op.compute_dtype) for name, op in by_layer(artifact).items()}
    assert stated == dict.fromkeys(LAYERS, tuple(dtypes))
    assert len(artifact.notes) == notes
    assert sqnr_db(expected(), answers(artifact)) > least_db


@pytest.mark.parametrize("kept", [("depthwise.0",), ("stem.0", "classifier"), LAYERS[:3]])
def test_named_layers_stay_in_float_and_only_they(kept: tuple[str, ...]) -> None:
    artifact = export("int8", keep_float=kept)
    stated = {name: (op.weight_dtype, op.compute_dtype) for name, op in by_layer(artifact).items()}
    assert stated == {name: ("float32", "float32") if name in kept else ("int8", "int8") for name in LAYERS}
    assert sqnr_db(expected(), answers(artifact)) > 20


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"'stem\.1', 'nose', which no operator .* stem\.0, depthwise\.0"):
        export("int8", keep_float=("stem.1", "nose", "project"))


@pytest.mark.parametrize("io", ["int8", "uint8"])
@pytest.mark.parametrize("kept", [(), ("stem.0", "classifier")])
def test_integer_inputs_and_outputs(io: str, kept: tuple[str, ...]) -> None:
    artifact = export("int8", io=io, keep_float=kept)
    session = runtime.load(Path(artifact.path))
    assert session.signature.inputs[0].dtype == session.signature.outputs[0].dtype == io
    span = session.input_quantization.scales[0] * 255
    values = SAMPLES.inputs(slice(None), layout="NHWC")
    assert span == pytest.approx(float(np.ptp(values)), rel=0.02)
    assert sqnr_db(expected(), answer(session, values)) > 20


@pytest.mark.slow
def test_the_same_network_and_data_give_the_same_bytes(tmp_path: Path) -> None:
    """Everything again, from the trace on: each step in a fresh process."""
    for precision in ("float32", "int8"):
        plan = Plan((), ExportSettings("litert", precision))  # type: ignore[arg-type]
        again = runtime.export(MODEL, plan, SAMPLES, tmp_path / f"{precision}.tflite", work=tmp_path)
        assert again.sha256 == export(precision).sha256
        assert again.sha256 == hashlib.sha256(Path(again.path).read_bytes()).hexdigest()


def test_plans_that_litert_cannot_carry_out(tmp_path: Path) -> None:
    signature = MODEL.signature
    assert runtime.why_not(Plan((), ExportSettings("litert", "int8", io="uint8")), signature) == []
    bad = Plan((), ExportSettings("litert", "int8", activations="uint8"))
    assert "int8 activations, not uint8" in runtime.why_not(bad, signature)[0]
    with pytest.raises(UserError, match="int8 activations"):
        runtime.export(MODEL, bad, SAMPLES, tmp_path / "x.tflite", work=tmp_path)
    for settings, words in (
        (
            ExportSettings("litert", "int8", weights="int7"),
            "kernels whose 8-bit products overflow",
        ),
        (ExportSettings("litert", "dynamic-int8", activations="int16"), "need static quantization"),
        (ExportSettings("litert", "int8", "int16", io="int8"), "use io float32"),
    ):
        (reason,) = runtime.why_not(Plan((), settings), signature)
        assert words in reason
    integer = Signature((TensorSpec("x", (None, 3), "int8"),), signature.outputs)
    assert "int8" in runtime.why_not(Plan((), ExportSettings("litert")), integer)[0]
    with pytest.raises(UserError, match="needs calibration samples"):
        runtime.export(MODEL, Plan((), ExportSettings("litert", "int8")), None, tmp_path / "x.tflite", work=tmp_path)
    assert not (tmp_path / "x.tflite").exists()


@pytest.mark.slow
def test_probe_runs_a_network() -> None:
    info = runtime.probe()
    assert info.ok, info.detail
    assert info.delegates == ("XNNPACK",)
