"""The memory that a file plans for its tensors in TensorFlow Lite for Microcontrollers.

The head holds tensors that live for part of a run; it is the same on every processor. The tail holds the interpreter's
own tables, with pointers of this machine: where pointers have 4 bytes, it is smaller than here.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

from pocketfit.core.errors import ExportFailed
from pocketfit.processes import child_process

TOLD = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")


def arena_bytes(path: Path) -> int:
    """Head and tail together."""
    return parts_bytes(path)["total"]


def parts_bytes(path: Path) -> dict[str, int]:
    """ "total", "head" and "tail", as the runtime's recording allocator counts them on this machine."""
    found = child_process.call("pocketfit.runtimes.micro.arena:allocations", {"path": str(path.resolve())})
    return {str(name): int(count) for name, count in found.items()}


def allocations(path: str) -> dict[str, int]:
    """In the child process, whose output it takes for itself."""
    from pocketfit.formats import tflite_read
    from pocketfit.runtimes.micro.session import interpreter_of

    interpreter = interpreter_of(tflite_read.read(Path(path)))
    with tempfile.TemporaryFile() as said:  # it prints, and has no other way of telling
        sys.stderr.flush()
        for stream in (1, 2):
            os.dup2(said.fileno(), stream)
        interpreter.print_allocations()
        said.seek(0)
        text = said.read().decode(errors="replace")
    found = {word: int(count) for word, count in TOLD.findall(text)}
    if set(found) != {"total", "head", "tail"}:
        raise ExportFailed("TensorFlow Lite Micro did not say how its arena is used", text)
    return found
