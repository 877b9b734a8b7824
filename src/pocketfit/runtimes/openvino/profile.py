"""The time that each operator of an .xml file takes."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from pocketfit.core.artifact import OpCost
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
    index = {op.name: op.index for op in openvino_read.contents(path).ops}
    with temporary_folder() as folder:
        archive = Path(folder, "inputs.npz")
        np.savez(archive, allow_pickle=False, **inputs)
        payload = {"path": str(path), "inputs": str(archive), "threads": threads, "runs": runs}
        found = child_process.call("pocketfit.runtimes.openvino.profile:times", payload)
    costs = []
    for node in found:
        name, median_us = node["name"], float(statistics.median(node["times_us"]))
        costs.append(OpCost(index.get(name, -1), name, node["type"], median_us, node["ran_on"]))
    return costs


def times(path: str, inputs: str, threads: int, runs: int) -> list[dict[str, Any]]:
    """In the child: name, type, kernel and times of each operator that ran."""
    request = compiled_model(Path(path), threads, PERF_COUNT=True).create_infer_request()
    with np.load(inputs, allow_pickle=False) as archive:
        given = {name: archive[name] for name in archive.files}
    found: dict[str, dict[str, Any]] = {}
    for run in range(runs + 2):
        request.infer(given)
        for node in request.get_profiling_info():
            if run < 2 or "EXECUTED" not in str(node.status):
                continue
            told = {"name": node.node_name, "type": node.node_type, "ran_on": node.exec_type, "times_us": []}
            found.setdefault(node.node_name, told)["times_us"].append(node.real_time.total_seconds() * 1e6)
    return list(found.values())
