"""Where a bundle runs: there kernels may differ from those of the golden outputs. It stands alone, as run.py does."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

INTEGER_SETS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")  # as /proc/cpuinfo says


def is_same(manifest: dict[str, Any]) -> bool:
    """Whether this is the runtime version and the processor with which the golden outputs were made."""
    made = manifest["environment"]
    try:
        here = version(manifest["runtime"]["package"])
    except PackageNotFoundError:  # a build of the runtime under another name
        return False
    return bool(manifest["runtime"]["version"] == here and made["processor"] == processor_name())


def processor_name() -> str:
    """The processor's name and its instruction sets for integers: where these are equal, kernels are the same."""
    cpuinfo = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name") or facts.get("Model") or platform.processor() or platform.machine()
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    return " ".join([name, *(flag for flag in INTEGER_SETS if flag in flags)])
