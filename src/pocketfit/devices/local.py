"""This machine: its processor, and cores that a process is pinned to while something is timed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from pocketfit.core.device import Device
from pocketfit.core.support import cpus
from pocketfit.core.support.cpuinfo import cpu_model, cpuinfo, isa

SIBLINGS = "/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"
LOAD_WINDOW_S = 0.1


def describe(threads: int = 1) -> Device:
    """This machine as a Device."""
    return Device("local", threads, isa(cpuinfo()), cpu_model(cpuinfo()))


def usable_cores() -> tuple[int, ...]:
    """Logical cores that this process may use."""
    return cpus.affinity()


@contextmanager
def pin(threads: int) -> Iterator[tuple[int, ...]]:
    """Keep this process, and what it starts meanwhile, on the `threads` least loaded cores; undone at the end.

    Yields the cores, or () where the system cannot pin (macOS) or where there is nothing to choose. Enter it before a
    runtime is loaded: threads inherit the cores of the moment at which they are started.
    """
    before = usable_cores()
    if not hasattr(os, "sched_setaffinity") or threads >= len(before):
        yield ()
        return
    load = psutil.cpu_percent(interval=LOAD_WINDOW_S, percpu=True)
    chosen = choose_cores(before, load, [_siblings(core) for core in before], threads)
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)


def choose_cores(
    cores: Sequence[int], load: Sequence[float], siblings: Sequence[frozenset[int]], count: int
) -> tuple[int, ...]:
    """The least loaded cores; two hyper-threads of one physical core only when there is no other choice.

    cores     [n], numbers of logical cores
    siblings  [n], the logical cores that share a physical core with cores[i]
    load      percent, for each logical core of the machine

    >>> choose_cores([0, 1, 2, 3], [0, 1, 5, 9], [frozenset({0, 1})] * 2 + [frozenset({2, 3})] * 2, 2)
    (0, 2)
    """
    ranked = sorted(range(len(cores)), key=lambda i: (load[cores[i]] if cores[i] < len(load) else 0.0, cores[i]))
    chosen: list[int] = []
    for alone in (True, False):
        for i in ranked:
            if len(chosen) < count and cores[i] not in chosen and not (alone and siblings[i] & set(chosen)):
                chosen.append(cores[i])
    return tuple(sorted(chosen))


def _siblings(core: int) -> frozenset[int]:
    path = Path(SIBLINGS.format(core=core))
    return parse_cpu_list(path.read_text()) if path.exists() else frozenset({core})


def parse_cpu_list(text: str) -> frozenset[int]:
    """The kernel's list format.

    >>> sorted(parse_cpu_list("0-1,4"))
    [0, 1, 4]
    """
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return frozenset(cores)
