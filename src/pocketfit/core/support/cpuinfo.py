"""The processor's name, and its instruction sets that matter to float16 and int8 kernels, from /proc/cpuinfo."""

from __future__ import annotations

import platform
from collections.abc import Collection
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
X86 = ("x86_64", "amd64", "i386", "i686", "x86")
# Linux's word in /proc/cpuinfo -> the usual name of the instruction set, for those that decide how fast float16 and
# int8 kernels are.
ISA_NAMES = {
    "avx2": "avx2",
    "fma": "fma",
    "avx_vnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_int8": "amx_int8",
    "asimd": "neon",
    "neon": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "sve": "sve",
}


def cpuinfo() -> str:
    """The text of /proc/cpuinfo; "" where there is no such file."""
    return CPUINFO.read_text(errors="replace") if CPUINFO.is_file() else ""


def isa(cpuinfo: str) -> tuple[str, ...]:
    """The instruction sets that matter to int8 and float16 kernels; () where the text states none.

    >>> isa("flags : fpu avx2 avx512_vnni")
    ('avx2', 'avx512_vnni')
    >>> isa("Features : fp asimd asimddp")
    ('neon', 'dotprod')
    """
    words: set[str] = set()
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            words.update(value.split())
    return tuple(dict.fromkeys(name for word, name in ISA_NAMES.items() if word in words))


def cpu_model(cpuinfo: str) -> str:
    """The processor's name.

    >>> cpu_model("processor : 0\\nmodel name : Example 9000")
    'Example 9000'
    """
    for wanted in ("model name", "Model", "Hardware"):
        for line in cpuinfo.splitlines():
            key, _, value = line.partition(":")
            if key.strip() == wanted and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


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


def saturates() -> bool:
    """Whether uint8 x int8 products overflow on this machine, so that 8-bit weights lose accuracy in U8S8 files."""
    return u8s8_saturates(platform.machine(), isa(cpuinfo()))
