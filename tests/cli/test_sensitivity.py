"""`pocketfit sensitivity` from the command line."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from pocketfit.cli import main
from pocketfit.core.errors import MissingPackage
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.measurement import channel_cost_table, latency
from pocketfit.measurement.channel_cost_table import CostTable, SubNetwork
from pocketfit.numerics.channel_shapes import macs_of
from pocketfit.passes.prune.subnetworks import skeleton
from pocketfit.runtimes.onnxruntime import runtime
from tests.cli.helpers import folder, refused

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
        main.main, ["sensitivity", *given, "--input-shape", "3x16x16", "--data", "data.npz", *more]
    )


def test_bad_input_is_one_sentence_and_nothing_is_written(here: Path) -> None:
    Path("file").write_text("a file")
    refused(sensitivity("-o", "file"), "file", "nothing was changed")
    refused(sensitivity("--ratios", "0.5,1", "-o", "out"), "ratio of 1 cannot be carried out")
    refused(sensitivity("--ratios", "half", "-o", "out"), "--ratios 'half'")
    refused(sensitivity("--ratios", ",", "-o", "out"), "No pruning ratio")
    refused(sensitivity("--ratios", "nan", "-o", "out"), "ratio of nan")
    refused(sensitivity("--target", "latency:5", "-o", "out"), "latency:5'", "macs:0.5x", "latency:0.5x")
    refused(sensitivity("--target", "latency:0ms", "-o", "out"), "latency:0ms", "more than 0 ms")
    refused(sensitivity("--target", "latency:1.5x", "-o", "out"), "latency:1.5x", "above 0x, below 1x")
    refused(sensitivity("--target", "latency:0x", "-o", "out"), "latency:0x", "above 0x, below 1x")
    refused(sensitivity("--target", "macs:0.5x", "--runtime", "litert", "-o", "out"), "--runtime and --threads")
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

    from pocketfit.analysis.layer_table import layer_table, totals
    from pocketfit.passes.prune import prune_channels
    from pocketfit.sources.models.open_model import open_model

    model = open_model("nets_of_sensitivity_test:net", weights="good.pth", input_shape="3x16x16")
    after = totals(layer_table(prune_channels.apply(model, settings)))  # type: ignore[arg-type]
    assert (after.macs, after.size_bytes) == (told["plan"]["macs"], told["plan"]["size_bytes"])
    assert told["plan"]["macs_ratio"] == after.macs / told["macs"] <= 0.7


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, Path]]:
    """A machine on which 1,000 multiply-accumulates take a microsecond, without measuring; what was asked for."""
    asked: list[tuple[str, int, Path]] = []

    def measure(model, graph, settings, folder, *, threads, watch):  # type: ignore[no-untyped-def]
        asked.append((settings.runtime, threads, folder))
        known, found = skeleton(model.network, graph), []
        for widths in channel_cost_table.draw(known, 24, 0):
            times = {layer.name: macs_of(layer, *known.shape(layer, widths)) / 1000 for layer in known.layers}
            found.append(SubNetwork(widths, 1.0, sum(times.values()) / 1000, times))
        return CostTable(
            runtime=settings.runtime,
            threads=threads,
            precision="float32",
            skeleton=known,
            full_ms=2.0,
            environment={"cpu": "Example 9000"},
            measured=tuple(found),
        )

    monkeypatch.setattr(channel_cost_table, "measure", measure)
    return asked


def test_a_target_for_the_latency_is_met_and_said_to_be_estimated(
    here: Path, costs: list[tuple[str, int, Path]]
) -> None:
    done = sensitivity("-o", "out", "--samples", "20", "--target", "latency:0.6x", "--threads", "2")
    assert done.exit_code == 0, done.output
    assert costs == [("onnxruntime", 2, channel_cost_table.cache_folder())]
    told = json.loads(Path("out/sensitivity.json").read_text())
    assert told["latency"]["full_ms"] == 2.0 and told["latency"]["held_out"]["n"] == 24
    assert told["latency"]["how"] == "estimated"
    plan = told["plan"]
    assert plan["target"] == "latency:0.6x" and plan["latency_ratio"] <= 0.6
    assert plan["latency_ms"] == pytest.approx(2 * plan["latency_ratio"])
    at_half = [curve["points"][1]["latency_ratio"] for curve in told["curves"]]
    assert at_half[0] == 1.0 and all(ratio < 1 for ratio in at_half[1:]), "rounding leaves the first layer whole"
    shown = " ".join(done.stdout.split())
    assert "estimated: for 24 measured sub-networks" in shown and "in the median" in shown
    assert "latency at 50 %" in shown and Path("out/prune.json").exists()


def test_a_latency_that_makes_no_sense_is_refused_before_anything_is_judged(
    here: Path, costs: list[tuple[str, int, Path]]
) -> None:
    refused(sensitivity("--target", "latency:2ms", "-o", "out"), "whole network takes 2 ms", "latency:2ms")
    refused(sensitivity("--target", "latency:0.01x", "-o", "out"), "out of reach", "latency falls to")


def test_a_runtime_that_is_not_installed_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def require(package: str, extra: str) -> None:
        raise MissingPackage(package, extra)

    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "kept"))
    monkeypatch.setattr(runtime, "require", require)
    refused(sensitivity("--target", "latency:0.5x", "-o", "out"), "pip install 'pocketfit[onnxruntime]'")
    assert not Path("kept").exists()


@pytest.mark.slow
def test_a_table_is_measured_once_and_kept_where_costs_keeps_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In ONNX Runtime, few networks and short looks; the last layers are wide, so that they take most of the time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "kept"))
    brief = latency.Effort(sessions=2, seconds=0.2, min_rounds=5, max_rounds=40)
    monkeypatch.setattr(channel_cost_table, "measure", partial(channel_cost_table.measure, count=6, effort=brief))
    wide = (
        FACTORY.replace("8, 16, 3", "8, 128, 3")
        .replace("16, 24, 1", "128, 256, 3")
        .replace("24, classes", "256, classes")
    )
    Path("wide_nets_of_sensitivity_test.py").write_text(wide)
    namespace: dict[str, object] = {}
    exec(wide, namespace)
    torch.save(namespace["net"]().state_dict(), "wide.pth")  # type: ignore[operator]
    given = ("wide_nets_of_sensitivity_test:net", "--weights", "wide.pth", "--preprocess", "preprocess.json")
    more = ("--input-shape", "3x16x16", "--data", "data.npz", "--samples", "10", "--target", "latency:0.9x", "--quiet")
    done = CliRunner().invoke(main.main, ["sensitivity", *given, *more, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["plan"]["latency_ratio"] <= 0.9 and told["latency"]["networks"] == 6
    kept = sorted((here / "kept" / "pocketfit" / "costs").rglob("0*.json"))
    written = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 6
    again = CliRunner().invoke(main.main, ["sensitivity", *given, *more, "--json"])
    assert json.loads(again.stdout) == told and [path.stat().st_mtime_ns for path in kept] == written


def test_json_alone_writes_nothing(here: Path) -> None:
    before = sorted(here.iterdir())
    done = sensitivity("--json", "--samples", "10", "--ratios", "0.5", "--quiet")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["plan"] is None and told["schema_version"] == 1 and told["latency"] is None and len(told["curves"]) == 3
    assert [path for path in sorted(here.iterdir()) if path.name != "__pycache__"] == before
