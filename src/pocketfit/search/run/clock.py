"""The time that a run has, over all of its sessions."""

from __future__ import annotations

import time
from pathlib import Path

from pocketfit.search import journal


class Clock:
    """Seconds used by this and earlier sessions; `note` writes the new ones into the journal."""

    def __init__(self, path: Path, used_s: float, limit_s: float | None) -> None:
        self._path, self._used_s, self._limit_s = path, used_s, limit_s
        self._noted = time.monotonic()

    def note(self) -> None:
        now = time.monotonic()
        journal.append(self._path, {"kind": "time", "seconds": round(now - self._noted, 3)})
        self._used_s, self._noted = self._used_s + now - self._noted, now

    def left_s(self) -> float:
        if self._limit_s is None:
            return float("inf")
        return self._limit_s - self._used_s - (time.monotonic() - self._noted)
