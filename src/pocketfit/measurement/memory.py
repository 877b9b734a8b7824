"""Cold start of a file, and memory of a process that loads and runs it."""

from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pocketfit import runtimes
from pocketfit.core.errors import UserError
from pocketfit.core.measurement import Measurement
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.core.support.progress import Tick
from pocketfit.devices import load, local
from pocketfit.devices.load import Load
from pocketfit.measurement import quiet
from pocketfit.measurement.environment import environment
from pocketfit.measurement.latency import random_inputs
from pocketfit.processes import child_process

PROCESSES = 3
MEMORIES = (  # see footprint
    *("memory_bytes", "memory_gross_bytes"),
    *("memory_runtime_bytes", "memory_weights_bytes", "memory_activations_bytes", "memory_mapped_bytes"),
)
Size = tuple[int, ...]  # of an input, without the batch
WARM_RUNS = 3  # some runtimes allocate part of their memory in the second run only
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # man 5 proc: "reset the peak resident set size"


def footprint(
    runtime_name: str, path: Path, *, threads: int = 1, processes: int = PROCESSES, size: Size | None = None
) -> dict[str, Measurement]:
    """Cold start and peak memory of one file, the median of several fresh processes.

    size  of the input without the batch, such as (3, 48, 320), for a file whose axes are dynamic

    cold_start_ms       loading the file and running it once, the runtime's library being imported already
    memory_bytes        peak resident memory while loading and running, less what was resident just before and less the
                        inputs: what the network adds to a process that has the runtime in it
    memory_gross_bytes  peak resident memory of the whole process, interpreter and libraries included

    and the parts:
    memory_runtime_bytes      resident before the file is loaded: the interpreter and the runtime's library
    memory_weights_bytes      what is resident more once it is loaded: weights in the form that the runtime keeps them,
                              the code of kernels, and what loading freed but the process did not give back
    memory_activations_bytes  the peak of running above that, less the inputs; it reuses what loading freed
    memory_mapped_bytes       of the network's: pages that belong to files (code of kernels, weights that the runtime
                              maps), which the system can drop and read again

    low and high are the smallest and the largest of the processes. Where the system doesn't state a process's peak
    (only Linux does, in /proc), the memory quantities are "not_possible_here". Other work slows down a cold start
    but does not change this process's memory, so only cold_start_ms says what ran beside it (Measurement.disturbed).
    Raises UserError for a file that is not there, and for a size that does not fit its input.
    """
    how = runtimes.get(runtime_name).HOW
    if not path.is_file():
        raise UserError(f"The file '{path}' is not there")
    where, machine = environment(threads), quiet.Machine.here()
    payload = {
        "runtime": runtime_name,
        "path": str(path.resolve()),
        "threads": threads,
        "root": os.getpid(),
        "size": None if size is None else list(size),
    }
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
    for name in MEMORIES:
        values = [one[name] for one in found]
        if any(value is None for value in values):
            reason = "this system does not tell a process its peak resident memory (Linux does, in /proc/self/status)"
            measurements[name] = Measurement.not_possible(name, "B", reason)
        else:
            measurements[name] = _median(name, "B", values, where, how)
    return measurements


def over_sizes(
    runtime_name: str,
    path: Path,
    sizes: Sequence[Size],
    *,
    threads: int = 1,
    processes: int = PROCESSES,
    progress: Tick | None = None,
) -> list[tuple[Size, dict[str, Measurement]]]:
    """The footprint of a file with dynamic axes at several sizes of its input, each in fresh processes."""
    rows = []
    for done, size in enumerate(sizes):
        if progress is not None:
            progress(done, len(sizes))
        rows.append((size, footprint(runtime_name, path, threads=threads, processes=processes, size=size)))
    return rows


def at_size(signature: Signature, size: Size, name: str) -> Signature:
    """The signature with its one input at this size (without the batch). Raises UserError where it does not fit; `name`
    is the file's, for the sentence.

    >>> from pocketfit.core.signature import TensorSpec
    >>> at_size(Signature((TensorSpec("x", (None, 3, None)),), ()), (3, 8), "a.onnx").inputs[0].shape
    (None, 3, 8)
    """
    if len(signature.inputs) != 1:
        raise UserError(f"'{name}' has {len(signature.inputs)} inputs; a size can be given to files with one")
    (spec,) = signature.inputs
    own = spec.shape[1:]
    if len(own) != len(size) or any(fixed not in (None, given) for fixed, given in zip(own, size, strict=False)):
        takes = " x ".join("any" if each is None else str(each) for each in own)
        given = " x ".join(str(each) for each in size)
        raise UserError(f"The input of '{name}' is {takes}, and {given} does not fit that")
    return replace(signature, inputs=(replace(spec, shape=(spec.shape[0], *size)),))


def load_and_run(*, runtime: str, path: str, threads: int, root: int, size: list[int] | None = None) -> dict[str, Any]:
    """In a fresh process: load and run a file, and return time in ms, memory in bytes, and what else ran meanwhile.
    `root`: see load.snapshot."""
    module, file = runtimes.get(runtime), Path(path)
    importlib.import_module(module.LIBRARY)
    random_inputs(Signature((TensorSpec("", (1,)),), ()), seed=0)  # its library is no part of the network
    with local.pin(threads):
        earlier = load.snapshot(root)
        before, mapped_before = _resident_bytes("VmRSS"), _resident_bytes("RssFile")
        peak_is_reset = _reset_peak()
        start = time.perf_counter_ns()
        loaded = module.load(file, threads=threads)
        loaded_ns = time.perf_counter_ns() - start
        after, loading_peak = _resident_bytes("VmRSS"), _resident_bytes("VmHWM")
        signature = loaded.signature if size is None else at_size(loaded.signature, tuple(size), file.name)
        peak_is_reset = peak_is_reset and _reset_peak()
        inputs = random_inputs(signature, seed=0)
        start = time.perf_counter_ns()
        loaded.run(inputs)
        cold_start_ms = (loaded_ns + time.perf_counter_ns() - start) / 1e6
        for _ in range(WARM_RUNS):
            loaded.run(inputs)
        running_peak, mapped = _resident_bytes("VmHWM"), _resident_bytes("RssFile")
        ran = load.between(earlier, load.snapshot(root))
        loaded.close()
    parts: dict[str, float | None] = dict.fromkeys(MEMORIES)
    if None not in (before, after, loading_peak, running_peak) and peak_is_reset:
        assert before is not None and after is not None and loading_peak is not None and running_peak is not None
        given = sum(value.nbytes for value in inputs.values())
        parts["memory_bytes"] = float(max(0, loading_peak - before, running_peak - before - given))
        parts["memory_gross_bytes"] = float(max(loading_peak, running_peak))
        parts["memory_runtime_bytes"] = float(before)
        parts["memory_weights_bytes"] = float(max(0, after - before))
        parts["memory_activations_bytes"] = float(max(0, running_peak - after - given))
    if mapped_before is not None and mapped is not None:
        parts["memory_mapped_bytes"] = float(max(0, mapped - mapped_before))
    return {"cold_start_ms": cold_start_ms, **parts, "load": asdict(ran)}


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
