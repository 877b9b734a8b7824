"""The time that each operator of an .xml file takes."""

from __future__ import annotations

import statistics
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pocketfit.core.artifact import OpCost, OpInfo
from pocketfit.core.runtime import Arrays
from pocketfit.core.support.loading import require
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.formats import openvino_read
from pocketfit.processes import child_process
from pocketfit.runtimes.openvino.session import EXTRA, compiled_model


def profile(path: Path, inputs: Arrays, *, threads: int = 1, runs: int = 30) -> list[OpCost]:
    """Median time of every operator over `runs` runs, by OpenVINO's own counters, in a child process.

    `index` is the operator's in `inspect(path).ops`, or -1 for what OpenVINO inserted. An operator that was fused with
    others stands for all of them.
    """
    require("openvino", EXTRA)
    ops, before = openvino_read.contents(path).ops, openvino_read.producers(path)
    names = {op.name: op for op in ops}
    with temporary_folder() as folder:
        archive = Path(folder, "inputs.npz")
        np.savez(archive, allow_pickle=False, **inputs)
        payload = {"path": str(path), "inputs": str(archive), "threads": threads, "runs": runs}
        found = child_process.call("pocketfit.runtimes.openvino.profile:times", payload)
    ran = {names[name].index for node in found for name in node["made_of"] if name in names}
    costs = []
    for node in found:
        known = [names[name] for name in node["made_of"] if name in names]
        op = max(known, key=lambda one: (one.macs, -one.index), default=None)
        if op is not None and not op.macs:
            op = _product_before(op, ops, before, ran)
        median_us = float(statistics.median(node["times_us"]))
        index, name = (-1, node["name"]) if op is None else (op.index, op.name)
        costs.append(OpCost(index, name, node["type"], median_us, node["ran_on"]))
    return costs


def _product_before(op: OpInfo, ops: Sequence[OpInfo], before: Mapping[int, int], ran: Container[int]) -> OpInfo:
    """The product that ran under this operator's name: a sum with a bias gives its own to what it was fused with."""
    step = before.get(op.index)
    while step is not None and step not in ran:
        if ops[step].macs:
            return ops[step]
        step = before.get(step)
    return op


def times(path: str, inputs: str, threads: int, runs: int) -> list[dict[str, Any]]:
    """In the child: name, type, kernel, times and the file's operators of each one that ran."""
    compiled = compiled_model(Path(path), threads, PERF_COUNT=True)
    made_of = {
        node.get_friendly_name(): str(node.get_rt_info()["originalLayersNames"].astype(str)).split(",")
        for node in compiled.get_runtime_model().get_ordered_ops()
        if "originalLayersNames" in node.get_rt_info()
    }
    request = compiled.create_infer_request()
    with np.load(inputs, allow_pickle=False) as archive:
        given = {name: archive[name] for name in archive.files}
    found: dict[str, dict[str, Any]] = {}
    for run in range(runs + 2):
        request.infer(given)
        for node in request.get_profiling_info():
            if run < 2 or "EXECUTED" not in str(node.status):
                continue
            name = node.node_name
            told = {"name": name, "type": node.node_type, "ran_on": node.exec_type, "times_us": []}
            told["made_of"] = made_of.get(name, [name])
            found.setdefault(name, told)["times_us"].append(node.real_time.total_seconds() * 1e6)
    return list(found.values())
