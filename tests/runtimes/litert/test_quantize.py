"""The grid of the weights; ranges and fingerprints of the tensors."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pocketfit.core.artifact import Artifact
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.formats import tflite_read
from pocketfit.numerics import affine, quantization_ranges
from pocketfit.runtimes.litert import quantize, runtime
from tests.runtimes.litert.network import (
    CLASSES,
    LAYERS,
    MODEL,
    SAMPLES,
    SIZE,
    Net,
    answers,
    expected,
    export,
    model_of,
    sqnr_db,
)

Grid = tuple[NDArray[np.generic], NDArray[np.float32]]


def stored(path: Path) -> dict[str, Grid]:
    """By layer: its integers [outputs, taps x inputs], and the scale of each output."""
    file = tflite_read.read(path)
    found = {}
    for op in file.graph.operators:
        if layer := tflite_read.layer_of(file, op):
            index = file.weight(op)
            integers, stated = np.asarray(file.constant(index)), file.quantization(index)
            if file.op_type(op) == "DEPTHWISE_CONV_2D":
                integers = np.moveaxis(integers, 3, 0)
            scales = np.zeros(0) if stated is None else np.float32(stated.scales)
            assert stated is None or set(stated.zero_points) == {0}
            found[layer] = integers.reshape(len(integers), -1), scales
    return found


def files(network: nn.Module, tmp_path: Path, *settings: ExportSettings) -> list[Artifact]:
    model = model_of(network, "files")
    return [
        runtime.export(model, Plan((), s), SAMPLES, tmp_path / f"{Plan((), s).file_stem}.tflite", work=tmp_path)
        for s in settings
    ]


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_weights_are_symmetric_per_channel(weights: str) -> None:
    """Scale max|w| / 127 or / 7 of each output channel, zero point 0, rounded to the nearest: LiteRT's 8-bit
    specification, and the same rule for 4 bits, where depthwise layers keep 8."""
    real, quantized = stored(Path(export().path)), stored(Path(export("int8", weights=weights).path))
    assert tuple(quantized) == LAYERS
    for layer, (integers, scales) in quantized.items():
        bits = 8 if weights == "int8" or layer == "depthwise.0" else 4
        weight = real[layer][0]
        np.testing.assert_array_equal(scales, affine.symmetric_scale(np.abs(weight).max(axis=1), bits))
        np.testing.assert_array_equal(integers, affine.quantize(weight, scales, axis=0))
        assert np.abs(integers.astype(int)).max(axis=1).tolist() == [2 ** (bits - 1) - 1] * len(weight)


@pytest.mark.parametrize(
    "settings",
    [
        ExportSettings("litert", "int8"),
        ExportSettings("litert", "int8", weights="int4", keep_int8=("stem.0",)),
        pytest.param(ExportSettings("litert", "dynamic-int8", weights="int4"), marks=pytest.mark.slow),
        pytest.param(ExportSettings("litert", "weight-only", weights="int4"), marks=pytest.mark.slow),
    ],
    ids=lambda s: s.code,
)
def test_weights_that_lie_on_the_grid_come_back_as_their_integers(settings: ExportSettings, tmp_path: Path) -> None:
    random, network, wanted = np.random.default_rng(5), Net(), {}
    network.stem[1] = network.depthwise[1] = nn.Identity()
    for layer, bits in ((name, settings.grid.bits(name, depthwise=name == "depthwise.0")) for name in LAYERS):
        module, largest = network.get_submodule(layer), 2 ** (bits - 1) - 1
        shape = tuple(module.weight.shape)
        integers = random.integers(-largest, largest + 1, shape)
        integers.reshape(shape[0], -1)[:, 0] = largest * random.choice([-1, 1], shape[0])
        scales = random.uniform(0.001, 0.1, shape[0]).astype(np.float32).reshape(-1, *[1] * (len(shape) - 1))
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(integers * scales))
        wanted[layer] = np.moveaxis(integers, 1, -1).reshape(shape[0], -1)
    (artifact,) = files(network, tmp_path, settings)
    for layer, (integers, _) in stored(Path(artifact.path)).items():
        np.testing.assert_array_equal(integers, wanted[layer], err_msg=layer)


def test_a_bias_whose_channel_is_switched_off_is_not_lost(tmp_path: Path) -> None:
    """Weights near 0 get a scale in which 32 bits don't hold the bias: ai-edge-quantizer lets it saturate."""
    torch.manual_seed(1)
    network = Net()
    with torch.no_grad():
        for layer in ("stem.0", "depthwise.0", "project", "classifier"):
            network.get_submodule(layer).weight[0] *= 0
            network.get_submodule(layer).weight[1] *= 1e-9
        network.project.bias.copy_(torch.linspace(-3, 3, 16))
        network.classifier.bias.copy_(torch.linspace(-1, 1, CLASSES))
    wanted = expected(model_of(network, "files"))
    settings = [ExportSettings("litert", "int8"), ExportSettings("litert", "int8", weights="int4")]
    for artifact, least_db in zip(files(network, tmp_path, *settings), (30, 17), strict=True):
        got = answers(artifact)  # XNNPACK's kernel for 4-bit weights has room for smaller biases still
        assert np.abs(got[:, :2] - [-1, -0.5]).max() < 0.02
        assert sqnr_db(wanted, got) > least_db


@pytest.mark.slow
def test_padding_with_minus_infinity_takes_the_range_of_what_it_pads(tmp_path: Path) -> None:
    """A max pooling with padding after a layer without ReLU: the converter pads with minus infinity."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(8 * 12 * 12, CLASSES)
    )
    (artifact,) = files(network, tmp_path, ExportSettings("litert", "int8"))
    assert "PADV2" in runtime.inspect(Path(artifact.path)).op_counts()
    assert sqnr_db(expected(model_of(network, "")), answers(artifact)) > 20


@pytest.fixture(scope="module")
def samples_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    np.savez(path, image=SAMPLES.inputs(slice(0, 6), layout="NHWC"))
    return path


def test_what_is_gathered_is_what_the_tensors_hold(samples_file: Path, tmp_path: Path) -> None:
    source = export().path
    quantize.gather(source, str(samples_file), str(tmp_path / "a.npz"), histograms=False)
    quantize.gather(source, str(samples_file), str(tmp_path / "b.npz"), histograms=True)
    limits, counted = quantization_ranges.load(tmp_path / "a.npz"), quantization_ranges.load(tmp_path / "b.npz")
    assert {op.name for op in runtime.inspect(Path(source)).ops} | {"image"} == set(limits) == set(counted)
    values = SAMPLES.inputs(slice(0, 6))
    with torch.no_grad():
        stem = MODEL.network.stem(torch.from_numpy(values)).numpy()
        logits = MODEL.network(torch.from_numpy(values)).numpy()
    for name, tensor in (("image", values), ("stem.0", stem), ("scores", logits)):
        found = counted[name]
        assert (found.minimum, found.maximum) == pytest.approx((tensor.min(), tensor.max()), abs=1e-5)
        assert replace(found, counts=limits[name].counts, zeros=0) == limits[name]
        assert found.counts.sum() == tensor.size
        assert not len(limits[name].counts)
    average, lows = np.float64(0), values.reshape(6, -1).min(axis=1)
    for i, low in enumerate(lows):
        average = low if i == 0 else 0.95 * average + 0.05 * low
    assert counted["image"].average_minimum == pytest.approx(average, abs=1e-6)


def test_fingerprints_tell_tensors_apart(samples_file: Path, tmp_path: Path) -> None:
    quantize.fingerprints(export().path, str(samples_file), str(tmp_path / "prints.json"))
    prints = json.loads((tmp_path / "prints.json").read_text())
    values = SAMPLES.inputs(slice(0, 6))
    with torch.no_grad():
        stem = MODEL.network.stem(torch.from_numpy(values)).numpy()
    assert prints["image"] == pytest.approx(quantization_ranges.fingerprint(values), rel=1e-5, abs=1e-5)
    assert prints["stem.0"] == pytest.approx(quantization_ranges.fingerprint(stem), rel=1e-4)
    assert {*LAYERS[:3], "image", "scores"} <= set(prints)
    assert not any(name.endswith(("weight", "bias")) for name in prints)


@pytest.mark.parametrize(
    "method", ["mse", *(pytest.param(m, marks=pytest.mark.slow) for m in ("moving-average", "percentile", "kl"))]
)
def test_every_way_to_set_ranges_gives_a_file_that_works(method: str) -> None:
    artifact, plain = export("int8", ranges=method), export("int8")
    assert artifact.sha256 != plain.sha256
    assert sqnr_db(expected(), answers(artifact)) > 12
    session, usual = (runtime.inspect(Path(a.path)) for a in (artifact, plain))
    assert session.outputs == usual.outputs  # ends keep their minimum and maximum
    assert SIZE in session.inputs[0].shape
