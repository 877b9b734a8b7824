"""Timings vary with the machine; what is tested is structure, and that a far bigger network is found to be slower."""

import json
import math
import time

import numpy as np
import pytest

from pocketfit.core.errors import CannotRunHere, UserError
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.measurement import latency, quiet

BRIEF = latency.Effort(sessions=2, seconds=0.1, min_rounds=5, max_rounds=20)
NAMES = {"latency_ms", "latency_p90_ms", "latency_p95_ms", "latency_p99_ms"}
RATIOS = {name.removesuffix("_ms") + "_ratio" for name in NAMES}


@pytest.fixture(scope="module")
def compared(conv_file):
    """A network, itself again, and one with over 25 times its multiply-accumulates."""
    small, big = conv_file(channels=16, size=32), conv_file(channels=90, size=32)
    steps = []
    effort = latency.Effort(sessions=4, seconds=0.3, min_rounds=10, max_rounds=60)
    found = latency.compare_latency(
        "onnxruntime", small, [small, big], effort=effort, progress=lambda done, total: steps.append((done, total))
    )
    return found, steps, effort


def test_a_network_with_25_times_the_work_is_slower_for_certain(compared):
    (_, bigger), _, _ = compared
    assert bigger.ratio.low > 1
    assert bigger.ratio.value > 3
    assert bigger.ratio.low <= bigger.ratio.value <= bigger.upper_one_sided["latency_ratio"] <= bigger.ratio.high


def test_a_network_against_itself_is_about_as_fast(compared):
    (same, bigger), _, _ = compared
    assert 0.5 < same.ratio.value < 2
    assert same.ratio.value < bigger.ratio.value / 2


def test_a_comparison_says_how_it_was_taken(compared):
    found, steps, effort = compared
    assert steps == [(n + 1, effort.sessions) for n in range(effort.sessions)]
    for one in found:
        assert set(one.baseline) == set(one.candidate) == NAMES
        assert set(one.ratios) == RATIOS
        assert set(one.upper_one_sided) == NAMES | RATIOS
        count = len(one.sessions)  # one that was disturbed may have been left out
        assert quiet.ENOUGH * effort.sessions <= count <= effort.sessions
        assert one.ratio.value == pytest.approx(math.prod(one.sessions) ** (1 / count))
        assert one.between is not None
        values = [one.candidate[n].value for n in ("latency_ms", "latency_p90_ms", "latency_p95_ms", "latency_p99_ms")]
        assert values == sorted(values)
        assert one.candidate["latency_ms"].how == "measured"
        where = one.candidate["latency_ms"].environment
        assert where["threads"] == 1
        assert where["sessions"] == len(where["rounds"]) == len(where["calls_a_round"]) == count
        assert len(where["load"]) == len(where["times_ms"]) == count and where["sessions_taken"] == effort.sessions
        assert set(where["best_ms"]) == {"core", "cache", "memory", "baseline"}
        for seen, times in zip(where["load"], where["times_ms"], strict=True):
            assert seen["seconds"] > 0 and seen["others_cores"] >= 0
            assert all(times[name] >= best > 0 for name, best in where["best_ms"].items())
        rounds_and_calls = zip(where["rounds"], where["calls_a_round"], strict=True)
        assert sum(rounds * calls for rounds, calls in rounds_and_calls) == one.candidate["latency_ms"].n
        assert json.loads(json.dumps(one.to_json()))["sessions"] == list(one.sessions)


def test_one_file_alone(conv_file):
    found = latency.latency("onnxruntime", conv_file(), effort=BRIEF)
    assert set(found) == NAMES
    assert 0 < found["latency_ms"].low <= found["latency_ms"].value <= found["latency_ms"].high


def test_every_other_session_loads_in_the_opposite_order(conv_file, monkeypatch):
    calls = []

    def fake(_target, payload, **_):
        calls.append(payload)
        numbers = [[[float(path.endswith("conv4.onnx")) + 1]] * 5 for path in payload["paths"]]
        ran = {"seconds": 1.0, "others_cores": 0.0, "own_cores": 0.0}
        return {"calls_ms": numbers, "cores": [0], "taken_again": 1, "load": ran, "times_ms": {"core": 1.0}}

    monkeypatch.setattr(latency.child_process, "call", fake)
    small, big = conv_file(channels=3), conv_file(channels=4)
    found = latency.compare_latency("onnxruntime", small, [big], effort=latency.Effort(4, 1.0, 5, 5), seed=3)
    assert [payload["paths"] for payload in calls] == [[str(small), str(big)], [str(big), str(small)]] * 2
    assert [payload["seed"] for payload in calls] == [3, 4, 5, 6]
    assert found[0].ratio.value == pytest.approx(2.0)
    assert found[0].ratio.environment["interrupted_and_taken_again"] == 4


class Sleeper:
    """A session whose invocations take a stated time."""

    signature = Signature((TensorSpec("x", (None, 2)),), ())

    def __init__(self, ms):
        self.ms, self.runs = ms, 0

    def run(self, inputs):
        self.runs += 1
        time.sleep(self.ms / 1000)
        return {}


def test_short_networks_fill_their_share_of_a_round_and_long_ones_run_once():
    short, long = latency._File(Sleeper(0.5), 0), latency._File(Sleeper(60), 0)
    assert 2 <= short.calls <= 4
    assert long.calls == 1
    assert long.loaded.runs == 2  # warming up a long network takes no longer than it must
    assert len(short.round()) == short.calls
    assert long.round()[0] >= 60
    assert long.loaded.runs == 3  # and no untimed invocation in front


def test_an_interrupted_invocation_is_taken_again(monkeypatch):
    interruptions = iter([0, 1, 1, 1, *[1] * 100])
    file = latency._File(Sleeper(3), 0)
    monkeypatch.setattr(latency, "_interruptions", lambda: next(interruptions))
    file.round()
    assert file.taken_again == 1


def fake_clock(monkeypatch, interrupted, *, clock_ms, work_ms):
    """Invocations that take so long by the clock and by their processor time; each is interrupted, or none."""
    count = iter(range(10**6))
    monkeypatch.setattr(latency, "_interruptions", lambda: next(count) if interrupted else 0)
    ns = iter(range(0, 10**15, round(work_ms * 1e6)))
    monkeypatch.setattr(latency.time, "process_time_ns", lambda: next(ns))
    monkeypatch.setattr(latency._File, "_invoke", lambda self: clock_ms)


@pytest.mark.parametrize(
    ("interrupted", "clock_ms", "threads", "expected"),
    [(True, 12.0, 1, 4.0), (False, 12.0, 1, 12.0), (True, 12.0, 2, 12.0), (True, 60.0, 1, 4.0), (True, 3.0, 1, 3.0)],
)
def test_an_invocation_that_stays_interrupted_counts_by_its_work(monkeypatch, interrupted, clock_ms, threads, expected):
    """Else a busy machine spares what fits between two interruptions, and flatters small files against large ones."""
    fake_clock(monkeypatch, interrupted, clock_ms=clock_ms, work_ms=4.0)
    assert latency._File(Sleeper(0), 0, threads).round() == [expected] * latency._File(Sleeper(0), 0, threads).calls


def test_random_inputs_fit_the_signature_and_follow_the_seed():
    specs = (
        TensorSpec("a", (None, 3), "float32"),
        TensorSpec("b", (2, 400), "int8"),
        TensorSpec("c", (None,), "uint8"),
    )
    first, again = latency.random_inputs(Signature(specs, ()), 1), latency.random_inputs(Signature(specs, ()), 1)
    assert {name: (v.shape, str(v.dtype)) for name, v in first.items()} == {
        "a": ((1, 3), "float32"),
        "b": ((2, 400), "int8"),
        "c": ((1,), "uint8"),
    }
    assert first["b"].min() < -100
    assert first["b"].max() > 100
    assert all(np.array_equal(first[name], again[name]) for name in first)
    with pytest.raises(UserError, match="'t' has dtype str"):
        latency.random_inputs(Signature((TensorSpec("t", (1,), "str"),), ()), 0)


def test_files_that_cannot_be_timed_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.onnx"):
        latency.latency("onnxruntime", tmp_path / "gone.onnx", effort=BRIEF)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no onnx")
    with pytest.raises((UserError, CannotRunHere), match=r"broken\.onnx"):
        latency.latency("onnxruntime", broken, effort=BRIEF)
