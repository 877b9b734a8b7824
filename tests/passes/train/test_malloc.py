"""Memory that training keeps: large blocks come from the heap inside, and from the system again behind it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from pocketfit.passes.train import malloc

SIZE = 200 * 2**20  # bytes, well over what glibc serves from its heap by itself


def mapped() -> bool:
    """Whether a large block lies in a mapping of its own, outside the heap."""
    block = torch.empty(SIZE, dtype=torch.uint8)
    address = block.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in re.split("[- ]", line)[:2])
        if start <= address < end:
            return "[heap]" not in line
    raise AssertionError("the block is in no mapping")


@pytest.mark.skipif(
    not Path("/proc/self/maps").exists() or malloc._glibc() is None, reason="speaks of glibc's settings"
)
def test_large_blocks_stay_with_the_process_inside_only() -> None:
    assert mapped()
    with malloc.kept_memory():
        assert not mapped()
    assert mapped()


@pytest.mark.skipif(malloc._glibc() is None, reason="speaks of glibc's settings")
def test_it_ends_where_training_fails() -> None:
    with pytest.raises(RuntimeError, match="diverged"), malloc.kept_memory():
        raise RuntimeError("diverged")
    if Path("/proc/self/maps").exists():
        assert mapped()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malloc, "_glibc", lambda: None)
    with malloc.kept_memory():
        assert torch.ones(3).sum() == 3
