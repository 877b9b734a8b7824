"""The time that each kernel of an .onnx file takes."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import numpy as np

from pocketfit.core.artifact import OpCost
from pocketfit.core.runtime import Arrays
from pocketfit.core.support.loading import require
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.formats import onnx_read
from pocketfit.processes import child_process
from pocketfit.runtimes.onnxruntime.session import EXTRA

CONVERT = "pocketfit.runtimes.onnxruntime.convert"


def profile(path: Path, inputs: Arrays, *, threads: int = 1, runs: int = 30) -> list[OpCost]:
    """Median time of every kernel over `runs` runs, by ONNX Runtime's own profiler, in a child process.

    `index` is the operator's in `inspect(path).ops`, or -1 for kernels that ONNX Runtime inserted (layout changes).
    """
    require("onnxruntime", EXTRA)
    contents, kernels = onnx_read.contents(path), onnx_read.op_of_kernel(path)
    with temporary_folder() as folder:
        archive = Path(folder, "inputs.npz")
        np.savez(archive, allow_pickle=False, **inputs)
        payload = {"path": str(path), "inputs": str(archive), "folder": folder, "threads": threads, "runs": runs}
        nodes = child_process.call(f"{CONVERT}:profile", payload)
    costs = []
    for node in nodes:
        kernel = re.sub(r"^fused |_token_\d+$", "", node["name"])  # added to operators that were fused with others
        index = kernels.get(kernel, -1)
        name = contents.ops[index].name if index >= 0 else kernel
        time_us = float(statistics.median(node["times_us"]))
        costs.append(OpCost(index, name, node["type"], time_us, f"{node['provider']} {node['type']}"))
    return costs
