"""The table of costs: measured once, resumed, drawn the same again; one real table in ONNX Runtime."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pocketfit.analysis import latency_predictor
from pocketfit.core.errors import UserError
from pocketfit.core.learned import Learned
from pocketfit.core.plan.export import ExportSettings
from pocketfit.measurement import channel_cost_table
from pocketfit.measurement import latency as cost
from pocketfit.numerics.channel_shapes import Skeleton
from pocketfit.passes.graph.channel_graph import trace
from pocketfit.sources.models.open_model import model_from_module

SETTINGS = ExportSettings("onnxruntime")


def chain(width=48):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 64, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    model = model_from_module(network.eval(), input_shape=(3, 16, 16))
    return model, trace(model.network, model.signature)


def compared(ratio, disturbed):
    return SimpleNamespace(ratio=SimpleNamespace(value=ratio, disturbed=disturbed))


@pytest.fixture
def pretended(monkeypatch):
    """Exports and timings that take no time: a network's latency is its number of parameters in ns."""
    calls = SimpleNamespace(exports=0, die_after=None, disturbed=(), full_ms=2.0, calm=True)

    def export(model, settings, work):
        if calls.exports == calls.die_after:
            raise KeyboardInterrupt
        calls.exports += 1
        path = work / f"{calls.exports}.onnx"
        path.write_text(str(sum(p.numel() for p in model.network.parameters())))
        return path

    def compare(runtime, baseline, files, **_):
        full = int(baseline.read_text())
        return [compared(int(file.read_text()) / full, calls.disturbed) for file in files]

    monkeypatch.setattr(channel_cost_table, "_export", export)
    monkeypatch.setattr(cost, "compare_latency", compare)

    def latency(*_, **__):
        said = {"disturbed": list(calls.disturbed)} if calls.disturbed else {}
        return {"latency_ms": SimpleNamespace(value=calls.full_ms, environment={"cpu": "example", **said})}

    monkeypatch.setattr(cost, "latency", latency)
    monkeypatch.setattr(channel_cost_table.quiet, "calm_now", lambda: calls.calm)
    monkeypatch.setattr(
        channel_cost_table, "per_layer", lambda runtime, path, layers, threads: dict.fromkeys(layers, 1.0)
    )
    return calls


def test_latencies_are_ratios_times_the_whole_and_spread_over_the_layers(pretended, tmp_path):
    model, graph = chain()
    found = channel_cost_table.measure(model, graph, SETTINGS, tmp_path, count=3)
    assert found.full_ms == 2.0 and found.environment == {"cpu": "example"}
    assert dict(found.measured[0].widths) == dict(found.skeleton.full)
    assert found.measured[0].ratio == 1 and found.measured[0].latency_ms == 2.0
    for one in found.measured:
        assert sum(one.layer_us.values()) == pytest.approx(1000 * one.latency_ms)
        assert one.latency_ms == 2.0 * one.ratio
    assert min(one.ratio for one in found.measured) < 0.9


def test_a_table_goes_on_where_it_was_stopped(pretended, tmp_path):
    model, graph = chain()
    pretended.die_after = 1 + channel_cost_table.BATCH + 2  # the whole network, one batch, and part of the next
    with pytest.raises(KeyboardInterrupt):
        channel_cost_table.measure(model, graph, SETTINGS, tmp_path, count=7)
    pretended.die_after, pretended.exports = None, 0
    found = channel_cost_table.measure(model, graph, SETTINGS, tmp_path, count=7)
    assert pretended.exports == 1 + 7 - channel_cost_table.BATCH
    assert len(found.measured) == 7
    pretended.exports = 0
    assert channel_cost_table.measure(model, graph, SETTINGS, tmp_path, count=7) == found
    assert pretended.exports == 0  # all is there, and a larger table only adds what is missing
    channel_cost_table.measure(model, graph, SETTINGS, tmp_path, count=9)
    assert pretended.exports == 1 + 2
    again = channel_cost_table.measure(model, graph, SETTINGS, tmp_path / "elsewhere", count=7)
    assert again == found  # which networks are drawn does not hang on how the work was cut up


def test_what_other_work_ran_beside_is_said_and_measured_again_once_it_is_quiet(pretended, tmp_path):
    model, graph = chain()
    pretended.disturbed, pretended.full_ms, pretended.calm = ("other processes used 1 core",), 3.0, False
    found = channel_cost_table.measure(model, graph, SETTINGS, tmp_path, count=3)
    assert found.disturbed.startswith("3 of 3 sub-networks were timed beside other work (other processes used 1 core)")
    pretended.exports = 0
    assert channel_cost_table.measure(model, graph, SETTINGS, tmp_path, count=3) == found
    assert pretended.exports == 0  # the machine is as busy as before: nothing would be gained
    pretended.disturbed, pretended.full_ms, pretended.calm = (), 2.0, True
    quiet = channel_cost_table.measure(model, graph, SETTINGS, tmp_path, count=3)
    assert pretended.exports == 1 + 3
    assert quiet.disturbed == "" and quiet.full_ms == 2.0 and "disturbed" not in quiet.environment
    assert [one.latency_ms for one in quiet.measured] == [2.0 * one.ratio for one in quiet.measured]


def test_a_file_that_was_spoilt_is_named(pretended, tmp_path):
    model, graph = chain()
    channel_cost_table.measure(model, graph, SETTINGS, tmp_path, count=2)
    (path,) = tmp_path.rglob("0001.json")
    sound = json.loads(path.read_text())
    for text, sentence in (
        ("{", "is no JSON"),
        ("[" * 100_000, "nested too deep"),
        (json.dumps({**sound, "ratio": -1}), "'ratio' is -1"),
        (json.dumps({**sound, "layer_us": {"a": None}}), "'layer_us.a' is null"),
        (json.dumps({**sound, "more": 1}), "'more' is no known key"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=rf"0001\.json .*{sentence}.*; remove its folder"):
            channel_cost_table.measure(model, graph, SETTINGS, tmp_path, count=2)
    path.write_text(json.dumps(sound))
    (path.parent / "table.json").write_text('{"full_ms": 0, "environment": {}}')
    with pytest.raises(UserError, match=r"table\.json can't be read: 'full_ms' is 0: .*; remove its folder"):
        channel_cost_table.measure(model, graph, SETTINGS, tmp_path, count=2)


def test_a_table_belongs_to_structure_runtime_and_settings_but_not_to_values(pretended, tmp_path):
    model, graph = chain()
    key = channel_cost_table.key(model, graph, SETTINGS, 1)
    for parameter in model.network.parameters():
        parameter.data *= 2
    assert channel_cost_table.key(model, graph, SETTINGS, 1) == key
    assert channel_cost_table.key(model, graph, SETTINGS, 2) != key
    assert channel_cost_table.key(model, graph, ExportSettings("litert"), 1) != key
    assert channel_cost_table.key(model, graph, ExportSettings("onnxruntime", precision="int8"), 1) != key
    assert channel_cost_table.key(*chain(40), SETTINGS, 1) != key


def test_a_network_without_groups_is_refused(tmp_path):
    model = model_from_module(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).eval(), input_shape=(3, 2, 2))
    with pytest.raises(UserError, match="No channel of this network can be pruned"):
        channel_cost_table.measure(model, trace(model.network, model.signature), SETTINGS, tmp_path)


def test_drawn_networks_spread_from_small_to_whole():
    known = Skeleton({f"g{n}": 128 for n in range(20)}, {f"g{n}": 1 for n in range(20)}, ())
    drawn = channel_cost_table.draw(known, 60, 0)
    assert drawn[0] == known.full
    assert drawn == channel_cost_table.draw(known, 80, 0)[:60]
    assert drawn[1:] != channel_cost_table.draw(known, 60, 1)[1:]
    middles = [sum(widths.values()) / (20 * 128) for widths in drawn]
    assert min(middles) < 0.35 and max(middles[1:]) > 0.85
    assert {width % 8 for widths in drawn for width in widths.values()} == {0}


def test_what_profiles_say_goes_to_the_layers(monkeypatch, tmp_path):
    ops = [
        SimpleNamespace(index=0, layer="a", weight_dtype="float32", macs=9),
        SimpleNamespace(index=1, layer="", weight_dtype="", macs=0),
        SimpleNamespace(index=2, layer="b", weight_dtype="float32", macs=9),
    ]
    costs = [SimpleNamespace(index=i, time_us=t) for i, t in ((0, 5.0), (1, 2.0), (2, 7.0), (-1, 1.0), (0, 0.5))]
    session = SimpleNamespace(signature=SimpleNamespace(inputs=()), close=lambda: None)
    runtime = SimpleNamespace(
        inspect=lambda path: SimpleNamespace(ops=ops),
        load=lambda path, threads: session,
        profile=lambda *_, **__: costs,
    )
    monkeypatch.setattr(channel_cost_table.runtimes, "get", lambda name: runtime)
    expected = {"a": 5.5, "b": 7.0, channel_cost_table.REST: 3.0}
    assert channel_cost_table.per_layer("pretended", tmp_path, ["a", "b"], 1) == expected
    for op in ops:
        op.layer = ""
    assert (
        channel_cost_table.per_layer("pretended", tmp_path, ["a", "b"], 1) == expected
    )  # by order, where the counts agree


@pytest.mark.slow
def test_a_narrowed_network_forgets_what_was_learned_about_the_whole_one():
    """As a record of nothing, which exports in integers read."""
    model, graph = chain()
    model = replace(model, learned=Learned(ranges={"1": (0.0, 1.0)}))
    narrowed = channel_cost_table._narrowed(model, graph, {group.name: 8 for group in graph.groups})
    assert narrowed.learned == Learned()


def test_a_real_table_in_onnx_runtime(tmp_path):
    """Four layers, five networks: what is measured is whole and orderly; how exact it is stands in benchmarks/."""
    model, graph = chain(96)
    effort = cost.Effort(sessions=2, seconds=0.2, min_rounds=5, max_rounds=40)
    found = channel_cost_table.measure(model, graph, SETTINGS, tmp_path, count=5, effort=effort)
    names = {layer.name for layer in found.skeleton.layers}
    assert all(names <= set(one.layer_us) for one in found.measured)
    assert 0.7 < found.measured[0].ratio < 1.4  # the whole network against itself
    smallest = min(found.measured, key=lambda one: one.widths["2"])
    assert smallest.ratio < 1
    predicted = latency_predictor.fit(found)
    assert 0 < predicted.latency_ms(smallest.widths) < 2 * predicted.latency_ms({})
    assert json.loads(next(tmp_path.rglob("table.json")).read_text())["environment"]["threads"] == 1
