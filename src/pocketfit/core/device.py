"""Where a file will run, and how that place is reached."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

X86 = ("x86_64", "amd64", "i386", "i686", "x86")
Reach = Literal["local", "emulated", "adb", "ssh", "predicted"]


@dataclass(frozen=True)
class Device:
    """A place to run files. `isa` names the instruction sets that matter to int8 ("avx512_vnni", "avx2", "dotprod")."""

    reach: Reach = "local"
    threads: int = 1
    isa: tuple[str, ...] = ()
    name: str = ""


def u8s8_saturates(machine: str, isa: Collection[str]) -> bool:
    """Whether uint8 x int8 products overflow on a processor: `machine` as platform.machine() calls it, `isa` its
    instruction sets as /proc/cpuinfo or Device.isa names them.

    x86 without VNNI sums two products in 16 bits and saturates (vpmaddubsw): 2 * 255 * 127 is beyond 32767. An x86
    processor that does not tell is taken for one of those; ARM's instructions sum in 32 bits.

    >>> u8s8_saturates("x86_64", ("avx2", "avx512f")), u8s8_saturates("x86_64", ("avx2", "avx_vnni"))
    (True, False)
    >>> u8s8_saturates("aarch64", ("neon", "dotprod"))
    False
    """
    return machine.lower() in X86 and not any("vnni" in name for name in isa)
