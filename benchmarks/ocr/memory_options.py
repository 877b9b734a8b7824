"""What ONNX Runtime's options do to the memory of one .onnx file, each in fresh processes.

    python -m benchmarks.ocr.memory_options FILE [FILE ...] [--processes 5]

FILE has fixed sizes (`benchmarks.ocr.measure` writes such a copy of the original). A row is the median of the
processes, in MB above a process that has loaded the runtime and a network of one operator: the peak, what loading left
resident, and the peak without pages that belong to files. `external` keeps weights in a file of its own, which ONNX
Runtime maps. The processes import neither torch nor pocketfit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import helper, numpy_helper

LARGE_BYTES = 1024  # smaller tensors stay in the .onnx file
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "no memory pattern (pocketfit's choice)": {"enable_mem_pattern": False},
    "no arena": {"enable_cpu_mem_arena": False},
    "no arena, no pattern": {"enable_cpu_mem_arena": False, "enable_mem_pattern": False},
    "no pattern, no prepacking": {"enable_mem_pattern": False, "entries": {"session.disable_prepacking": "1"}},
    "no pattern, malloc_trim after loading": {"enable_mem_pattern": False, "trim": True},
    "no pattern, malloc's mmap threshold 128 KiB": {"enable_mem_pattern": False, "mmap_threshold": 128 << 10},
    "no pattern, external": {"enable_mem_pattern": False, "external": True},
}
CHILD = """
import ctypes, json, re, sys
given = json.loads(sys.argv[1])
if "mmap_threshold" in given:
    assert ctypes.CDLL("libc.so.6").mallopt(-3, given["mmap_threshold"]) == 1  # M_MMAP_THRESHOLD
import numpy as np
import onnxruntime
def resident(field):
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
def opened(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for name in ("enable_mem_pattern", "enable_cpu_mem_arena"):
        setattr(options, name, given.get(name, True))
    for key, value in given.get("entries", {}).items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
def run(session):
    (spec,) = session.get_inputs()
    session.run(None, {spec.name: np.ones(spec.shape, np.float32)})
run(opened(given["tiny"]))
before, files = resident("VmRSS"), resident("RssFile")
open("/proc/self/clear_refs", "w").write("5")
session = opened(given["path"])
if given.get("trim"):
    ctypes.CDLL("libc.so.6").malloc_trim(0)
loaded = resident("VmRSS")
for _ in range(4):
    run(session)
peak = resident("VmHWM")
print(json.dumps([peak - before, loaded - before, peak - before - (resident("RssFile") - files), before]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--processes", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tiny = _tiny(Path(folder))
        for file in given.files:
            print(f"\n{file.name}\n")
            print("| options | peak | loaded | peak without files | alone |\n| --- | --- | --- | --- | --- |")
            for name, options in OPTIONS.items():
                path = _external(file, Path(folder)) if options.get("external") else file
                told = {**options, "path": str(path), "tiny": str(tiny)}
                found = [_in_child(told) for _ in range(given.processes)]
                medians = [statistics.median(values) / 1e6 for values in zip(*found, strict=True)]
                print(f"| {name} | {' | '.join(f'{value:.1f}' for value in medians)} |", flush=True)


def _in_child(told: Mapping[str, Any]) -> list[int]:
    done = subprocess.run([sys.executable, "-c", CHILD, json.dumps(told)], capture_output=True, text=True, check=True)
    numbers: list[int] = json.loads(done.stdout)
    return numbers


def _tiny(folder: Path) -> Path:
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tiny", infos[:1], infos[1:])
    path = folder / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def _external(file: Path, folder: Path) -> Path:
    """A copy whose large weights lie in a file beside it. Weights in Constant nodes, as Paddle has them, become
    initializers."""
    path = folder / file.name
    if path.exists():
        return path
    model = onnx.load(str(file))
    constants = [node for node in model.graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    for node in constants:
        array = numpy_helper.to_array(node.attribute[0].t)
        model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        model.graph.node.remove(node)
    onnx.save(
        model,
        str(path),
        save_as_external_data=True,
        location=f"{file.stem}.data",
        size_threshold=LARGE_BYTES,
    )
    return path


if __name__ == "__main__":
    main()
