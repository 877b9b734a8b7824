"""What the ONNX Runtime export runs in its child process: convert, quantize, finish the file's ends.

Only `to_onnx` imports torch, so that the quantizing child starts quickly.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pocketfit.core.errors import ExportFailed, UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto
    from torch import fx
    from torch.export import ExportedProgram

CALIBRATION_BATCH = 16
# The largest difference allowed between torch and ONNX Runtime, in parts of the largest output: they sum in
# different orders, which costs about 1e-6 a layer.
TOLERANCE = 1e-3
CONVOLUTIONS = ("Conv", "ConvTranspose")


def to_onnx(traced: str, path: str, input_names: Sequence[str], output_names: Sequence[str]) -> None:
    """Convert torch.export's file to one ONNX file with dynamic batch, and check it against the torch network.

    Initializers keep their dotted torch names, nodes are called "<layer>/<operator>"; where a weight was folded into
    a nameless constant it is called "<layer>.weight" again.
    """
    import onnx
    import torch

    program = torch.export.load(traced)
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(input_names),
            output_names=list(output_names),
            optimize=True,
            verbose=False,
        )
    except Exception as error:  # the exporter's errors are as many as its operators
        raise ExportFailed(_conversion_error(program, error)) from error
    assert converted is not None
    model = converted.model_proto
    name_by_layer(model)
    strip_debugging(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    _check_against_torch(program, path, len(input_names))


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


def name_by_layer(model: ModelProto) -> None:
    """Call nodes "<layer>/<operator>", with "_2", "_3" where that is taken, from what the exporter noted of them."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    taken: Counter[str] = Counter()
    for node in model.graph.node:
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
        names = re.findall(r"'([^']*)'", scopes)
        layer = names[-2] if len(names) > 1 else ""
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


def _check_against_torch(program: ExportedProgram, path: str, n_inputs: int) -> None:
    """Random inputs, a batch of 3 (the network was traced with 2)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    specs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"][-n_inputs:]
    shapes = [[size if isinstance(size, int) else 3 for size in spec.shape] for spec in specs]
    values = [torch.randn(*shape, generator=generator) for shape in shapes]
    with torch.no_grad():
        wanted = program.module()(*values)
    first = (wanted[0] if isinstance(wanted, tuple | list) else wanted).numpy()
    session = _session(path)
    feed = {spec.name: value.numpy() for spec, value in zip(session.get_inputs(), values, strict=True)}
    got = session.run(None, feed)[0]
    worst = float(np.abs(got - first).max() / max(float(np.abs(first).max()), 1e-6))
    if not worst <= TOLERANCE:
        raise ExportFailed(f"The ONNX file answers differently from the torch network: off by {worst:.2g} of its range")


def _session(path: str, **settings: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def make(
    source: str, path: str, settings: Mapping[str, Any], layout: str, *, calibration: str, reduce_range: bool
) -> None:
    """Turn the float32 file `source` into the file that the export settings ask for.

    `layout`: of the picture input in `source` ("NCHW", or "" where it is no picture); `calibration`: a .npy of float32
    inputs, "" where none are needed.
    """
    import onnx

    precision = settings["precision"]
    float_nodes = nodes_of_layers(onnx.load(source), settings["keep_float"])
    if precision == "float16":
        _float16(source, path, float_nodes)
    elif precision == "dynamic-int8":
        _dynamic(source, path, float_nodes)
    elif precision == "int8":
        _static(source, path, settings["activations"], float_nodes, calibration=calibration, reduce_range=reduce_range)
    else:
        onnx.save(onnx.load(source), path)
    model = onnx.load(path)
    if precision == "int8":
        shield(model, float_nodes)
    if settings["io"] != "float32":
        integer_ends(model)
    if settings["layout"] == "NHWC" and layout == "NCHW":
        channels_last_input(model)
        layout = "NHWC"
    _set_metadata(model, {"pocketfit.layout": layout})
    model.producer_name, model.producer_version = "pocketfit", ""
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    onnx.save(model, path)


def nodes_of_layers(model: ModelProto, layers: Sequence[str]) -> list[str]:
    """Names of the nodes whose weight is "<layer>.weight"; a layer without one is UserError."""
    users: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            if name.endswith(".weight"):
                users.setdefault(name.removesuffix(".weight"), []).append(node.name)
    for layer in layers:
        if layer not in users:
            near = difflib.get_close_matches(layer, users, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"the first of them is '{next(iter(users), '')}'"
            raise UserError(f"No layer with weights is called '{layer}', so it cannot stay in float32: {hint}")
    return [name for layer in layers for name in users[layer]]


def _float16(source: str, path: str, float_nodes: Sequence[str]) -> None:
    """Store matrices and kernels as float16: weight [float16] -> Cast -> Conv [float32].

    ONNX Runtime carries out the Cast while loading, so that the file computes and costs what the float32 one does;
    a graph converted to float16 throughout gets a Cast around every operator, as x86 has no float16 kernels.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    graph = model.graph
    kept = {name for node in graph.node if node.name in float_nodes for name in node.input}
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or tensor.name in kept:
            continue
        name, wide = tensor.name, f"{tensor.name}_float32"
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise ExportFailed(f"'{name}' holds values beyond 65504, the largest that float16 can store")
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name))
        casts.append(helper.make_node("Cast", [name], [wide], f"{name}/Cast", to=TensorProto.FLOAT))
        for node in graph.node:
            node.input[:] = [wide if given == name else given for given in node.input]
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)


def _dynamic(source: str, path: str, float_nodes: Sequence[str]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # ONNX Runtime's CPU kernel of ConvInteger takes uint8 weights only.
    quantize_dynamic(source, path, weight_type=QuantType.QUInt8, nodes_to_exclude=list(float_nodes))


def _static(
    source: str, path: str, activations: str, float_nodes: Sequence[str], *, calibration: str, reduce_range: bool
) -> None:
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    prepared = f"{path}.prepared"
    try:
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            _Reader(np.load(calibration, mmap_mode="r", allow_pickle=False), prepared),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8 if activations == "int8" else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=reduce_range,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=list(float_nodes),
        )
    finally:
        Path(prepared).unlink(missing_ok=True)


def shield(model: ModelProto, float_nodes: Sequence[str]) -> None:
    """Conv -> QuantizeLinear  becomes  Conv -> LeakyRelu(alpha=1) -> QuantizeLinear  for layers that stay in float.

    ONNX Runtime (its WeightBiasQuantization step) quantizes the float weights of a layer that stands between
    DequantizeLinear and QuantizeLinear while it loads the file, per tensor. A leaky ReLU of slope 1 changes no value,
    stands in the way, and is fused into the float kernel.
    """
    from onnx import helper

    graph = model.graph
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.name in float_nodes:
            inner, outer = f"{node.output[0]}_float", node.output[0]
            node.output[0] = inner
            nodes.append(helper.make_node("LeakyRelu", [inner], [outer], f"{node.name}/shield", alpha=1.0))
    rebuilt = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(rebuilt)


class _Reader:
    """Calibration inputs, a batch at a time, as quantize_static asks for them."""

    def __init__(self, values: NDArray[np.float32], path: str) -> None:
        import onnx

        name = onnx.load(path, load_external_data=False).graph.input[0].name
        self._batches: Iterator[dict[str, NDArray[np.float32]]] = (
            {name: np.ascontiguousarray(values[start : start + CALIBRATION_BATCH])}
            for start in range(0, len(values), CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._batches, None)


def integer_ends(model: ModelProto) -> None:
    """image -> QuantizeLinear -> DequantizeLinear -> … -> QuantizeLinear -> DequantizeLinear -> logits
    becomes image -> DequantizeLinear -> … -> QuantizeLinear -> logits, with integer image and logits."""
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    first, last = graph.input[0], graph.output[0]
    readers = [node for node in graph.node if first.name in node.input]
    if len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
        raise ExportFailed(
            f"The file cannot take integers: what reads its input ({_names(readers)}) stays in float32; "
            "take the first layer out of keep_float, or ask for float32 inputs"
        )
    writers = [node for node in graph.node if last.name in node.output]
    if len(writers) != 1 or writers[0].op_type != "DequantizeLinear":
        raise ExportFailed(
            f"The file cannot give integers: what writes its output ({_names(writers)}) stays in float32; "
            "take the last layer out of keep_float, or ask for float32 outputs"
        )
    start, end = readers[0], writers[0]
    notes = {}
    for word, node, value in (("input", start, first), ("output", end, last)):
        zero_point = constants[node.input[2]]
        notes[f"pocketfit.{word}_scale"] = repr(float(numpy_helper.to_array(constants[node.input[1]])))
        notes[f"pocketfit.{word}_zero_point"] = str(int(numpy_helper.to_array(zero_point)))
        value.type.tensor_type.elem_type = zero_point.data_type
    for node in graph.node:  # image_quantized -> image, logits_quantized -> logits
        node.input[:] = [first.name if name == start.output[0] else name for name in node.input]
        inner = end.input[0]
        node.input[:] = [last.name if name == inner and node is not end else name for name in node.input]
        node.output[:] = [last.name if name == inner else name for name in node.output]
    graph.node.remove(start)
    graph.node.remove(end)
    _set_metadata(model, notes)


def channels_last_input(model: ModelProto) -> None:
    """image [N, C, H, W] -> …  becomes  image [N, H, W, C] -> Transpose -> …"""
    from onnx import helper

    graph = model.graph
    value = graph.input[0]
    inner = f"{value.name}_nchw"
    for node in graph.node:
        node.input[:] = [inner if name == value.name else name for name in node.input]
    sizes = value.type.tensor_type.shape.dim
    order = [type(size)() for size in sizes]
    for new, old in zip(order, (0, 2, 3, 1), strict=True):
        new.CopyFrom(sizes[old])
    del sizes[:]
    sizes.extend(order)
    graph.node.insert(0, helper.make_node("Transpose", [value.name], [inner], "layout/Transpose", perm=[0, 3, 1, 2]))


def _names(nodes: Sequence[NodeProto]) -> str:
    return ", ".join(node.name or node.op_type for node in nodes) or "nothing"


def _set_metadata(model: ModelProto, values: Mapping[str, str]) -> None:
    kept = {entry.key: entry.value for entry in model.metadata_props} | dict(values)
    del model.metadata_props[:]
    for key, value in sorted(kept.items()):
        model.metadata_props.add(key=key, value=value)


def unfused_convolutions(path: str, folder: str) -> dict[str, Any]:
    """How many convolutions ONNX Runtime runs with integer kernels, read from the graph that it optimized.

    -> {"integer": 37, "float": ["features.0.0/Conv", …]}
    """
    import onnx

    optimized = str(Path(folder, "optimized.onnx"))
    _session(path, optimized_model_filepath=optimized)
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
    session = _session(
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
