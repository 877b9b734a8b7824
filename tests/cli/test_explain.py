"""`pocketfit explain` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pocketfit.cli import main
from tests.cli.helpers import folder, refused

FACTORY = """
import torch
def net(classes: int = 2):
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 1),
                               torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, classes))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return folder(tmp_path, monkeypatch, "nets_of_explain_test", FACTORY, 300)


def explain(*more: str, data: str = "data.npz") -> Result:
    given = ("nets_of_explain_test:net", "--weights", "good.pth", "--preprocess", "preprocess.json")
    return CliRunner().invoke(
        main.main, ["explain", *given, "--input-shape", "3x16x16", "--data", data, "--runtime", "onnxruntime", *more]
    )


def test_bad_input_is_one_sentence_and_nothing_is_written(here: Path) -> None:
    Path("file").write_text("a file")
    refused(explain("-o", "file"), "file", "nothing was changed")
    refused(explain("--keep-float", "conv.0", "-o", "out"), "no layer 'conv.0'")
    refused(explain("--weight-bits", "4", "-o", "out"), "int4")
    np.savez("flat.npz", x=np.full((300, 16, 16, 3), 9, np.uint8), y=np.arange(300) % 2)
    refused(explain("-o", "out", data="flat.npz"))


@pytest.mark.slow
def test_the_finding_is_printed_and_written(here: Path) -> None:
    done = explain("-o", "out", "--samples", "40")
    assert done.exit_code == 0, done.output
    told = json.loads(Path("out/explain.json").read_text())
    assert told["headline"].split(" (")[0] in done.stdout
    assert "plain int8" in done.stdout and "(estimated)" in done.stdout and "median" in done.stdout
    assert ("--keep-float" in done.stdout) == bool(told["exclude"])
    assert told["samples"] <= 40 and told["labelled"] and told["data"] == "data.npz"
    assert sorted(path.name for path in Path("out").iterdir()) == ["explain.html", "explain.json"]
