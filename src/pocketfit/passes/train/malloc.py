"""Memory that training frees and asks for again at every step, kept in the process meanwhile.

By default glibc gives every block of over 32 MB back to the system when it is freed, and the system hands out the next
one page by page, full of zeros. A training step of MobileNetV2 on 64 pictures of 96 pixels takes 0.74x of the time
[0.70, 0.85] where the process keeps them (`benchmarks/speed/training_step.py`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # the numbers of malloc.h
NEVER = 2**31 - 1  # bytes that may lie free at the end of the heap
LARGEST_THRESHOLD = 32 * 2**20  # where glibc's own, which grows with use, comes to its end
BLOCKS = 65536  # that may be asked of the system one by one, by default


@contextmanager
def kept_memory() -> Iterator[None]:
    """Inside, freed blocks stay with the process, whatever their size; where the C library is another one, as ever.

    What the process has left over goes back to the system at the end.
    """
    glibc = _glibc()
    if glibc is None:
        yield
        return
    glibc.mallopt(MMAP_MAX, 0)
    glibc.mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        # Any call of mallopt stops the thresholds from growing by themselves: they get the values they grow to.
        glibc.mallopt(MMAP_MAX, BLOCKS)
        glibc.mallopt(MMAP_THRESHOLD, LARGEST_THRESHOLD)
        glibc.mallopt(TRIM_THRESHOLD, 2 * LARGEST_THRESHOLD)
        glibc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, None where it is not glibc: others have no such settings, or other numbers."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError: Windows
        return None
    return library if hasattr(library, "gnu_get_libc_version") else None
