"""`pocketfit sensitivity` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pocketfit import cli
from pocketfit.core.plan import ExportSettings, Plan

from .given import folder, refused

FACTORY = """
import torch
def net(classes: int = 2):
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3), torch.nn.ReLU(),
                               torch.nn.Conv2d(16, 24, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                               torch.nn.Linear(24, classes))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return folder(tmp_path, monkeypatch, "nets_of_sensitivity_test", FACTORY, 200)


def sensitivity(*more: str) -> Result:
    given = ("nets_of_sensitivity_test:net", "--weights", "good.pth", "--preprocess", "preprocess.json")
    return CliRunner().invoke(
        cli.main, ["sensitivity", *given, "--input-shape", "3x16x16", "--data", "data.npz", *more]
    )


def test_bad_input_is_one_sentence_and_nothing_is_written(here: Path) -> None:
    Path("file").write_text("a file")
    refused(sensitivity("-o", "file"), "file", "nothing was changed")
    refused(sensitivity("--ratios", "0.5,1", "-o", "out"), "ratio of 1 cannot be carried out")
    refused(sensitivity("--ratios", "half", "-o", "out"), "--ratios 'half'")
    refused(sensitivity("--ratios", ",", "-o", "out"), "No pruning ratio")
    refused(sensitivity("--ratios", "nan", "-o", "out"), "ratio of nan")
    refused(sensitivity("--target", "latency:5ms", "-o", "out"), "latency:5ms", "macs:0.5x")
    refused(sensitivity("--target", "macs:0.01x", "-o", "out"), "out of reach", "larger --ratios")


def test_the_table_the_page_and_a_plan_that_can_be_applied(here: Path) -> None:
    done = sensitivity("-o", "out", "--samples", "20", "--ratios", "0.5", "--target", "macs:0.7x")
    assert done.exit_code == 0, done.output
    told = json.loads(Path("out/sensitivity.json").read_text())
    assert told["sentences"][0] in done.stdout and "estimated" in done.stdout and "A plan for macs:0.7x" in done.stdout
    assert [curve["group"] for curve in told["curves"]] == ["0", "2", "4"]
    assert [curve["edge"] for curve in told["curves"]] == ["first", "", "last"]
    assert told["samples"] <= 20 and told["split"] == "search" and told["labelled"]
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "cache",
        "prune.json",
        "sensitivity.html",
        "sensitivity.json",
    ]
    plan = Plan((), ExportSettings("litert")).to_json()
    plan["passes"] = [json.loads(Path("out/prune.json").read_text())]
    (settings,) = Plan.from_json(plan).passes

    from pocketfit.analysis.layers import layer_table, totals
    from pocketfit.passes import prune
    from pocketfit.sources.models import open_model

    model = open_model("nets_of_sensitivity_test:net", weights="good.pth", input_shape="3x16x16")
    after = totals(layer_table(prune.apply(model, settings)))  # type: ignore[arg-type]
    assert (after.macs, after.size_bytes) == (told["plan"]["macs"], told["plan"]["size_bytes"])
    assert told["plan"]["macs_ratio"] == after.macs / told["macs"] <= 0.7


def test_json_alone_writes_nothing(here: Path) -> None:
    before = sorted(here.iterdir())
    done = sensitivity("--json", "--samples", "10", "--ratios", "0.5", "--quiet")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["plan"] is None and told["schema_version"] == 1 and len(told["curves"]) == 3
    assert [path for path in sorted(here.iterdir()) if path.name != "__pycache__"] == before
