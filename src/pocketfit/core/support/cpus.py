"""How many processors this process may use: its affinity, and the CPU quota of the container that it runs in.

os.cpu_count() counts the machine's processors. A container may have fewer in two ways: a set of cores (affinity), or a
share of their time (a quota of the kernel's control groups, in cores: 1.5). More threads than that disturb each other,
and a used-up quota stops all of them for the rest of its period (0.1 s by default).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pocketfit.core.errors import UserError

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Group:
    """The folder of a control group; `unified`: cgroup v2, whose files have other names than those of v1."""

    folder: Path
    unified: bool

    def quota(self) -> float | None:
        """Cores that its processes may use together; None: no limit.

        docs.kernel.org/admin-guide/cgroup-v2.html: cpu.max holds "$MAX $PERIOD" in microseconds, or "max"; v1 has
        cpu.cfs_quota_us (-1: no limit) and cpu.cfs_period_us.
        """
        if self.unified:
            words = _read(self.folder / "cpu.max").split()
        else:
            words = [_read(self.folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if len(words) != 2 or not words[0].isdecimal() or not words[1].isdecimal() or int(words[1]) == 0:
            return None
        return int(words[0]) / int(words[1])

    def throttled_s(self) -> float | None:
        """Seconds for which the quota has kept its processes from running, summed over cores; None: unknown."""
        name, per_second = ("throttled_usec", 1e6) if self.unified else ("throttled_time", 1e9)
        for line in _read(self.folder / "cpu.stat").splitlines():
            key, _, value = line.partition(" ")
            if key == name and value.strip().isdecimal():
                return int(value) / per_second
        return None


def groups(proc: Path = PROC, mounts: Path = CGROUPS) -> tuple[Group, ...]:
    """The control groups that may limit this process's processor time: its own, and all visible ones above them."""
    return tuple(_groups(proc, mounts))


def quota(proc: Path = PROC, mounts: Path = CGROUPS) -> float | None:
    """Cores that this process may use by quota, the smallest of all groups that it is in; None: no limit."""
    return min((found for group in groups(proc, mounts) if (found := group.quota()) is not None), default=None)


def affinity() -> tuple[int, ...]:
    """Logical cores that this process may run on, by number."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def usable(proc: Path = PROC, mounts: Path = CGROUPS) -> int:
    """How many threads can run at once: by affinity, and by the quota, rounded up."""
    allowed = quota(proc, mounts)
    cores = len(affinity())
    return cores if allowed is None else max(1, min(cores, math.ceil(allowed)))


def check_threads(threads: int) -> None:
    """Refuse more threads for a file than this process may use at once."""
    most = usable()
    if threads > most:
        allowed = quota()
        why = (
            "" if allowed is None or allowed > len(affinity()) else f" (the CPU quota of its container is {allowed:g})"
        )
        cores = "1 core" if most == 1 else f"{most} cores"
        raise UserError(
            f"A file can't be timed with {threads} threads here: this process may use {cores}{why}, and more threads"
            f" than that would wait for each other; give at most {most}"
        )


def limit_threads() -> None:
    """Limit OpenMP's threads to a quota, before PyTorch is loaded: OpenMP counts cores and knows nothing of quotas.

    A limit that the user has set is kept.
    """
    if usable() < len(affinity()):
        os.environ.setdefault("OMP_NUM_THREADS", str(usable()))


def _groups(proc: Path, mounts: Path) -> Iterator[Group]:
    for line in _read(proc / "self" / "cgroup").splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            homes = [(mounts, True), (mounts / "unified", True)]
        elif "cpu" in controllers.split(","):
            homes = [(mounts / name, False) for name in dict.fromkeys((controllers, "cpu,cpuacct", "cpu"))]
        else:
            continue
        for home, unified in homes:
            if home.is_dir() and (not unified or (home / "cgroup.controllers").is_file()):
                yield from (Group(folder, unified) for folder in _upwards(home, path))
                break


def _upwards(home: Path, path: str) -> Iterator[Path]:
    """A group's folder and those above it. In a container the path may be the host's; then only the top exists."""
    folder = home.joinpath(*(part for part in path.split("/") if part not in ("", ".", "..")))
    for each in (folder, *folder.parents):
        if each.is_dir():
            yield each
        if each == home:
            return


def _read(path: Path) -> str:
    """The text of a kernel file; "" where it does not exist or may not be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
