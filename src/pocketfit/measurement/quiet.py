"""Which timing sessions count, by what else ran during each, and by how fast the machine was at that moment.

A session is disturbed where other work took more than a little of the machine, or where core, cache, memory or the
baseline were clearly slower than at their best in this run. Disturbed sessions are taken again as long as patience
lasts. They are left out if there are enough quiet ones; if not, all are used, and no limit is certified by them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from pocketfit.core.support import cpus
from pocketfit.core.support.progress import Tick
from pocketfit.devices import load
from pocketfit.devices.load import Load

OTHERS_SHARE, OTHERS_LEAST = 0.05, 0.1  # share of the machine's cores, and cores: an idle system uses less than that
OWN_CORES = 0.1
STEAL_CORES = 0.05
WAITED, THROTTLED, STALLED = 0.05, 0.01, 0.05  # shares of the session
SLOWER = {"core": 1.3, "cache": 1.3, "memory": 1.2, "baseline": 1.2}  # times the best time of this run; see _slower
ENOUGH = 0.75  # share of the requested sessions that must be quiet; the interval of fewer would say nothing
LOOK_S = 0.25  # how long the machine is observed at a time, while waiting for it to calm down
AT_MOST = 3  # times as many sessions as requested are taken at most, however quick they are

BASELINE = "baseline"
WORDS = {
    "others": "other processes used up to {amount:.2f} of {cores} cores",
    "own": "pocketfit's own processes used up to {amount:.2f} cores",
    "steal": "the hypervisor gave up to {amount:.2f} cores to other guests",
    "waited": "threads stood in line for a core for up to {amount:.0%} of the time",
    "throttled": "a CPU quota{quota} stopped it for up to {amount:.0%} of the time",
    "stalled": "processes waited for memory for up to {amount:.0%} of the time: the machine has too little of it",
    "hot": "the processor slowed down {amount:.0f} times because it was hot",
    "core": "the core took up to {amount:.2f}x its best time of this run for the same work",
    "cache": "the cache that cores share took up to {amount:.2f}x its best time of this run: something else fills it",
    "memory": "reading memory took up to {amount:.2f}x its best time of this run: something else uses it",
    BASELINE: "the baseline took up to {amount:.2f}x its best time of this run",
}

Reasons = Mapping[str, float]  # what disturbed -> how much


@dataclass(frozen=True)
class Machine:
    """How many logical cores there are, and how many of them a quota allows (None: no quota)."""

    cores: int
    quota: float | None = None

    @classmethod
    def here(cls) -> Machine:
        return cls(psutil.cpu_count(logical=True) or 1, cpus.quota())


@dataclass(frozen=True)
class Session:
    """One session: calls_ms of each file [rounds, calls], the median times of the canary's works, what else ran.

    times_ms also has the baseline's median, as "baseline".
    """

    calls_ms: tuple[NDArray[np.float64], ...]
    load: Load
    times_ms: Mapping[str, float]
    turn: int = 1  # -1: the files were loaded in the opposite order
    cores: tuple[int, ...] = ()
    taken_again: int = 0


@dataclass(frozen=True)
class Collected:
    """The sessions that count, in the order in which they were taken; `disturbed` says why they are unreliable.

    best      the best median times of this run, these sessions included
    left_out  why the sessions that do not count were left out, one sentence a kind
    """

    sessions: tuple[Session, ...]
    taken: int
    waited_s: float
    best: Mapping[str, float]
    disturbed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For a measurement's environment."""
        data: dict[str, Any] = {
            "sessions": len(self.sessions),
            "sessions_taken": self.taken,
            "pinned_to_cores": [list(each.cores) for each in self.sessions],
            "interrupted_and_taken_again": sum(each.taken_again for each in self.sessions),
            "load": [each.load.to_json() for each in self.sessions],
            "times_ms": [{k: round(v, 4) for k, v in each.times_ms.items()} for each in self.sessions],
            "best_ms": {name: round(value, 4) for name, value in self.best.items()},
        }
        data |= {"waited_s": round(self.waited_s, 1)} if self.waited_s else {}
        data |= {"disturbed": list(self.disturbed)} if self.disturbed else {}
        return data | ({"left_out": list(self.left_out)} if self.left_out else {})


@dataclass(frozen=True)
class Patience:
    """How long to wait, in all, for a quiet machine and for sessions that are taken again; and how to observe it."""

    seconds: float = 0.0
    machine: Machine = field(default_factory=Machine.here)
    look: Callable[[float], Load] = load.over


def collect(
    take: Callable[[int, int], Session],
    count: int,
    patience: Patience,
    best: Mapping[str, float],
    progress: Tick | None = None,
) -> Collected:
    """`count` quiet sessions, or as many as patience allows.

    take  (number, turn) -> a session; turn is -1 where the files are to be loaded in the opposite order
    best  median times of this run so far, of the canary's works and of the baseline; {}: nothing was timed before
    """
    sessions: list[Session] = []
    left_s, waited_s = patience.seconds, 0.0
    while True:
        quiet = [each for each, why in zip(sessions, judge(sessions, best, patience.machine), strict=True) if not why]
        if len(quiet) >= count or len(sessions) >= AT_MOST * count:
            break
        if len(sessions) >= count and left_s <= 0:
            break
        if len(quiet) < len(sessions) and left_s > 0:
            waited = wait(left_s, patience)
            left_s, waited_s = left_s - waited, waited_s + waited
        begin = time.monotonic()
        sessions.append(take(len(sessions), _turn(quiet, sessions)))
        if len(sessions) > count:
            left_s -= time.monotonic() - begin
        if progress is not None:
            progress(min(len(sessions), count), count)
    return _kept(sessions, count, waited_s, best, patience.machine)


def judge(sessions: Sequence[Session], best: Mapping[str, float], machine: Machine) -> list[Reasons]:
    """What disturbed each session, {}: nothing. A slow session is recognised once there was a faster one."""
    known = better(best, *(each.times_ms for each in sessions))
    return [_reasons(each, known, machine) for each in sessions]


def better(*times_ms: Mapping[str, float]) -> dict[str, float]:
    """The smallest time of each work.

    >>> better({"core": 2.0}, {"core": 1.5, "memory": 3.0})
    {'core': 1.5, 'memory': 3.0}
    """
    found: dict[str, float] = {}
    for each in times_ms:
        found |= {name: min(value, found.get(name, value)) for name, value in each.items()}
    return found


def wait(most_s: float, patience: Patience) -> float:
    """Wait until nothing else runs that would disturb a session, for `most_s` at most; returns the seconds waited."""
    begin = time.monotonic()
    while (spent := time.monotonic() - begin) < most_s:
        if calm(patience.look(min(LOOK_S, most_s - spent)), patience.machine):
            break
    return time.monotonic() - begin


def calm(seen: Load, machine: Machine) -> bool:
    """Whether nothing else runs that would disturb a session."""
    return not of_load(seen, machine)


def calm_now() -> bool:
    """Whether nothing else runs at this moment."""
    return calm(load.over(LOOK_S), Machine.here())


def sentences(found: Sequence[Reasons], machine: Machine) -> tuple[str, ...]:
    """One sentence a kind of disturbance, with the largest amount and in how many sessions it was seen."""
    said = []
    for kind, words in WORDS.items():
        amounts = [reasons[kind] for reasons in found if kind in reasons]
        if amounts:
            quota = "" if machine.quota is None else f" of {machine.quota:g} cores"
            text = words.format(amount=max(amounts), cores=machine.cores, quota=quota)
            said.append(f"{text} (in {len(amounts)} of {len(found)} sessions)")
    return tuple(said)


def _reasons(session: Session, best: Mapping[str, float], machine: Machine) -> Reasons:
    return {**of_load(session.load, machine), **_slower(session.times_ms, best)}


def _slower(times_ms: Mapping[str, float], best: Mapping[str, float]) -> Reasons:
    """The works that were slower than at their best. A lower clock (a laptop after its first minutes) slows all files
    alike: the core may slow down by more, and the other works are compared relative to it."""
    ratios = {name: times_ms[name] / best[name] for name in SLOWER if name in times_ms}
    clock = max(1.0, ratios.get("core", 1.0))
    allowed = {name: limit * (1.0 if name == "core" else clock) for name, limit in SLOWER.items()}
    return {name: ratio for name, ratio in ratios.items() if ratio > allowed[name]}


def of_load(seen: Load, machine: Machine) -> Reasons:
    """What disturbed a session, judged only by what else ran."""
    limits = {
        "others": (seen.others_cores, max(OTHERS_LEAST, OTHERS_SHARE * machine.cores)),
        "own": (seen.own_cores, OWN_CORES),
        "steal": (seen.steal_cores, STEAL_CORES),
        "waited": (seen.waited, WAITED),
        "throttled": (seen.throttled, THROTTLED),
        "stalled": (seen.stalled, STALLED),
        "hot": (seen.hot, 0),
    }
    return {kind: float(value) for kind, (value, limit) in limits.items() if value is not None and value > limit}


def _turn(quiet: Sequence[Session], sessions: Sequence[Session]) -> int:
    """The order of loading (1 or -1) that fewer quiet sessions have, or fewer sessions at all."""

    def lead(of: Sequence[Session]) -> int:
        return sum(each.turn for each in of)

    return -1 if (lead(quiet), lead(sessions)) > (0, 0) else 1


def _kept(
    sessions: Sequence[Session], count: int, waited_s: float, best: Mapping[str, float], machine: Machine
) -> Collected:
    judged = judge(sessions, best, machine)
    quiet = [each for each, why in zip(sessions, judged, strict=True) if not why]
    known = better(best, *(each.times_ms for each in sessions))
    why = sentences([reasons for reasons in judged if reasons], machine)
    if len(quiet) >= max(min(2, count), math.ceil(ENOUGH * count)):
        return Collected(tuple(quiet), len(sessions), waited_s, known, left_out=why)
    return Collected(tuple(sessions), len(sessions), waited_s, known, disturbed=sentences(judged, machine))
