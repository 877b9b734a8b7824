"""Where a file will run, and how that place is reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reach = Literal["local", "emulated", "adb", "ssh", "predicted"]


@dataclass(frozen=True)
class Device:
    """A place to run files. `isa` names the instruction sets that matter to int8 ("avx512_vnni", "avx2", "dotprod")."""

    reach: Reach = "local"
    threads: int = 1
    isa: tuple[str, ...] = ()
    name: str = ""
