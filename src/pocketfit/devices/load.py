"""What else ran on this machine between two moments: other processes, the hypervisor's other guests, a CPU quota.

Times are in seconds of processor time; a share of 1 core is one core busy all the time. The processor time of all
processes comes in ticks (10 ms on Linux), so spans under 0.2 s say little.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from pocketfit.core.support import cpus

PRESSURE = Path("/proc/pressure/memory")
TASKS = Path("/proc/self/task")
CORES = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Counters that only grow; None where this system has no such counter.

    time_s       a monotonic clock
    busy_s       processor time of all processes of the machine, interrupts included
    self_s       processor time of this process alone
    tree_s       processor time of the rest of pocketfit's processes: the one that the user started and all below it
    steal_s      time that a hypervisor gave to other guests while this one had work
    waited_s     time for which threads of this process waited for a core
    throttled_s  time for which a CPU quota kept this process's control group from running
    stalled_s    time for which some process of the machine waited for memory (pressure stall information)
    hot          how often a core was slowed down because it was hot
    """

    time_s: float
    busy_s: float
    self_s: float
    tree_s: float
    steal_s: float | None
    waited_s: float | None
    throttled_s: float | None
    stalled_s: float | None
    hot: int | None


@dataclass(frozen=True, kw_only=True)
class Load:
    """What ran between two snapshots, beside the process that took them: `seconds` long, the others as in Snapshot.

    others_cores, own_cores, steal_cores  processor time per second: 1.0 is one core all the time
    waited, throttled, stalled            shares of the time
    """

    seconds: float
    others_cores: float
    own_cores: float
    steal_cores: float | None = None
    waited: float | None = None
    throttled: float | None = None
    stalled: float | None = None
    hot: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The values that this system has, rounded to the precision of its counters."""
        return {key: round(value, 4) for key, value in asdict(self).items() if value is not None}


def snapshot(root: int) -> Snapshot:
    """The counters now. `root`: process id of the pocketfit that the user started, this process or one above it."""
    times = psutil.cpu_times()
    busy_s = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    throttled = [found for group in cpus.groups() if (found := group.throttled_s()) is not None]
    return Snapshot(
        time_s=time.monotonic(),
        busy_s=busy_s,
        self_s=time.process_time(),
        tree_s=_tree_s(root),
        steal_s=getattr(times, "steal", None),
        waited_s=_waited_s(),
        throttled_s=sum(throttled) if throttled else None,
        stalled_s=_stalled_s(),
        hot=_hot(),
    )


def between(before: Snapshot, after: Snapshot) -> Load:
    """What ran between two snapshots of one process."""
    seconds = max(1e-9, after.time_s - before.time_s)

    def rate(name: str) -> float | None:
        first, last = getattr(before, name), getattr(after, name)
        return None if first is None or last is None else max(0.0, last - first) / seconds

    own = max(0.0, after.tree_s - before.tree_s) / seconds
    all_others = (after.busy_s - before.busy_s - (after.self_s - before.self_s)) / seconds - own
    hot = None if before.hot is None or after.hot is None else max(0, after.hot - before.hot)
    return Load(
        seconds=seconds,
        others_cores=max(0.0, all_others),
        own_cores=own,
        steal_cores=rate("steal_s"),
        waited=rate("waited_s"),
        throttled=rate("throttled_s"),
        stalled=rate("stalled_s"),
        hot=hot,
    )


def over(seconds: float, root: int | None = None) -> Load:
    """What runs during the next `seconds`, this process doing nothing."""
    root = os.getpid() if root is None else root
    before = snapshot(root)
    time.sleep(seconds)
    return between(before, snapshot(root))


def _tree_s(root: int) -> float:
    """Processor time of `root` and all that it has started, without this process; ended processes count in their
    parents."""
    total, mine = 0.0, os.getpid()
    with contextlib.suppress(psutil.Error):  # one that ends while it is looked at
        parent = psutil.Process(root)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.children_user + times.children_system
                total += 0.0 if process.pid == mine else times.user + times.system
    return total


def _waited_s() -> float | None:
    """docs.kernel.org/scheduler/sched-stats.html: /proc/PID/schedstat is "ns on a core, ns in line for one, slices"."""
    found = [words[1] for path in _listed(TASKS, "*/schedstat") if len(words := _read(path).split()) == 3]
    return sum(int(word) for word in found) / 1e9 if found else None


def _stalled_s() -> float | None:
    """docs.kernel.org/accounting/psi.html: "some avg10=0.00 avg60=0.00 avg300=0.00 total=" microseconds."""
    for line in _read(PRESSURE).splitlines():
        kind, _, rest = line.partition(" ")
        total = rest.rpartition("total=")[2]
        if kind == "some" and total.isdecimal():
            return int(total) / 1e6
    return None


def _hot() -> int | None:
    counts = [_read(path).strip() for path in _listed(CORES, "cpu[0-9]*/thermal_throttle/core_throttle_count")]
    known = [int(count) for count in counts if count.isdecimal()]
    return sum(known) if known else None


def _listed(folder: Path, pattern: str) -> Sequence[Path]:
    return sorted(folder.glob(pattern)) if folder.is_dir() else ()


def _read(path: Path) -> str:
    """The text of a kernel file; "" where it does not exist or may not be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
