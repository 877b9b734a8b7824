"""What pruned networks take in a runtime: predicted from a table that is pretended (real ones are in measurement/)."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pocketfit.analysis.latency_predictor import Errors, LayerCost, Predictor
from pocketfit.analysis.pruning import predicted_latency
from pocketfit.analysis.pruning.plan_for_target import Target, check_reachable, plan_for, planned
from pocketfit.analysis.pruning.predicted_latency import ChannelLatency
from pocketfit.analysis.pruning.sensitivity import ChannelTable
from pocketfit.core.errors import UserError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.support.progress import Silent
from pocketfit.measurement import channel_cost_table
from pocketfit.measurement.channel_cost_table import CostTable, SubNetwork
from pocketfit.numerics.channel_shapes import LayerShape, Side, Skeleton
from pocketfit.passes.graph.channel_graph import trace
from pocketfit.passes.prune.subnetworks import skeleton
from pocketfit.sources.models.open_model import model_from_module
from tests.analysis.pruning.test_plan_for_target import CHAIN, table_of

ERRORS = Errors(24, 0.02, 0.08, 1.0, 0.99)


def latency_of(names: tuple[str, ...], us: dict[str, float], *, step: int = 1) -> ChannelLatency:
    """Each group of 32 channels is made by one layer, which takes `us` for all of them, in blocks of `step`."""
    layers = tuple(LayerShape(f"{n}.conv", "pointwise", Side(0, {n: 1.0}), Side(8), 1, 1.0) for n in names)
    costs = {f"{n}.conv": LayerCost((1, step), (0.0, 0.0, us[n] * step / 32, 0.0)) for n in names}
    known = Skeleton(dict.fromkeys(names, 32), dict.fromkeys(names, 1), layers)
    fitted = Predictor(known, costs, (0.0, 0.0), {}, 2.0)
    groups = tuple((name, 32) for name in names)
    return ChannelLatency(
        runtime="onnxruntime",
        threads=1,
        precision="float32",
        environment={"cpu": "example"},
        full_ms=2.0,
        networks=24,
        held_out=ERRORS,
        fitted=fitted,
        groups=groups,
    )


def timed(us: dict[str, float], **more: Any) -> ChannelTable:
    return replace(table_of(CHAIN), latency=latency_of(tuple(CHAIN), us, **more))


def test_the_groups_that_take_the_time_go_and_the_plan_says_what_is_left() -> None:
    """By multiply-accumulates all three are alike and b is the most delicate; by latency only b brings anything."""
    found = planned(timed({"a.0": 1.0, "b.0": 98.0, "c.0": 1.0}), Target("latency", 0.6))
    assert [pattern for pattern, _ in found.layers] == [r"^b\.0$"]
    assert found.latency_ratio == pytest.approx(0.51) and found.latency_ms == pytest.approx(1.02)
    assert found.to_json()["latency_ratio"] == found.latency_ratio and found.target == "latency:0.6x"
    assert planned(table_of(CHAIN), Target("macs", 0.6)).latency_ratio is None


def test_milliseconds_are_a_share_of_the_measured_whole() -> None:
    table = timed({"a.0": 40.0, "b.0": 30.0, "c.0": 30.0})
    assert plan_for(table, Target("latency_ms", 1.2)) == plan_for(table, Target("latency", 0.6))
    with pytest.raises(UserError, match="in onnxruntime the whole network takes 2 ms"):
        check_reachable(table, Target("latency_ms", 2.0))
    with pytest.raises(UserError, match=r"latency:0\.1ms is out of reach.*falls to 0\.5 ms, 0\.25x"):
        check_reachable(table, Target("latency_ms", 0.1))
    with pytest.raises(UserError, match=r"latency falls to 0\.25x"):
        check_reachable(table, Target("latency", 0.2))


def test_a_step_of_the_kernel_that_brings_nothing_is_not_taken() -> None:
    """In blocks of 32 the first two ratios save nothing, so that the plan has none of them."""
    table = timed({"a.0": 50.0, "b.0": 50.0, "c.0": 50.0}, step=16)
    assert {ratio for _, ratio in plan_for(table, Target("latency", 0.9))} == {0.5}


def test_without_a_table_of_costs_a_latency_is_refused() -> None:
    with pytest.raises(UserError, match="needs a table of costs"):
        plan_for(table_of(CHAIN), Target("latency", 0.5))


def test_what_the_table_of_costs_does_not_know_has_no_latency() -> None:
    latency = latency_of(("a", "b"), {"a": 1.0, "b": 1.0})
    latency = replace(latency, groups=(("stem", 16), *latency.groups))
    assert math.isnan(latency.ratio({0: 4})) and latency.ratio({0: 0, 1: 16}) == 0.75 and latency.ratio({}) == 1.0


def test_groups_are_found_again_in_the_table_of_costs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the name of a group in the table of costs and its number in the graph, the same network is meant."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1), nn.Flatten(), nn.Linear(64, 2)
    )
    model = model_from_module(network.eval(), input_shape=(3, 4, 4))
    graph = trace(model.network, model.signature)

    def measure(model, graph, settings, folder, *, threads, watch):  # type: ignore[no-untyped-def]
        known, found = skeleton(model.network, graph), []
        for widths in channel_cost_table.draw(known, 12, 0):
            times = {layer.name: float(sum(known.shape(layer, widths))) for layer in known.layers}
            found.append(SubNetwork(widths, 1.0, sum(times.values()) / 1000, times))
        return CostTable(
            runtime=settings.runtime,
            threads=threads,
            precision="float32",
            skeleton=known,
            full_ms=3.0,
            environment={},
            measured=tuple(found),
        )

    monkeypatch.setattr(channel_cost_table, "measure", measure)
    found = predicted_latency.measured(model, graph, ExportSettings("onnxruntime"), tmp_path, threads=2, watch=Silent())
    number = next(n for n, group in enumerate(graph.groups) if group.name == "1")
    assert found.ratio({number: 8}) == pytest.approx(found.fitted.ratio({"1": 8}))
    told = found.to_json()
    assert told["threads"] == 2 and told["full_ms"] == 3.0 and told["how"] == "estimated" and told["networks"] == 12
    assert set(told["held_out"]) == {"n", "median", "worst", "share_within", "rank"} and "fitted" not in told
