"""Symmetric static int8: what goes on to TensorRT."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from pocketfit.analysis.accelerators.tensorrt_rules import breaches
from pocketfit.core.artifact import Artifact
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.formats import onnx_read
from pocketfit.numerics.sqnr import sqnr_db
from pocketfit.runtimes import get
from pocketfit.runtimes.onnxruntime import runtime
from pocketfit.testing.tiny_network import WEIGHTS, pictures

Exported = Callable[[ExportSettings], Artifact]
SYMMETRIC = ExportSettings("onnxruntime", "int8", symmetric=True)


def test_a_symmetric_file_keeps_the_rules_and_the_other_int8_files_do_not(exported: Exported) -> None:
    assert breaches(Path(exported(SYMMETRIC).path)) == []
    for activations in ("int8", "uint8"):
        assert breaches(Path(exported(ExportSettings("onnxruntime", "int8", activations)).path))
    assert breaches(Path(exported(ExportSettings("onnxruntime", "int8", symmetric=True, io="int8")).path)) == []


def test_its_weights_are_those_of_the_other_file_and_its_biases_float(exported: Exported) -> None:
    ours, theirs = (
        {tensor.name: tensor for tensor in onnx.load(exported(settings).path).graph.initializer}
        for settings in (SYMMETRIC, ExportSettings("onnxruntime", "int8"))
    )
    for layer in WEIGHTS:
        name = f"{layer}.weight_quantized"
        np.testing.assert_array_equal(numpy_helper.to_array(ours[name]), numpy_helper.to_array(theirs[name]))
        assert ours[f"{layer}.bias"].data_type == onnx.TensorProto.FLOAT
    ops = onnx_read.contents(exported(SYMMETRIC).path).ops
    assert {op.compute_dtype for op in ops if op.layer in WEIGHTS} == {"int8"}


def test_its_answers_are_the_networks(exported: Exported, model: Model) -> None:
    images = pictures(16, seed=5)
    session = runtime.load(Path(exported(SYMMETRIC).path))
    answers = session.run({"image": images})["logits"]
    session.close()
    with torch.no_grad():
        assert sqnr_db(model.network(torch.from_numpy(images)).numpy(), answers) > 30


def test_it_is_a_setting_of_onnx_runtime_with_int8_activations(model: Model) -> None:
    for settings in ({"activations": "uint8"}, {"precision": "float16"}):
        with pytest.raises(UserError, match="Symmetric quantization is for static int8"):
            ExportSettings("onnxruntime", **{"precision": "int8", "symmetric": True} | settings)
    plan = Plan((), ExportSettings("litert", "int8", symmetric=True))
    assert any("leave out symmetric" in reason for reason in get("litert").why_not(plan, model.signature))
    assert SYMMETRIC.code == "wi8ai8-sym" and Plan.from_json(Plan((), SYMMETRIC).to_json()).export == SYMMETRIC


def test_the_plan_on_the_page_is_this_one() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "accelerators.md").read_text(encoding="utf-8")
    (plan,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    assert Plan.from_json(json.loads(plan)).export == replace(SYMMETRIC, ranges="mse")
