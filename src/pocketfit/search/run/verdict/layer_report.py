"""The per-layer table of the chosen file: each layer before and after, its cost, and the reason for both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketfit import runtimes
from pocketfit.analysis.layer_table import LayerRow, layer_table
from pocketfit.core.artifact import Contents, OpInfo
from pocketfit.core.errors import PocketfitError
from pocketfit.core.plan.plan import Plan
from pocketfit.core.support.progress import Watch
from pocketfit.core.trial import Trial
from pocketfit.measurement.latency import random_inputs
from pocketfit.search.run.apply_passes import carried_out
from pocketfit.search.run.job import Job

PROFILE_RUNS = 20


def layers_line(job: Job, chosen: Trial, baseline: Trial, watch: Watch) -> dict[str, Any]:
    """The journal's "layers" line. Where a runtime cannot say per-operator times, `not_possible` says why."""
    assert chosen.artifact is not None and baseline.artifact is not None
    watch.step("per-layer table")
    pruned = {row.name: row for row in layer_table(carried_out(job, chosen.plan, watch))}
    before = [row for row in job.layers if row.macs]  # convolutions and linear layers: the others are fused into them
    sides, reasons = {}, []
    for side, trial in (("before", baseline), ("after", chosen)):
        assert trial.artifact is not None
        contents, times, reason = _deployed(trial.runtime, job.out / trial.artifact.path, job.threads)
        sides[side] = _by_layer(contents, times, before)
        reasons += [reason] if reason else []
    rows = [_row(old, pruned[old.name], sides, chosen.plan) for old in before]
    return {"kind": "layers", "trial": chosen.number, "rows": rows, "not_possible": list(dict.fromkeys(reasons))}


def layer_times(job: Job, trial: Trial) -> tuple[dict[str, float], str]:
    """(microseconds that a trial's file takes for each layer whose operators are known, by dotted name; ""), or ({},
    the reason) where the runtime cannot say."""
    assert trial.artifact is not None
    layers = [row for row in job.layers if row.macs]
    contents, times, reason = _deployed(trial.runtime, job.out / trial.artifact.path, job.threads)
    known = {name: _sum(ops) for name, ops in _by_layer(contents, times, layers).items()}
    return {name: time_us for name, time_us in known.items() if time_us is not None}, reason


def _deployed(runtime: str, path: Path, threads: int) -> tuple[Contents, dict[int, tuple[float, str]], str]:
    """(contents of the file, median time and kernel of each operator by its index, the reason where there are none)."""
    module = runtimes.get(runtime)
    contents = module.inspect(path)
    session = module.load(path, threads=threads)
    inputs = random_inputs(session.signature, 0)
    session.close()
    try:
        costs = module.profile(path, inputs, threads=threads, runs=PROFILE_RUNS)
    except PocketfitError as error:
        return contents, {}, f"per-operator times: {error}"
    times: dict[int, tuple[float, str]] = {}
    for cost in costs:
        known = times.get(cost.index, (0.0, cost.ran_on))
        times[cost.index] = (known[0] + cost.time_us, known[1])
    return contents, times, ""


def _by_layer(
    contents: Contents, times: Mapping[int, tuple[float, str]], layers: Sequence[LayerRow]
) -> dict[str, list[tuple[OpInfo, float | None, str]]]:
    """Operators with weights by the dotted name of their layer: matched by the name in the file, else by order, which
    is sound only where there are as many operators as layers."""
    weighted = [op for op in contents.ops if op.weight_dtype and op.macs > 0]
    named: dict[str, list[tuple[OpInfo, float | None, str]]] = defaultdict(list)
    in_order = len(weighted) == len(layers)
    for position, op in enumerate(weighted):
        layer = op.layer or (layers[position].name if in_order else "")
        time_us, ran_on = times.get(op.index, (None, ""))
        named[layer].append((op, time_us, ran_on))
    return named


def _row(old: LayerRow, new: LayerRow, sides: Mapping[str, Mapping[str, Any]], plan: Plan) -> dict[str, Any]:
    was, now = sides["before"].get(old.name, []), sides["after"].get(old.name, [])
    dtype = _dtype(now[0][0]) if now else ""
    return {
        "name": old.name,
        "type": old.type,
        "macs_before": old.macs,
        "macs": new.macs,
        "bytes_before": sum(op.weight_bytes for op, _, _ in was) if was else old.size_bytes,
        "bytes": sum(op.weight_bytes for op, _, _ in now) if now else None,
        "channels_before": old.output_shape[0] if old.output_shape else None,
        "channels": new.output_shape[0] if new.output_shape else None,
        "dtype": dtype,
        "time_us_before": _sum(was),
        "time_us": _sum(now),
        "ran_on": now[0][2] if now else "",
        "why": _why(old, new, dtype, plan),
    }


def _dtype(op: OpInfo) -> str:
    return op.weight_dtype if op.compute_dtype in ("", op.weight_dtype) else f"{op.weight_dtype} × {op.compute_dtype}"


def _sum(ops: Sequence[tuple[OpInfo, float | None, str]]) -> float | None:
    known = [time_us for _, time_us, _ in ops if time_us is not None]
    return sum(known) if known else None


def _why(old: LayerRow, new: LayerRow, dtype: str, plan: Plan) -> str:
    reasons = []
    if old.output_shape and new.output_shape and new.output_shape[0] < old.output_shape[0]:
        reasons.append(f"{1 - new.output_shape[0] / old.output_shape[0]:.0%} of its channels pruned")
    elif new.params < old.params:
        reasons.append("reads fewer channels")
    if old.name in plan.export.keep_float:
        reasons.append("kept in float by the plan")
    elif plan.export.precision == "int8" and dtype.startswith("float"):
        reasons.append("left in float by the runtime's quantizer")
    return ", ".join(reasons)
