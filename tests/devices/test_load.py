"""What ran between two moments: made-up counters, and this system's own, which only have to grow."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from pocketfit.core.support import cpus
from pocketfit.devices import load
from pocketfit.devices.load import Load, Snapshot

BEFORE = Snapshot(
    time_s=10.0, busy_s=100.0, self_s=5.0, tree_s=2.0, steal_s=1.0, waited_s=0.5, throttled_s=0.0, stalled_s=3.0, hot=7
)


def test_others_are_what_is_left_of_all_processors():
    after = Snapshot(
        time_s=14.0,
        busy_s=107.0,
        self_s=8.0,
        tree_s=3.0,
        steal_s=1.2,
        waited_s=0.9,
        throttled_s=2.0,
        stalled_s=3.4,
        hot=9,
    )
    found = load.between(BEFORE, after)
    assert found.others_cores == pytest.approx((7 - 3 - 1) / 4)
    assert found.own_cores == pytest.approx(1 / 4)
    assert (found.steal_cores, found.waited, found.throttled, found.stalled) == pytest.approx((0.05, 0.1, 0.5, 0.1))
    assert (found.seconds, found.hot) == (4.0, 2)


def test_ticks_that_say_less_than_the_own_clock_are_no_negative_load():
    found = load.between(
        BEFORE,
        Snapshot(
            time_s=10.1,
            busy_s=100.09,
            self_s=5.1,
            tree_s=2.0,
            steal_s=None,
            waited_s=None,
            throttled_s=None,
            stalled_s=None,
            hot=None,
        ),
    )
    assert (found.others_cores, found.own_cores) == (0.0, 0.0)
    assert (found.steal_cores, found.waited, found.throttled, found.stalled, found.hot) == (None,) * 5
    assert found.to_json() == {"seconds": 0.1, "others_cores": 0.0, "own_cores": 0.0}


def test_files_of_the_kernel_are_read(tmp_path, monkeypatch):
    (tmp_path / "memory").write_text(
        "some avg10=0.00 avg60=0.05 avg300=0.13 total=1447450\nfull avg10=0.01 avg60=0.05 avg300=0.12 total=1312756\n"
    )
    for thread, waited in ((1, 250_000_000), (2, 500_000_000)):
        (tmp_path / f"task{thread}").mkdir()
        (tmp_path / f"task{thread}" / "schedstat").write_text(f"999 {waited} 12\n")
    for core, count in ((0, 3), (1, 4)):
        (tmp_path / f"cpu{core}" / "thermal_throttle").mkdir(parents=True)
        (tmp_path / f"cpu{core}" / "thermal_throttle" / "core_throttle_count").write_text(f"{count}\n")
    (tmp_path / "cpu.stat").write_text("throttled_usec 2500000\n")
    for name, path in (("PRESSURE", tmp_path / "memory"), ("TASKS", tmp_path), ("CORES", tmp_path)):
        monkeypatch.setattr(load, name, path)
    monkeypatch.setattr(cpus, "groups", lambda: (cpus.Group(tmp_path, unified=True),))
    found = load.snapshot(os.getpid())
    assert (found.stalled_s, found.waited_s, found.throttled_s, found.hot) == (1.44745, 0.75, 2.5, 7)


def test_a_system_that_tells_nothing_gives_none(tmp_path, monkeypatch):
    for name in ("PRESSURE", "TASKS", "CORES"):
        monkeypatch.setattr(load, name, tmp_path / "gone")
    monkeypatch.setattr(cpus, "groups", lambda: ())
    monkeypatch.setattr(psutil, "cpu_times", type("Times", (), {"user": 3.0, "system": 1.0, "idle": 9.0}))
    found = load.snapshot(os.getpid())
    assert found.busy_s == 4.0
    assert (found.steal_s, found.waited_s, found.throttled_s, found.stalled_s, found.hot) == (None,) * 5


def test_own_children_are_not_others_and_a_process_that_is_gone_is_no_error():
    before = load.snapshot(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.6)
        found = load.between(before, load.snapshot(os.getpid()))
    finally:
        child.kill()
        child.wait()
    assert found.own_cores > 0.05  # whatever else runs here, it got a share of a core
    assert load.snapshot(child.pid).tree_s == 0.0


def test_looking_takes_the_time_that_is_asked_for():
    found = load.over(0.05)
    assert found.seconds >= 0.05
    assert isinstance(found, Load)
