"""What is measured of a file by itself, beside its speed and its answers. A further limit is its row in
core/quantities.py, the function that measures it, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pocketfit import runtimes
from pocketfit.core.artifact import Artifact
from pocketfit.core.measurement import Measurement
from pocketfit.core.support.loading import called
from pocketfit.measurement import memory

Measured = dict[str, Measurement]


def sizes(artifact: Artifact, threads: int, processes: int) -> Measured:
    """On disk, and after deflate."""
    return {
        "size_bytes": Measurement(quantity="size_bytes", unit="B", value=artifact.bytes),
        "download_bytes": Measurement(quantity="download_bytes", unit="B", value=artifact.download_bytes),
    }


def footprint(artifact: Artifact, threads: int, processes: int) -> Measured:
    """Cold start and memory."""
    return memory.footprint(artifact.runtime, Path(artifact.path), threads=threads, processes=processes)


def flash_and_ram(artifact: Artifact, threads: int, processes: int) -> Measured:
    """Of files for microcontrollers: what lies in flash, and the memory that is planned for tensors; {} of others."""
    arena = runtimes.get(artifact.runtime).ARENA
    if not arena:
        return {}
    ram = int(called(arena)(Path(artifact.path)))
    return {
        "ram_bytes": Measurement(quantity="ram_bytes", unit="B", value=ram),
        "flash_bytes": Measurement(quantity="flash_bytes", unit="B", value=artifact.bytes),
    }


# Each takes the artifact, the threads of the runtime, and in how many processes a noisy quantity is taken.
OF_A_FILE: tuple[Callable[[Artifact, int, int], Measured], ...] = (sizes, footprint, flash_and_ram)


def of_file(artifact: Artifact, *, threads: int, processes: int, path: Path | None = None) -> Measured:
    """All of them; `path` says where the file is, where that is not `artifact.path`."""
    placed = artifact if path is None else replace(artifact, path=str(path))
    return {name: found for measure in OF_A_FILE for name, found in measure(placed, threads, processes).items()}
