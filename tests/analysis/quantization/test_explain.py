"""The whole of `explain` on a tiny network whose third layer is spoiled, in both runtimes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.analysis.quantization.explain import Ask, Explanation, explain
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.report.quantization.explain import render
from pocketfit.sources.models.open_model import model_from_module
from tests.analysis.quantization.spoiled_network import pictures

PREPROCESS = Preprocess(height=16, width=16, resize="exact", mean=(0.5,) * 3, std=(0.25,) * 3)


def spoiled_model() -> Model:
    torch.manual_seed(0)
    network = nn.Sequential()
    layers: dict[str, nn.Module] = {"stem": nn.Conv2d(3, 8, 3, 2, 1), "act": nn.ReLU()}
    layers |= {"narrow": nn.Conv2d(8, 6, 1), "wide": nn.Conv2d(6, 16, 1)}
    layers |= {"act2": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(16, 4)}
    for name, layer in layers.items():
        network.add_module(name, layer)
    with torch.no_grad():
        network.narrow.weight[2] *= 100
        network.narrow.bias[2] *= 100
        network.wide.weight[:, 2] /= 100
    return model_from_module(network.eval(), preprocess=PREPROCESS, labels=tuple("abcd"))


def labelled(samples: Samples, model: Model, split: str) -> Samples:
    with torch.no_grad():
        right = model.network(torch.from_numpy(samples.inputs(slice(None)))).argmax(1).numpy()
    return replace(samples, labels=right.astype(np.int64), split=split)


@pytest.fixture(scope="module")
def model() -> Model:
    return spoiled_model()


@pytest.fixture(scope="module")
def calibration() -> Samples:
    return pictures(24, PREPROCESS, seed=1)


@pytest.fixture(scope="module", params=["litert", "onnxruntime"])
def found(
    request: pytest.FixtureRequest, model: Model, calibration: Samples, tmp_path_factory: pytest.TempPathFactory
) -> Explanation:
    search = labelled(pictures(60, PREPROCESS, seed=2), model, "search")
    return explain(model, calibration, search, Ask(request.param), out=tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
def test_the_spoiled_layer_is_named_first_and_measured_in_float(found: Explanation) -> None:
    first = found.culprits[0]
    assert first.layer in ("narrow", "wide") and "times the median" in first.cause
    files = {one.name: one for one in found.files}
    plain = files["plain int8"]
    kept = next(one for one in found.files if one.kind == "kept" and one.layer == first.layer)
    assert kept.gain_db == pytest.approx(kept.sqnr_db - plain.sqnr_db) and kept.gain_db > 3
    assert set(kept.keep_float) <= set(found.exclude)
    assert found.headline.startswith(f"{first.layer} costs ")


@pytest.mark.slow
def test_files_are_measured_against_float_and_the_ladder_helps(found: Explanation) -> None:
    kinds = [one.kind for one in found.files]
    assert kinds[:2] == ["float", "plain"] and kinds.count("rung") == 3
    exact, plain, *_ = found.files
    assert exact.sqnr_db == math.inf and exact.drop is None and exact.accuracy == 1.0
    assert plain.drop is not None and plain.drop.n == 60
    assert plain.drop.points == pytest.approx(100 * (1 - plain.accuracy))
    equalized = next(one for one in found.files if one.name == "equalization")
    assert equalized.sqnr_db > plain.sqnr_db + 3
    layer = found.culprits[0].layer
    assert found.after["equalization"][layer] > found.after["plain int8"][layer] + 3


@pytest.mark.slow
def test_the_files_own_tensors_are_read(found: Explanation) -> None:
    assert set(found.drift_db) == {"stem", "narrow", "wide", "fc"}
    assert found.drift_db["narrow"] < found.drift_db["stem"] or found.drift_db["wide"] < found.drift_db["stem"]
    (drawn,) = (one for one in found.histograms if one.layer == "narrow")
    assert sum(drawn.counts) == 24 * 6 * 64
    assert drawn.clips["min-max"][0] == pytest.approx(min(drawn.low, 0), rel=1e-6)


@pytest.mark.slow
def test_all_of_it_is_strict_json_and_a_page(found: Explanation) -> None:
    text = json.dumps({"data": "x", **found.to_json()}, allow_nan=False)
    assert found.headline.split(":")[0].split(" (")[0] in render(json.loads(text)).replace("\xa0", " ")
    assert [one.method for one in found.ranges] == ["min-max", "moving-average", "percentile", "mse", "kl"]
    assert all(len(one.sqnr_db) == 3 for one in found.ranges)


def test_calibration_that_can_set_no_range_is_refused_before_any_file(
    model: Model, calibration: Samples, tmp_path: Path
) -> None:
    constant = replace(calibration, array=np.full_like(calibration.array, 7))
    with pytest.raises(UserError, match=r"samples are -1[.]8902: they can set no range"):
        explain(model, constant, calibration, Ask(), out=tmp_path)
    other = pictures(8, replace(PREPROCESS, height=8, width=8), seed=1)
    with pytest.raises(UserError, match=r"shape \[3, 8, 8\] do not fit the input"):
        explain(model, other, calibration, Ask(), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_matches_nothing_is_refused_with_the_nearest(
    model: Model, calibration: Samples, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no layer 'narow' that could stay in float: the nearest are narrow"):
        explain(model, calibration, calibration, Ask(keep_float=("narow",)), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_the_runtime_has_no_kernel_for_is_refused(model: Model, calibration: Samples, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no convolution for int4 weights"):
        explain(model, calibration, calibration, Ask("onnxruntime", 4), out=tmp_path)
