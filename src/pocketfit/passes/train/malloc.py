"""Keep freed memory in the process while a network trains: training asks for the same blocks again at every step.

By default glibc gives every block of over 32 MB back to the system when it is freed, and the system hands out the next
one page by page, filled with zeros. That takes a good part of a training step (docs/results/notes.md, "Training").
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # the numbers of malloc.h
NEVER = 2**31 - 1  # bytes that may lie free at the end of the heap before they are given back
LARGEST_THRESHOLD = 32 * 2**20  # the largest value of glibc's own threshold, which grows with use
BLOCKS = 65536  # glibc's default: how many blocks may be requested from the system one by one


@contextmanager
def kept_memory() -> Iterator[None]:
    """Inside, freed blocks stay in the process, whatever their size; with another C library than glibc nothing changes.

    At the end the blocks that are free go back to the system.
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
