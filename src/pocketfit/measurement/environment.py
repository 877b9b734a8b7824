"""Where a measurement was taken."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from pocketfit import runtimes
from pocketfit.core.plan.runtime_list import RUNTIMES
from pocketfit.core.support import cpus
from pocketfit.devices import local

PACKAGES = ("pocketfit", "numpy")  # and those that each runtime names


def environment(threads: int = 1) -> dict[str, Any]:
    """Processor, cores, instruction sets, load, system and versions, as JSON. Imports none of the packages.

    cpu_quota_cores  what the container may use of them, where there is a quota
    load_average  runnable processes over the last minute, None where the system has no such figure: more than a core
                  or two says that other work was running
    """
    device, quota = local.describe(threads), cpus.quota()
    return {
        "cpu": device.name,
        "machine": platform.machine(),
        "isa": list(device.isa),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(logical=True),
        "cores_usable": len(local.usable_cores()),
        **({} if quota is None else {"cpu_quota_cores": round(quota, 3)}),
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "memory_bytes": psutil.virtual_memory().total,
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in _packages() if (found := _version(name))},
    }


def _packages() -> tuple[str, ...]:
    ours = (package for name in RUNTIMES for package in runtimes.get(name).PACKAGES)
    return tuple(dict.fromkeys((*PACKAGES, *ours)))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
