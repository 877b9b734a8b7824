"""Preprocess, Signature, Measurement, Artifact, Trial, errors: what is stored comes back as it was."""

from __future__ import annotations

import json
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketfit.core import errors
from pocketfit.core.artifact import Artifact, Contents, OpInfo
from pocketfit.core.measurement import Measurement
from pocketfit.core.model import Origin
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.runtime import answer, quantize_input
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.core.trial import Trial
from tests.core.plan.test_plan import plans

FINITE = st.floats(-1e9, 1e9)
WORD = st.text(string.ascii_letters + "_ é.", max_size=10)
NAME = st.text(string.ascii_letters + "_ é.", min_size=1, max_size=10)


def through_json(data: object) -> dict:
    return json.loads(json.dumps(data, allow_nan=False))


@st.composite
def preprocesses(draw: st.DrawFn) -> Preprocess:
    colour = draw(st.sampled_from(["RGB", "BGR", "GRAY"]))
    channels = 1 if colour == "GRAY" else 3
    return Preprocess(
        height=draw(st.integers(1, 512)),
        width=draw(st.integers(1, 512)),
        resize=draw(st.sampled_from(["shorter", "longer", "exact", "none"])),
        resize_px=draw(st.integers(1, 600)),
        filter=draw(st.sampled_from(["nearest", "bilinear", "bicubic"])),
        colour=colour,
        background=draw(st.tuples(*[st.integers(0, 255)] * 3)),
        scale=draw(st.floats(1e-3, 1)),
        mean=draw(st.tuples(*[FINITE] * channels)),
        std=draw(st.tuples(*[st.floats(1e-3, 10)] * channels)),
    )


specs = st.builds(
    TensorSpec,
    NAME,
    st.lists(st.none() | st.integers(1, 512), min_size=1, max_size=4).map(tuple),
    st.sampled_from(["float32", "uint8", "int8"]),
    st.sampled_from(["NCHW", "NHWC", ""]),
)
SIDE = st.lists(specs, min_size=1, max_size=2).map(tuple)
signatures = st.builds(Signature, SIDE, SIDE)


@st.composite
def measurements(draw: st.DrawFn, quantity: str | None = None) -> Measurement:
    """A number in the middle of its interval, as far as that is known; or one that could not be taken."""
    name = draw(WORD) if quantity is None else quantity
    if draw(st.booleans()):
        return Measurement.not_possible(name, "B", draw(WORD))
    low, value, high = sorted(draw(st.tuples(*[st.floats(1e-3, 1e9)] * 3)))
    sign, unit = draw(st.sampled_from([(1, "ms"), (1, "B"), (-1, "pt")]))
    low, high = sorted((sign * low, sign * high))
    return Measurement(
        quantity=name,
        unit=unit,
        value=sign * value,
        n=draw(st.integers(1, 1000)),
        low=draw(st.none() | st.just(low)),
        high=draw(st.none() | st.just(high)),
        how=draw(st.sampled_from(["measured", "estimated"])),
        reason=draw(WORD),
        samples=tuple(draw(st.lists(FINITE, max_size=3))),
        environment=draw(st.dictionaries(WORD, WORD | st.integers(-(2**62), 2**62), max_size=2)),
    )


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    plan = draw(plans)
    size_bytes, sha256 = draw(st.integers(2, 10**9)), "0a" * 32
    notes = tuple(draw(st.lists(WORD)))
    made = Artifact(
        path="models/a.tflite",
        sha256=sha256,
        bytes=size_bytes,
        download_bytes=size_bytes // 2,
        runtime=plan.export.runtime,
        plan=plan,
        notes=notes,
    )
    worked = draw(st.booleans())
    return Trial(
        number=draw(st.integers(0, 999)),
        stage=draw(st.sampled_from(["baseline", "recipe", "ladder", "pruned", "finalist"])),
        plan=plan,
        status="ok" if worked else "failed",
        artifact=made if worked else None,
        measurements={name: draw(measurements(name)) for name in draw(st.lists(WORD, max_size=3, unique=True))},
        error=draw(WORD),
        log_tail=draw(WORD),
        seconds=draw(st.integers(0, 10**6)) / 1000,
        details=draw(st.dictionaries(WORD, WORD, max_size=2)),
    )


@given(preprocesses())
def test_preprocess_both_ways(preprocess: Preprocess) -> None:
    assert Preprocess.from_json(through_json(preprocess.to_json())) == preprocess
    assert preprocess.channels == len(preprocess.mean)


def test_preprocess_at_another_resolution_keeps_the_share_of_the_picture() -> None:
    smaller = Preprocess(height=224, width=224, resize_px=256).at(112, 112)
    assert (smaller.height, smaller.width, smaller.resize_px) == (112, 112, 128)
    assert Preprocess(resize_px=1).at(1, 1).resize_px == 1


def test_an_unknown_key_of_a_preprocess_is_refused() -> None:
    with pytest.raises(errors.UserError, match="'gamma' is no known key"):
        Preprocess.from_json({"gamma": 2.2})
    assert Preprocess.from_json({}) == Preprocess()


@given(signatures)
def test_signature_both_ways(signature: Signature) -> None:
    assert Signature.from_json(through_json(signature.to_json())) == signature


@given(measurements())
def test_measurement_both_ways(measurement: Measurement) -> None:
    data = through_json(measurement.to_json())
    assert Measurement.from_json(data) == measurement
    assert "samples" not in data or data["samples"]


def test_what_is_not_possible_has_a_reason_and_no_value() -> None:
    data = Measurement.not_possible("memory_bytes", "B", "no /proc on this system").to_json()
    assert data == {
        "quantity": "memory_bytes",
        "unit": "B",
        "value": None,
        "n": 0,
        "how": "not_possible_here",
        "reason": "no /proc on this system",
    }


@given(trials())
def test_trial_both_ways(trial: Trial) -> None:
    data = through_json(trial.to_json())
    assert Trial.from_json(data) == trial
    assert data["code"] == trial.plan.code
    assert trial.value("nothing of the kind") is None


def test_origin_both_ways() -> None:
    origin = Origin("zoo", "mobilenet_v2", {"width": 0.5, "classes": 10})
    assert Origin.from_json(through_json(origin.to_json())) == origin


def test_contents_count_operators_and_bytes() -> None:
    ops = (
        OpInfo(index=0, name="a", type="CONV_2D", output_shape=(1, 8), weight_dtype="int8", weight_bytes=100),
        OpInfo(index=1, name="b", type="CONV_2D", output_shape=(1, 8), weight_dtype="float32", weight_bytes=40),
        OpInfo(index=2, name="c", type="ADD", output_shape=(1, 8)),
    )
    contents = Contents("tflite", (), (), ops)
    assert contents.op_counts() == {"CONV_2D": 2, "ADD": 1}
    assert contents.weight_dtypes() == {"int8": 100, "float32": 40}


class Doubling:
    """A session of a uint8 file: real = q * 0.1 - 1 in, real = (q - 10) * 0.5 out; the answer is the doubled input."""

    def __init__(self) -> None:
        from pocketfit.core.artifact import Quantization

        self.signature = Signature((TensorSpec("x", (None, 2), "uint8"),), (TensorSpec("y", (None, 2), "uint8"),))
        self.input_quantization: Quantization | None = Quantization((0.1,), (10,))
        self.output_quantization: Quantization | None = Quantization((0.5,), (10,))

    def run(self, inputs: dict) -> dict:
        real = (inputs["x"].astype(np.float32) - 10) * 0.1
        assert inputs["x"].dtype == np.uint8
        return {"y": np.rint(real * 2 / 0.5 + 10).astype(np.uint8)}

    def close(self) -> None:
        return


def test_answer_quantizes_on_the_way_in_and_back_on_the_way_out() -> None:
    given_values = np.array([[0.5, 1.0], [-5.0, 2.0]], np.float32)  # -5 saturates at -1
    found = answer(Doubling(), given_values)
    assert found.dtype == np.float32
    assert found.tolist() == [[1.0, 2.0], [-2.0, 4.0]]
    two = Doubling()
    two.signature = Signature(two.signature.inputs * 2, two.signature.outputs)
    with pytest.raises(errors.UserError, match="has 2 inputs"):
        answer(two, given_values)


def test_input_is_rounded_half_to_even_and_saturates() -> None:
    values = np.array([0.5, 1.5, 2.5, -200, 200], np.float32)
    assert quantize_input(values, "int8", 1.0, 0).tolist() == [0, 2, 2, -128, 127]
    assert quantize_input(values, "uint8", 1.0, 3).tolist() == [3, 5, 5, 0, 203]


def test_the_tree_of_errors() -> None:
    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert {name: kind.__bases__[0].__name__ for name, kind in kinds.items() if name != "annotations"} == {
        "PocketfitError": "Exception",
        "UserError": "PocketfitError",
        "MissingPackage": "UserError",
        "ExportFailed": "PocketfitError",
        "CannotRunHere": "PocketfitError",
        "Stopped": "PocketfitError",
    }
    assert errors.ExportFailed("it died", "last line").log_tail == "last line"
