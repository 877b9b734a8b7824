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

from .test_plan import plans

FINITE = st.floats(-1e9, 1e9)
WORD = st.text(string.ascii_letters + "_ é.", max_size=10)


def through_json(data: object) -> dict:
    return json.loads(json.dumps(data, allow_nan=False))


@st.composite
def preprocesses(draw: st.DrawFn) -> Preprocess:
    colour = draw(st.sampled_from(["RGB", "BGR", "GRAY"]))
    channels = 1 if colour == "GRAY" else 3
    return Preprocess(
        draw(st.integers(1, 512)),
        draw(st.integers(1, 512)),
        draw(st.sampled_from(["shorter", "longer", "exact", "none"])),
        draw(st.integers(1, 600)),
        draw(st.sampled_from(["nearest", "bilinear", "bicubic"])),
        colour,
        draw(st.tuples(*[st.integers(0, 255)] * 3)),
        draw(st.floats(1e-3, 1)),
        draw(st.tuples(*[FINITE] * channels)),
        draw(st.tuples(*[st.floats(1e-3, 10)] * channels)),
    )


specs = st.builds(
    TensorSpec,
    WORD,
    st.lists(st.none() | st.integers(1, 512), max_size=4).map(tuple),
    st.sampled_from(["float32", "uint8", "int8"]),
    st.sampled_from(["NCHW", "NHWC", ""]),
)
signatures = st.builds(Signature, st.lists(specs, max_size=2).map(tuple), st.lists(specs, max_size=2).map(tuple))
measurements = st.builds(
    Measurement,
    WORD,
    st.sampled_from(["ms", "B", "points"]),
    FINITE,
    st.integers(1, 1000),
    st.none() | FINITE,
    st.none() | FINITE,
    st.sampled_from(["measured", "estimated"]),
    WORD,
    st.lists(FINITE, max_size=3).map(tuple),
    st.dictionaries(WORD, WORD | st.integers(), max_size=2),
) | st.builds(Measurement.not_possible, WORD, st.just("B"), WORD)


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    plan = draw(plans)
    size_bytes = draw(st.integers(0, 10**9))
    made = Artifact("models/a.tflite", "00", size_bytes, size_bytes // 2, "litert", plan, tuple(draw(st.lists(WORD))))
    return Trial(
        draw(st.integers(0, 999)),
        draw(st.sampled_from(["baseline", "recipe", "pruned", "finalist"])),
        plan,
        draw(st.sampled_from(["ok", "failed"])),
        draw(st.none() | st.just(made)),
        draw(st.dictionaries(WORD, measurements, max_size=3)),
        draw(WORD),
        draw(WORD),
        draw(st.integers(0, 10**6)) / 1000,
        draw(st.dictionaries(WORD, WORD, max_size=2)),
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
    with pytest.raises(TypeError, match="gamma"):
        Preprocess.from_json({"gamma": 2.2})
    assert Preprocess.from_json({}) == Preprocess()


@given(signatures)
def test_signature_both_ways(signature: Signature) -> None:
    assert Signature.from_json(through_json(signature.to_json())) == signature


@given(measurements)
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
        OpInfo(0, "a", "CONV_2D", (1, 8), weight_dtype="int8", weight_bytes=100),
        OpInfo(1, "b", "CONV_2D", (1, 8), weight_dtype="float32", weight_bytes=40),
        OpInfo(2, "c", "ADD", (1, 8)),
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
