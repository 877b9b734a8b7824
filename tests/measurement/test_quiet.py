"""Which sessions are believed: made-up facts, for this machine is never known to be quiet; and one real neighbour."""

import subprocess
import sys
import time

import numpy as np
import pytest

from pocketfit.devices.load import Load
from pocketfit.measurement import latency, quiet
from pocketfit.measurement.quiet import Machine, Patience, Session

TWO = Machine(2)
CALM = Load(
    seconds=1.0, others_cores=0.02, own_cores=0.01, steal_cores=0.0, waited=0.01, throttled=0.0, stalled=0.0, hot=0
)
BUSY = Load(
    seconds=1.0, others_cores=0.9, own_cores=0.01, steal_cores=0.0, waited=0.4, throttled=0.0, stalled=0.0, hot=0
)
TIMES = {"core": 1.0, "cache": 2.0, "memory": 4.0, "baseline": 8.0}


def session(ran=CALM, turn=1, **slower):
    times = {name: value * slower.get(name, 1.0) for name, value in TIMES.items()}
    return Session((np.ones((5, 1)),), ran, times, turn, (1,), 2)


def test_a_quiet_session_has_no_reasons_and_small_differences_are_none():
    sessions = [session(), session(core=1.1, cache=1.25, memory=1.15, baseline=1.15)]
    assert quiet.judge(sessions, {}, TWO) == [{}, {}]


@pytest.mark.parametrize(
    ("ran", "kind", "words"),
    [
        (Load(seconds=1, others_cores=0.2, own_cores=0), "others", "other processes used up to 0.20 of 2 cores"),
        (Load(seconds=1, others_cores=0, own_cores=0.3), "own", "pocketfit's own processes used up to 0.30 cores"),
        (
            Load(seconds=1, others_cores=0, own_cores=0, steal_cores=0.2),
            "steal",
            "the hypervisor gave up to 0.20 cores to other guests",
        ),
        (
            Load(seconds=1, others_cores=0, own_cores=0, waited=0.31),
            "waited",
            "threads stood in line for a core for up to 31% of the time",
        ),
        (
            Load(seconds=1, others_cores=0, own_cores=0, throttled=0.48),
            "throttled",
            "a CPU quota of 0.5 cores stopped it for up to 48% of the time",
        ),
        (
            Load(seconds=1, others_cores=0, own_cores=0, stalled=0.09),
            "stalled",
            "processes waited for memory for up to 9% of the time",
        ),
        (
            Load(seconds=1, others_cores=0, own_cores=0, hot=3),
            "hot",
            "the processor slowed down 3 times because it was hot",
        ),
    ],
)
def test_each_kind_of_other_work_disturbs_and_is_said(ran, kind, words):
    machine = Machine(2, 0.5)
    (reasons,) = quiet.judge([session(ran)], {}, machine)
    assert list(reasons) == [kind]
    (sentence,) = quiet.sentences([reasons, {}], machine)
    assert sentence.startswith(words) and sentence.endswith("(in 1 of 2 sessions)")


@pytest.mark.parametrize("kind", ["core", "cache", "memory", "baseline"])
def test_a_load_that_lasts_is_told_by_the_best_of_the_run(kind):
    slow = [session(**{kind: 2.0}) for _ in range(4)]
    assert quiet.judge(slow, {}, TWO) == [{}] * 4, "inside the sessions nothing shows"
    judged = quiet.judge(slow, TIMES, TWO)
    assert [list(reasons) for reasons in judged] == [[kind]] * 4
    assert "2.00x its best time of this run" in quiet.sentences(judged, TWO)[0]
    assert quiet.judge([*slow, session()], {}, TWO)[0] == {kind: 2.0}, "a later session can show it, too"


def test_a_lower_clock_slows_all_alike_and_is_no_disturbance():
    lower = {"core": 1.25, "cache": 1.3, "memory": 1.2, "baseline": 1.25}
    assert quiet.judge([session(**lower)], TIMES, TWO) == [{}]
    assert quiet.judge([session(**{**lower, "baseline": 1.6})], TIMES, TWO) == [{"baseline": 1.6}]


def test_what_others_may_use_grows_with_the_machine():
    ran = Load(seconds=1, others_cores=0.9, own_cores=0)
    assert quiet.of_load(ran, Machine(2)) == quiet.of_load(ran, Machine(16)) == {"others": 0.9}
    assert quiet.of_load(ran, Machine(64)) == {}


def collected(facts, count=4, patience=0.0, best=None, looks=()):
    """`facts`: what each next session shows; the last one goes on. Looks at the machine show `looks`, then calm."""
    facts, looks, asked = list(facts), list(looks), []

    def take(number, turn):
        asked.append((number, turn))
        ran, slower = facts[min(number, len(facts) - 1)]
        return session(ran, turn, **slower)

    def look(seconds):
        return looks.pop(0) if looks else CALM

    steps = []
    found = quiet.collect(
        take, count, Patience(patience, TWO, look), best or {}, lambda done, total: steps.append((done, total))
    )
    assert steps[-1] == (count, count)
    return found, asked


FINE, LOADED = (CALM, {}), (BUSY, {})


def test_quiet_sessions_are_taken_once_in_both_orders():
    found, asked = collected([FINE])
    assert [turn for _, turn in asked] == [1, -1, 1, -1]
    assert (len(found.sessions), found.taken, found.disturbed, found.left_out) == (4, 4, (), ())
    assert found.best == TIMES
    assert {"waited_s", "disturbed", "left_out"}.isdisjoint(found.to_json())


def test_without_patience_one_disturbed_session_of_four_is_left_out_and_two_are_too_many():
    found, _ = collected([LOADED, FINE])
    assert (len(found.sessions), found.taken, found.disturbed) == (3, 4, ())
    assert found.left_out[0] == "other processes used up to 0.90 of 2 cores (in 1 of 1 sessions)"
    found, _ = collected([LOADED, LOADED, FINE])
    assert (len(found.sessions), found.taken, found.left_out) == (4, 4, ())
    assert found.disturbed[0] == "other processes used up to 0.90 of 2 cores (in 2 of 4 sessions)"
    assert found.to_json()["disturbed"] == list(found.disturbed)


def test_with_patience_disturbed_sessions_are_taken_again_and_orders_stay_even():
    found, asked = collected([LOADED, FINE, LOADED, FINE], patience=5.0)
    assert (len(found.sessions), found.taken, found.disturbed) == (4, 6, ())
    assert sum(each.turn for each in found.sessions) == 0
    assert [number for number, _ in asked] == list(range(6))


def test_the_machine_is_given_time_to_calm_down_but_no_more_than_patience():
    found, _ = collected([LOADED, FINE], patience=5.0, looks=[BUSY, BUSY])
    assert (len(found.sessions), found.taken, found.disturbed) == (4, 5, ())
    begin = time.monotonic()
    found, _ = collected([LOADED], patience=0.2, looks=[BUSY] * 10**6)
    assert time.monotonic() - begin < 5
    assert (found.taken, len(found.sessions)) == (4, 4) and found.disturbed and found.waited_s >= 0.2


def test_a_machine_that_stays_busy_ends_at_three_times_the_sessions():
    found, _ = collected([LOADED], patience=1e9)
    assert found.taken == 12 and found.disturbed


def test_one_session_alone_is_kept_or_disturbed():
    assert collected([FINE], count=1)[0].disturbed == ()
    assert collected([LOADED], count=1)[0].disturbed != ()


def test_better_than_the_run_so_far_is_kept_in_mind():
    found, _ = collected([(CALM, {"core": 0.9})], best={**TIMES, "memory": 3.9})
    assert found.best == {"core": 0.9, "cache": 2.0, "memory": 3.9, "baseline": 8.0}


STREAM = """
import numpy as np
there = np.ones(2**25, np.int64)
here = np.empty_like(there)
print("streaming", flush=True)
while True:
    np.copyto(here, there)
"""


def test_a_neighbour_that_streams_memory_disturbs(conv_file):
    """The real thing: its processor time, if nothing else, is seen in every session."""
    neighbour = subprocess.Popen([sys.executable, "-c", STREAM], stdout=subprocess.PIPE)
    try:
        neighbour.stdout.readline()
        found = latency.latency("onnxruntime", conv_file(), effort=latency.Effort(2, 0.3, 5, 10**6))
    finally:
        neighbour.kill()
        neighbour.wait()
        neighbour.stdout.close()
    assert any("other processes used" in sentence for sentence in found["latency_ms"].disturbed)
    assert found["latency_p95_ms"].disturbed == found["latency_ms"].disturbed
