"""Child processes of the ONNX Runtime export: convert to the float32 file, list kernels and their times.

Calibration is in calibrate.py, quantization in quantize.py. Only `to_onnx` imports torch.
"""

from __future__ import annotations

import contextlib
import functools
import re
import types
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pocketfit.core.errors import ExportFailed
from pocketfit.core.signature import TensorSpec
from pocketfit.formats import onnx_read
from pocketfit.runtimes.common import agreement
from pocketfit.runtimes.onnxruntime import recurrent

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import fx
    from torch.export import ExportedProgram

LAYOUT, BATCH = "pocketfit.layout", "pocketfit.batch"  # layout of an image input; batch "1": right for single rows only
ROW_BY_ROW = (
    "The file is right for one sample at a time only: pocketfit runs the samples of a batch one after the other"
)
MATRICES = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CONVOLUTIONS = ("Conv", "ConvTranspose")


def preload() -> None:
    """Load what the children of a fork server share (processes/fork_server.py); not onnxruntime, which starts a thread.

    The exporter's table of operators takes 60 % of the conversion of a small network: torch 2.13 builds it from the
    source text of 500 functions. Here it is built once, instead of in every export.
    """
    import torch
    from torch.onnx._internal.exporter import _registration

    with contextlib.suppress(ImportError):  # torch's exporter shows its progress where tqdm is installed
        import tqdm

        tqdm.tqdm.monitor_interval = 0  # it would start a thread
    torch.set_num_threads(1)
    registry: Any = _registration.ONNXRegistry
    registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))
    example = torch.zeros(2, 2)
    program = torch.export.export(torch.nn.Linear(2, 2).eval(), (example,))
    torch.onnx.export(program, dynamo=True, verbose=False)


def to_onnx(traced: str, path: str, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> list[str]:
    """Convert torch.export's file to one ONNX file with dynamic batch, and check it against the torch network;
    -> sentences on how the network was changed.

    inputs, outputs: TensorSpec.to_json() of the network's signature.
    Initializers keep their dotted torch names, nodes are called "<layer>/<operator>"; where a weight was folded into
    a nameless constant it is called "<layer>.weight" again.
    """
    import onnx
    import torch

    program = torch.export.load(traced)
    given, wanted = [TensorSpec.from_json(s) for s in inputs], [TensorSpec.from_json(s) for s in outputs]
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[spec.name for spec in given],
            output_names=[spec.name for spec in wanted],
            optimize=True,
            verbose=False,
        )
    except Exception as error:  # the exporter's errors are as many as its operators
        raise ExportFailed(_conversion_error(program, error)) from error
    assert converted is not None
    model = converted.model_proto
    name_by_layer(model, _folded_into(program))
    recurrent.name_weights(model)
    strip_debugging(model)
    about = {LAYOUT: given[0].layout}
    onnx_read.set_metadata(model, about)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    names = [spec.name for spec in wanted]
    if agreement.any_batch(program.module(), runner(path), given, names, "The ONNX file"):
        return []
    onnx_read.set_metadata(model, {BATCH: "1"})
    onnx.save(model, path)
    return [agreement.ROW_BY_ROW]


def runner(path: str) -> agreement.Run:
    """A function that runs an .onnx file: arrays in the order of its inputs -> arrays in the order of its outputs."""
    session = open_session(path)

    def run(arrays: agreement.Arrays) -> agreement.Arrays:
        feed = {spec.name: np.ascontiguousarray(a) for spec, a in zip(session.get_inputs(), arrays, strict=True)}
        return list(session.run(None, feed))

    return run


def specs(path: str) -> list[TensorSpec]:
    """The inputs of an .onnx file, None for every size that it leaves open."""
    kinds = {"float": "float32", "double": "float64"}
    found = []
    for value in open_session(path).get_inputs():
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        shape = tuple(size if isinstance(size, int) else None for size in value.shape)
        found.append(TensorSpec(value.name, shape, kinds.get(kind, kind)))
    return found


def _conversion_error(program: ExportedProgram, error: BaseException) -> str:
    """The operator that the exporter could not convert, and the layer of the network that it came from."""
    text = str(error)
    found = re.search(r"Error when translating node %(\w+) .*?target=(?:torch\.ops\.)?([\w.]+)", text)
    if found is None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"torch.onnx could not convert the network: {lines[-1][:300] if lines else type(error).__name__}"
    layers = [layer for node in program.graph.nodes if node.name == found[1] for layer in _layers_around(node)]
    return f"torch.onnx has no form for the operator {found[2]}" + (f" of layer '{layers[-1]}'" if layers else "")


def _layers_around(node: fx.Node) -> list[str]:
    """Dotted names of the modules that the node was traced in, from the outermost."""
    return [name for name, _ in node.meta.get("nn_module_stack", {}).values() if name]


def _folded_into(program: ExportedProgram) -> dict[str, str]:
    """Batch norms -> the layers before them, which the exporter calls after the norm that it folds into them."""
    found = {}
    for node in program.graph.nodes:
        if "batch_norm" in str(node.target) and (here := _layers_around(node)):
            before = _layers_around(node.args[0])
            if before and len(node.args[0].users) == 1:
                found[here[-1]] = before[-1]
    return found


def name_by_layer(model: ModelProto, folded_into: Mapping[str, str] = types.MappingProxyType({})) -> None:
    """Rename nodes to "<layer>/<operator>", with "_2", "_3" where that is taken, by the exporter's notes on them.

    folded_into  batch norm -> the layer that it was folded into, whose name its nodes get where they have weights
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    taken: Counter[str] = Counter()
    for node in model.graph.node:
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
        names = re.findall(r"'([^']*)'", scopes)
        layer = names[-2] if len(names) > 1 else ""
        if node.op_type in MATRICES:
            layer = folded_into.get(layer, layer)
        base = f"{layer}/{node.op_type}" if layer else node.op_type
        taken[base] += 1
        node.name = base if taken[base] == 1 else f"{base}_{taken[base]}"
        weight = f"{layer}.weight"
        matrices = [name for name in node.input if name in constants and len(constants[name].dims) > 1]
        if layer and weight not in constants and len(matrices) == 1 and not matrices[0].startswith(f"{layer}."):
            _rename_constant(model, matrices[0], weight)
            constants = {tensor.name: tensor for tensor in model.graph.initializer}


def _rename_constant(model: ModelProto, old: str, new: str) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == old:
            tensor.name = new
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


def strip_debugging(model: ModelProto) -> None:
    """Remove stack traces and inferred shapes (they would ship paths of this machine); call the batch "batch"."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del holder.metadata_props[:]
    for holder in (model, graph, *graph.node):
        holder.doc_string = ""
    del graph.value_info[:]
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if batch and size.dim_param == batch:
                size.dim_param = "batch"


def open_session(path: str | bytes, **settings: Any) -> Any:
    """An InferenceSession of a file, or of its bytes, on one thread of the CPU, with `settings` of SessionOptions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def open_unoptimized(file: bytes) -> Any:
    """A session that computes each tensor as the file says."""
    import onnxruntime

    return open_session(file, graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)


def unfused_convolutions(path: str, folder: str) -> dict[str, Any]:
    """How many convolutions ONNX Runtime runs with integer kernels, read from the graph that it optimized.

    -> {"integer": 37, "float": ["features.0.0/Conv", …]}
    """
    import onnx

    optimized = str(Path(folder, "optimized.onnx"))
    open_session(path, optimized_model_filepath=optimized)
    nodes = onnx.load(optimized).graph.node
    integer = [n for n in nodes if n.op_type in ("QLinearConv", "ConvInteger", "QLinearConvTranspose")]
    return {"integer": len(integer), "float": [n.name for n in nodes if n.op_type in (*CONVOLUTIONS, "FusedConv")]}


def profile(path: str, inputs: str, folder: str, threads: int, runs: int) -> list[dict[str, Any]]:
    """Times of every node of the optimized graph in `runs` runs: ONNX Runtime's own profiler.

    -> [{"name", "type", "provider", "times_us"}], in the order in which they ran.
    """
    import json

    with np.load(inputs, allow_pickle=False) as archive:
        feed = {name: archive[name] for name in archive.files}
    session = open_session(
        path,
        intra_op_num_threads=threads,
        enable_profiling=True,
        profile_file_prefix=str(Path(folder, "profile")),
    )
    warm_up = 3
    for _ in range(warm_up + runs):
        session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            about = event["args"]
            node = nodes.setdefault(
                str(about["node_index"]),
                {
                    "name": event["name"].removesuffix("_kernel_time"),
                    "type": about["op_name"],
                    "provider": about["provider"],
                    "times_us": [],
                },
            )
            node["times_us"].append(event["dur"])
    return [{**node, "times_us": node["times_us"][-runs:]} for node in nodes.values()]
