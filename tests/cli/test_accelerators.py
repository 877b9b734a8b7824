"""`pocketfit inspect --for` and `--mobile`, as they are typed."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from pocketfit.cli.main import main
from tests.analysis.accelerators.graphs import quantized_layer
from tests.cli.helpers import folder, refused

FACTORY = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
"""


def inspected(*words: object) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, words)])


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return quantized_layer(tmp_path / "net.onnx", activations="uint8", zero=3).name


def test_a_file_against_tensorrt(file):
    done = inspected(file, "--for", "tensorrt", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["operators"], found["listed"], found["partitions"], found["runs"]) == (4, 3, 2, [1, 2])
    assert {one["node"] for one in found["breaches"]} == {"image_q", "image_dq"}
    assert found["latency"].startswith("not_possible_here") and "trtexec" in found["trtexec"]["server"]
    shown = inspected(file, "--for", "tensorrt").stdout
    assert "image_q is uint8" in shown and "nodes break a rule" in shown and "Source: github.com/onnx/" in shown


def test_what_falls_back_is_named_with_the_source(file):
    shown = inspected(file, "--for", "coreml").stdout
    assert "1 of 4 operators are listed" in shown and "QuantizeLinear (image_q): ONNX Runtime's CPU" in shown
    assert "as installed" in shown and "Conditions of the source that were not checked: Conv:" in shown


@pytest.mark.slow
def test_a_network_is_looked_at_by_its_float_export(tmp_path, monkeypatch):
    folder(tmp_path, monkeypatch, "nets_for_npus", FACTORY, 2)
    done = inspected(
        "nets_for_npus:net", "--weights", "good.pth", "--input-shape", "3x16x16", "--for", "rknn", "--json"
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    lines = {line["type"]: line for line in found["lines"]}
    assert found["float_export"] and lines["Conv"]["listed"] and lines["Conv"]["dtype"] == "float32"
    assert not lines["Gemm"]["listed"] and "does not state where it runs" in lines["Gemm"]["why"]


def test_wrong_questions_are_sentences(file):
    refused(inspected(file, "--for", "cambricon"), "no table for 'cambricon'", "no public document")
    refused(inspected(file, "--for", "ethosu"), "lists operators of .tflite files")
    refused(inspected(file, "--for", "nnapi", "--mobile", "out"), "one at a time")
    refused(inspected("nowhere.onnx", "--for", "nnapi"), "nowhere.onnx")
    refused(inspected(file, "--for", "abacus"), "abacus")
    refused(inspected("mobilenet_v2", "--mobile", "out"), "mobilenet_v2")
    assert "No source here: cambricon" in " ".join(inspected("--help").stdout.split())


def test_the_mobile_form_is_written_and_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = quantized_layer(tmp_path / "net.onnx")
    done = inspected(file.name, "--mobile", "phone")
    assert done.exit_code == 0, done.output
    assert "net.ort" in done.stdout and "NNAPI" in done.stdout and "hand this provider the float file" in done.stdout
    assert sorted(path.name for path in (tmp_path / "phone").iterdir()) == [
        "net.ort",
        "net.required_operators_and_types.config",
    ]
