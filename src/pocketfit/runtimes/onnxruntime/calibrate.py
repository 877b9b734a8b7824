"""The child process of ONNX Runtime's calibration: prepare the float file, and sum up what its tensors hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import ExportFailed
from pocketfit.core.support.cpus import usable
from pocketfit.numerics import quantization_ranges
from pocketfit.runtimes.onnxruntime import integer_forms
from pocketfit.runtimes.onnxruntime.convert import open_session

BATCH = 8  # samples at a time: all tensors of MobileNetV2 together take 27 MB a sample


def prepare(source: str, path: str) -> None:
    """ONNX Runtime's own preparation (shapes, fusions) and our integer forms: the file whose tensors are calibrated and
    quantized."""
    import onnx
    from onnxruntime.quantization import quant_pre_process

    quant_pre_process(source, path, skip_symbolic_shape=True)
    model = onnx.load(path)
    integer_forms.prepare(model)
    onnx.save(model, path)


def gather(source: str, samples: str, target: str, histograms: bool) -> None:
    """Run a prepared file on samples and write a Summary of every float tensor, with quantization_ranges.save.

    samples: an .npz file, by input name [n, ...].
    """
    given = _columns(samples)
    names, session = _with_all_tensors(source)
    observers = {tensor: quantization_ranges.Observer() for tensor in names}
    for found in _run(session, names, given):
        for tensor, result in found.items():
            observers[tensor].look(result)
    if histograms:
        for found in _run(session, names, given):
            for tensor, result in found.items():
                observers[tensor].count(result)
    quantization_ranges.save({tensor: observer.summary() for tensor, observer in observers.items()}, Path(target))


def fingerprints(source: str, samples: str, target: str) -> None:
    """Run a float file on a few samples and write, for each float tensor, [size, mean, std, min, max] over all of them
    as JSON: {name: [...]}. `samples`: as for `gather`."""
    names, session = _with_all_tensors(source)
    parts: dict[str, list[NDArray[np.float32]]] = {tensor: [] for tensor in names}
    for found in _run(session, names, _columns(samples)):
        for tensor, result in found.items():
            parts[tensor].append(result.ravel())
    Path(target).write_text(
        json.dumps({tensor: quantization_ranges.fingerprint(np.concatenate(given)) for tensor, given in parts.items()})
    )


def _with_all_tensors(source: str) -> tuple[list[str], Any]:
    """The float tensors that the file computes or is given, and a session that has them all as outputs.

    Nothing is fused, as in ONNX Runtime's own calibrators: each tensor is what the file says.
    """
    import onnx
    import onnxruntime

    model = onnx.shape_inference.infer_shapes(onnx.load(source))
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    given = {value.name: value for value in graph.input if value.name not in stored}
    known = {value.name: value for value in (*graph.value_info, *graph.output, *given.values())}
    made = [name for node in graph.node for name in node.output if node.op_type != "Constant"]
    floats = [n for n in (*given, *made) if _elem_type(known.get(n)) == onnx.TensorProto.FLOAT]
    ends = {value.name for value in graph.output} | set(given)
    graph.output.extend(known[name] for name in floats if name not in ends)
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    threads = usable()
    return floats, open_session(model.SerializeToString(), graph_optimization_level=level, intra_op_num_threads=threads)


def _elem_type(value: Any) -> int:
    return int(value.type.tensor_type.elem_type) if value is not None else 0


def _columns(samples: str) -> dict[str, NDArray[Any]]:
    with np.load(samples, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _run(session: Any, names: list[str], given: dict[str, NDArray[Any]]) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The tensors of each batch, by name; the first axis counts samples, where a tensor keeps it."""
    own = [value.name for value in session.get_inputs()]
    if sorted(own) != sorted(given):
        raise ExportFailed(f"The samples are for the inputs {', '.join(given)}, the file has {', '.join(own)}")
    computed = [name for name in names if name not in given]
    for start in range(0, len(next(iter(given.values()))), BATCH):
        batch = {name: np.ascontiguousarray(values[start : start + BATCH]) for name, values in given.items()}
        results = [np.atleast_1d(result) for result in session.run(computed, batch)]
        floats = {name: values for name, values in batch.items() if name in names}
        yield {**floats, **dict(zip(computed, results, strict=True))}
