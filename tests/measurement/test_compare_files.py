"""Files that differ in one known layer, and files that differ in nothing."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.measurement import compare_files, layer_drift
from pocketfit.measurement.compare_files import LayerDrift
from pocketfit.runtimes.onnxruntime import layer_outputs


@pytest.fixture
def pictures():
    random = np.random.default_rng(0)
    preprocess = Preprocess(height=8, width=8, resize="none")
    pixels = random.integers(0, 256, (12, 8, 8, 3), np.uint8)
    return Samples(
        array=pixels,
        labels=np.arange(12) % 8,
        names=[str(i) for i in range(12)],
        split="search",
        sha256="sha",
        preprocess=preprocess,
    )


def test_a_file_is_faithful_to_itself(conv_file, pictures):
    found = compare_files.compare(conv_file(), conv_file(), pictures)
    assert (found.agreement, found.sqnr_db, found.cosine) == (1.0, math.inf, pytest.approx(1.0))
    assert found.score_a == found.score_b
    assert (found.drop.points, found.drop.n) == (0, 12)
    assert [one.layer for one in found.layers] == ["stem", "body", "head"]
    assert all(one.sqnr_db == math.inf for one in found.layers)
    assert found.first_drift is None
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["sqnr_db"] is None
    assert data["n"] == 12


@pytest.mark.parametrize("culprit", ["stem", "body", "head"])
def test_the_first_layer_that_drifts_is_the_one_that_was_spoilt(conv_file, pictures, culprit):
    found = compare_files.compare(conv_file(), conv_file(noise_in=culprit), pictures)
    assert found.first_drift.layer == culprit
    before = [one.sqnr_db for one in found.layers[: ["stem", "body", "head"].index(culprit)]]
    assert all(value == math.inf for value in before)
    assert 5 < found.first_drift.sqnr_db < 30
    assert found.sqnr_db < 30
    assert "mean nothing" not in found.layers_note  # reading the layers changed no answer


def test_scores_and_drop_are_those_of_the_files(mean_file, coloured):
    samples = coloured(n=30, wrong=3)
    found = compare_files.compare(mean_file(), mean_file(scale=-1.0), samples)
    assert found.score_a == 0.9
    assert found.agreement == 0.0
    assert found.drop.points == pytest.approx(100 * (found.score_a - found.score_b))
    assert found.cosine == pytest.approx(-1.0)
    assert "No layer of the two files has the same name and shape" in found.layers_note  # there is none with weights


def test_without_labels_only_the_answers_are_compared(conv_file, pictures):
    steps = []
    found = compare_files.compare(
        conv_file(),
        conv_file(noise_in="head"),
        replace(pictures, labels=np.full(12, -1)),
        layer_samples=0,
        progress=lambda *step: steps.append(step),
    )
    assert (found.score_a, found.score_b, found.drop) == (None, None, None)
    assert found.agreement is not None
    assert found.layers == ()
    assert "no sample was set aside" in found.layers_note
    assert steps[-1] == (24, 24)


def test_networks_with_other_answers_are_refused(conv_file, pictures):
    with pytest.raises(UserError, match=r"\[8\].*\[9\]"):
        compare_files.compare(conv_file(channels=8), conv_file(channels=9), pictures)


def test_layers_of_two_runtimes_are_not_possible_with_the_reason():
    assert layer_drift.why_not("litert", "litert") == ""
    assert "same format" in layer_drift.why_not("litert", "onnxruntime")
    assert "torch" in layer_drift.why_not("torch", "torch")


@pytest.mark.slow
def test_an_int8_file_drifts_little_layer_by_layer(litert_pair):
    float_file, int8_file, samples = litert_pair
    found = compare_files.compare(float_file, int8_file, samples)
    assert len(found.layers) == 3
    assert all(15 < one.sqnr_db < 60 for one in found.layers)
    assert found.sqnr_db > 15
    assert "XNNPACK" in found.layers_note


@pytest.mark.slow
def test_quantized_onnx_layers_are_read_behind_their_activation(conv_file, pictures, tmp_path):
    """ONNX Runtime's own quantizer takes the ReLU away (QDQ), or takes the layer apart (dynamic)."""
    from onnxruntime import quantization

    float_file = conv_file()

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.rows = iter(pictures.inputs(slice(None), "NCHW"))

        def get_next(self):
            row = next(self.rows, None)
            return None if row is None else {"image": row[None]}

    quantization.quantize_static(str(float_file), str(tmp_path / "static.onnx"), Reader(), per_channel=True)
    quantization.quantize_dynamic(
        str(float_file), str(tmp_path / "dynamic.onnx"), weight_type=quantization.QuantType.QUInt8
    )
    for name in ("static.onnx", "dynamic.onnx"):
        found = compare_files.compare(float_file, tmp_path / name, pictures)
        assert len(found.layers) == 3, name
        assert all(20 < one.sqnr_db < 60 for one in found.layers), (name, found.layers)
        assert found.first_drift is None


# --- the definitions ---


@pytest.mark.parametrize(
    ("decibels", "expected"),
    [
        ([40, 38, 36, 34], None),
        ([40, 18, 17], 1),
        ([29.9], 0),  # the first layer counts from 36 dB
        ([33, 28, 24, 21, 17, 13, 9], 6),  # no fall of 6 dB below all before it; then the first under 10 dB
        ([33, 20, 30, 15], 1),
        ([33, 28, 35, 23, 22], None),  # 23 is 12 below its neighbour, but only 5 below the lowest before it
        ([math.inf, math.inf, 25], 2),
        ([-math.inf], 0),
    ],
)
def test_first_drift_follows_its_definition(decibels, expected):
    found = tuple(LayerDrift(str(i), value) for i, value in enumerate(decibels))
    drift = compare_files.first_drift(found)
    assert (None if drift is None else int(drift.layer)) == expected


def tapped(nodes, constants=()):
    readers = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return layer_outputs.behind_activation(nodes[0], readers, set(constants))


def node(kind, inputs, output):
    return helper.make_node(kind, inputs.split(), [output])


def test_where_a_layer_is_read():
    conv, relu = node("Conv", "x w", "c"), node("Relu", "c", "r")
    quantize, dequantize = node("QuantizeLinear", "r s z", "q"), node("DequantizeLinear", "q s z", "d")
    again = node("DequantizeLinear", "q s z", "d2")
    assert tapped([conv]) == "c"
    assert tapped([conv, relu]) == "r"
    assert tapped([conv, relu, quantize, dequantize]) == "d"
    assert tapped([conv, relu, quantize, dequantize, again]) == "d"  # one pair for each reader
    assert tapped([conv, relu, quantize]) == "r"  # the file's own integer output is left alone
    assert tapped([conv, node("Relu", "c", "r"), node("Add", "c y", "a")]) == "c"  # two readers: a shortcut leaves here
    assert tapped([conv, node("Add", "c w", "a")], {"w"}) == "c"  # a float layer holds its bias itself
    integer = node("ConvInteger", "x w", "i")
    steps = [
        integer,
        node("Cast", "i", "f"),
        node("Mul", "f s", "m"),
        node("Add", "m b", "a"),
        node("Clip", "a", "out"),
    ]
    assert tapped(steps, {"b"}) == "out"
    assert tapped(steps) == "m"  # a sum with what is computed is a shortcut, not a bias


def test_layers_match_by_name_or_else_by_order():
    assert layer_drift.matched({"a": "", "b": ""}, {"b": "", "c": ""}) == {"b": "b"}
    assert layer_drift.matched({"a": "", "b": ""}, {"c": "", "d": ""}) == {"a": "c", "b": "d"}
    assert layer_drift.matched({"a": ""}, {"c": "", "d": ""}) == {}
