"""Outputs behind the first one, in files that differ in one of them by a known amount."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.measurement.further_outputs import compare_further

BOTH = ("onnxruntime", "onnxruntime")


def two_heads(path: Path, live: float = 1.0, *, heads: int = 2) -> Path:
    """[N, 3, 4, 4] -> the means of its channels [N, 3], and `live` times their squares."""
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["embedding"], keepdims=0),
        helper.make_node("Mul", ["embedding", "embedding"], ["squares"]),
        helper.make_node("Mul", ["squares", "live"], ["liveness"]),
    ]
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 4, 4])
    names = ("embedding", "liveness")[:heads]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in names]
    constants = [
        numpy_helper.from_array(np.array([2, 3]), "axes"),
        numpy_helper.from_array(np.array(live, np.float32), "live"),
    ]
    graph = helper.make_graph(nodes, "two", [given], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture
def samples() -> Samples:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    preprocess = Preprocess(height=4, width=4, resize="none")
    labels = np.full(5, -1, np.int64)
    return Samples(array=pixels, labels=labels, names=["x"] * 5, split="verdict", sha256="s", preprocess=preprocess)


def test_a_head_that_is_off_by_a_tenth_is_20_db_away(tmp_path: Path, samples: Samples) -> None:
    paths = two_heads(tmp_path / "a.onnx"), two_heads(tmp_path / "b.onnx", live=1.1)
    (found,) = compare_further(BOTH, paths, (samples, samples))
    assert found.output == "liveness" and found.sqnr_db == pytest.approx(20.0, abs=1e-3)
    assert found.cosine == pytest.approx(1.0)
    (equal,) = compare_further(BOTH, (paths[0], paths[0]), (samples, samples))
    assert equal.sqnr_db == math.inf and equal.to_json()["sqnr_db"] is None


def test_one_output_has_no_further_ones(tmp_path: Path, samples: Samples) -> None:
    paths = two_heads(tmp_path / "a.onnx", heads=1), two_heads(tmp_path / "b.onnx")
    assert compare_further(BOTH, paths, (samples, samples)) == ()
