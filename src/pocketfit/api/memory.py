"""`pocketfit.api.memory`: memory of one file at several sizes of its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketfit import runtimes
from pocketfit.api.file_inputs import check_files
from pocketfit.core.measurement import Measurement
from pocketfit.core.support.progress import Silent, Watch
from pocketfit.measurement import memory
from pocketfit.measurement.memory import Size


@dataclass(frozen=True)
class AtSize:
    """What a file takes at one size of its input; `measurements` as memory.footprint gives them."""

    size: Size
    measurements: Mapping[str, Measurement]


@dataclass(frozen=True)
class MemoryOverSizes:
    """One row a size, in the order that was asked for."""

    file: Path
    runtime: str
    rows: tuple[AtSize, ...]

    def to_json(self) -> dict[str, Any]:
        """What `pocketfit measure --sizes --json` prints."""
        return {
            "file": str(self.file),
            "runtime": self.runtime,
            "sizes": [
                {"size": list(row.size), "measurements": {name: m.to_json() for name, m in row.measurements.items()}}
                for row in self.rows
            ],
        }


def memory_over_sizes(
    file: str | Path, sizes: Sequence[Size], *, threads: int = 1, watch: Watch | None = None
) -> MemoryOverSizes:
    """Peak memory, its parts and the cold start of a file at several sizes of its input, in fresh processes.

    file   a file with dynamic axes (one whose axes are fixed fits one size only)
    sizes  without the batch: [(3, 48, 160), (3, 48, 320)]
    Raises UserError for a size that does not fit the file's input.
    """
    file, watch = Path(file), watch or Silent()
    check_files(file)
    name = runtimes.for_file(file).NAME
    tick = watch.step(f"memory at {len(sizes)} sizes")
    rows = memory.over_sizes(name, file, sizes, threads=threads, progress=tick)
    return MemoryOverSizes(file, name, tuple(AtSize(size, found) for size, found in rows))
