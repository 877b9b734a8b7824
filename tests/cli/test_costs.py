"""pocketfit costs: what it prints and writes, from a table that is pretended (the real one is in measurement/)."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from pocketfit.cli.main import main
from pocketfit.measurement import channel_cost_table
from pocketfit.measurement.channel_cost_table import CostTable, SubNetwork, draw
from pocketfit.numerics.channel_shapes import macs_of
from pocketfit.passes.prune.subnetworks import skeleton


@pytest.fixture
def pretended(monkeypatch):
    """A machine that takes 1 us for 10,000 multiply-accumulates of outputs rounded up to 16."""
    asked = []

    def measure(model, graph, settings, folder, *, threads, count, seed, watch):
        asked.append((settings, folder, threads, count, seed))
        known, found = skeleton(model.network, graph), []
        for widths in draw(known, count, seed):
            times = {}
            for layer in known.layers:
                inputs, outputs = known.shape(layer, widths)
                times[layer.name] = 1 + macs_of(layer, inputs, -(-outputs // 16) * 16) / 10_000
            found.append(SubNetwork(widths, 1.0, sum(times.values()) / 1000, times))
        about = {"cpu": "Example 9000", "load_average": 0.1}
        return CostTable(
            runtime=settings.runtime,
            threads=threads,
            precision=settings.precision,
            skeleton=known,
            full_ms=found[0].latency_ms,
            environment=about,
            measured=tuple(found),
        )

    monkeypatch.setattr(channel_cost_table, "measure", measure)
    return asked


def run(*arguments):
    options = ["--input-shape", "3x32x32", "--networks", "12", "--quiet"]
    return CliRunner().invoke(main, ["costs", "mobilenet_v1", *options, *map(str, arguments)])


def test_costs_prints_the_errors_the_blocks_and_the_groups(pretended, tmp_path):
    done = run("--runtime", "onnxruntime", "-o", tmp_path / "costs.json", "--cache", tmp_path, "--threads", 2)
    assert done.exit_code == 0, done.output
    settings, folder, threads, count, _ = pretended[0]
    assert (settings.runtime, folder, threads, count) == ("onnxruntime", tmp_path, 2, 12)
    assert "Example 9000" in done.stdout and "within 10 % for 100%" in done.stdout
    found = json.loads((tmp_path / "costs.json").read_text())
    assert found["held_out"]["worst"] < 0.01 and found["held_out"]["rank"] > 0.99
    assert found["steps"]["pointwise"][1] == 16 and "pointwise 8 in, 16 out" in done.stdout
    wide = next(group for group in found["groups"] if group["channels"] == 128)
    assert wide["widths"] == list(range(8, 136, 8))
    assert wide["ratios"] == sorted(wide["ratios"]) and wide["ratios"][-1] == 1 and wide["ratios"][0] < 1
    assert {layer["kind"] for layer in found["layers"]} >= {"depthwise", "pointwise", "linear"}


def test_costs_refuses_a_folder_as_its_file(pretended, tmp_path):
    done = run("-o", tmp_path)
    assert done.exit_code == 2 and "is a folder" in done.output and not pretended
