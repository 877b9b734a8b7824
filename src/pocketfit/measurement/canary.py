"""Small fixed works, timed in turns with files: how fast core, shared cache and memory are at that moment.

Inside a session, a load that lasts looks like a slow machine. It is recognised by comparison with the best time of the
same work in the same run. So are disturbances that no system reports: other guests of the same host, a hot processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
L1_BYTES = 16 * 2**10  # half of the smallest first-level caches in use
L1_PASSES = 256
DEFAULT_CACHE_BYTES = 32 * 2**20  # for processors that do not state it
CACHE_RANGE = (2**20, 16 * 2**20)
MEMORY_RANGE = (16 * 2**20, 128 * 2**20)
FILLED_FIRST = ("cache",)  # these run once untimed, because the work before has replaced the cache's content

Works = Mapping[str, Callable[[], object]]


class Canary:
    """The works of one session, and the times that they have taken.

    core    sums over a buffer inside the first-level cache: the clock, and whether the core is shared
    cache   one pass over half of the last-level cache, which other cores fill, too
    memory  one pass over a buffer of twice the last-level cache: how fast the weights of a large file can be read
    """

    def __init__(self, works: Works | None = None) -> None:
        self._works = _works(last_level_cache_bytes()) if works is None else works
        self._times_ms: dict[str, list[float]] = {name: [] for name in self._works}

    def sing(self) -> None:
        """Time each work once. It takes milliseconds, and leaves the caches full of its buffers."""
        for name, work in self._works.items():
            if name in FILLED_FIRST:
                work()
            start = time.perf_counter_ns()
            work()
            self._times_ms[name].append((time.perf_counter_ns() - start) / 1e6)

    def medians_ms(self) -> dict[str, float]:
        """The median time of each work."""
        return {name: float(np.median(times)) for name, times in self._times_ms.items()}


def last_level_cache_bytes(folder: Path = CACHES) -> int:
    """The size of the first core's largest cache, as Linux states it; 32 MiB where nothing is stated."""
    sizes = []
    for path in sorted(folder.glob("index*/size")) if folder.is_dir() else ():
        text = path.read_text().strip()
        if text[:-1].isdecimal() and text[-1:] in UNITS:
            sizes.append(int(text[:-1]) * UNITS[text[-1]])
    return max(sizes, default=DEFAULT_CACHE_BYTES)


def _works(cache_bytes: int) -> Works:
    core, cache, memory = (
        np.ones(size // 8, np.int64)
        for size in (L1_BYTES, _within(cache_bytes // 2, CACHE_RANGE), _within(2 * cache_bytes, MEMORY_RANGE))
    )

    def in_core() -> None:
        for _ in range(L1_PASSES):
            np.bitwise_or.reduce(core)

    return {
        "core": in_core,
        "cache": lambda: np.bitwise_or.reduce(cache),
        "memory": lambda: np.bitwise_or.reduce(memory),
    }


def _within(size: int, bounds: tuple[int, int]) -> int:
    return min(max(size, bounds[0]), bounds[1])
