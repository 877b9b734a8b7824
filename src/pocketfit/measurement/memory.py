"""Cold start of a file, and memory of a process that loads and runs it."""

from __future__ import annotations

import importlib
import os
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pocketfit import runtimes
from pocketfit.core.errors import UserError
from pocketfit.core.measurement import Measurement
from pocketfit.devices import load, local
from pocketfit.devices.load import Load
from pocketfit.measurement import quiet
from pocketfit.measurement.environment import environment
from pocketfit.measurement.latency import random_inputs
from pocketfit.processes import child_process

PROCESSES = 3
WARM_RUNS = 3  # some runtimes allocate part of their memory in the second run only
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # man 5 proc: "reset the peak resident set size"


def footprint(runtime_name: str, path: Path, *, threads: int = 1, processes: int = PROCESSES) -> dict[str, Measurement]:
    """Cold start and peak memory of one file, the median of several fresh processes.

    cold_start_ms       loading the file and running it once, the runtime's library being imported already
    memory_bytes        peak resident memory while loading and running, less what was resident just before and less the
                        inputs: what the network adds to a process that has the runtime in it
    memory_gross_bytes  peak resident memory of the whole process, interpreter and libraries included

    low and high are the smallest and the largest of the processes. Where the system doesn't state a process's peak
    (only Linux does, in /proc), the two memory quantities are "not_possible_here". Other work slows down a cold start
    but does not change this process's memory, so only cold_start_ms says what ran beside it (Measurement.disturbed).
    """
    how = runtimes.get(runtime_name).HOW
    if not path.is_file():
        raise UserError(f"The file '{path}' is not there")
    where, machine = environment(threads), quiet.Machine.here()
    payload = {"runtime": runtime_name, "path": str(path.resolve()), "threads": threads, "root": os.getpid()}
    found: list[dict[str, Any]] = [
        child_process.call("pocketfit.measurement.memory:load_and_run", payload) for _ in range(processes)
    ]
    loads = [Load(**one["load"]) for one in found]
    where |= {"load": [each.to_json() for each in loads]}
    if why := quiet.sentences([quiet.of_load(each, machine) for each in loads], machine):
        where["disturbed"] = list(why)
    measurements = {
        "cold_start_ms": _median("cold_start_ms", "ms", [one["cold_start_ms"] for one in found], where, how)
    }
    for name in ("memory_bytes", "memory_gross_bytes"):
        values = [one[name] for one in found]
        if any(value is None for value in values):
            reason = "this system does not tell a process its peak resident memory (Linux does, in /proc/self/status)"
            measurements[name] = Measurement.not_possible(name, "B", reason)
        else:
            measurements[name] = _median(name, "B", values, where, how)
    return measurements


def load_and_run(*, runtime: str, path: str, threads: int, root: int) -> dict[str, Any]:
    """In a fresh process: load and run a file, and return time in ms, memory in bytes, and what else ran meanwhile.
    `root`: see load.snapshot."""
    module, file = runtimes.get(runtime), Path(path)
    importlib.import_module(module.LIBRARY)
    with local.pin(threads):
        earlier = load.snapshot(root)
        before = _resident_bytes("VmRSS")
        peak_is_reset = _reset_peak()
        start = time.perf_counter_ns()
        loaded = module.load(file, threads=threads)
        loaded_ns = time.perf_counter_ns() - start
        inputs = random_inputs(loaded.signature, seed=0)
        start = time.perf_counter_ns()
        loaded.run(inputs)
        cold_start_ms = (loaded_ns + time.perf_counter_ns() - start) / 1e6
        for _ in range(WARM_RUNS):
            loaded.run(inputs)
        peak = _resident_bytes("VmHWM")
        ran = load.between(earlier, load.snapshot(root))
        loaded.close()
    net = None
    if before is not None and peak is not None and peak_is_reset:
        net = float(max(0, peak - before - sum(value.nbytes for value in inputs.values())))
    return {
        "cold_start_ms": cold_start_ms,
        "memory_bytes": net,
        "memory_gross_bytes": peak,
        "load": asdict(ran),
    }


def _reset_peak() -> bool:
    """Reset VmHWM to the present value. (getrusage's peak can't be reset, and begins with the parent process's.)"""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def _resident_bytes(field: str) -> int | None:
    if not STATUS.exists():
        return None
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _median(name: str, unit: str, values: list[float], where: dict[str, Any], how: str) -> Measurement:
    return Measurement(
        quantity=name,
        unit=unit,
        value=statistics.median(values),
        n=len(values),
        low=min(values),
        high=max(values),
        how="estimated" if how == "estimated" else "measured",
        reason="taken with eager PyTorch, which is not what ships" if how == "estimated" else "",
        samples=tuple(values),
        environment=where if name == "cold_start_ms" else {"threads": where["threads"]},
    )
