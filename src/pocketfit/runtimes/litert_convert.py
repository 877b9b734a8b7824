"""What runs in the child processes of the LiteRT export: convert a traced network, then quantize the float file.

The converter's tensor names say nothing ("ChannelLastIOWrapper;;...;11"), so the float file is rewritten with names
from the network: the output of layer "features.0.0" is called that, its weight "features.0.0.weight". An operator's
layer is found by its constants: with batch norms folded, a layer's weight is in the file as in torch, transposed.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import ExportFailed
from pocketfit.runtimes.litert_file import WEIGHTED, TfliteFile, ints, read, text

Weights = dict[str, NDArray[np.float32]]
Ranges = dict[str, tuple[float, float]]  # by tensor: minimum and maximum
FLOAT16_SQNR_DB = 20.0  # the pretrained MobileNetV2 at 64 pixels has 39 dB; a wrongly converted file about none
LARGEST_RANGE = 1e30  # beyond it lie infinities and the largest float32, which stand for "no value"
KEPT_METADATA = ("min_runtime_version",)


def convert(source: str, target: str, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], layout: str) -> None:
    """A traced network (.pt2) -> the float32 .tflite at batch 1, tensors and signature named as in the network.

    inputs, outputs: TensorSpec.to_json() of the network's signature. `layout` "NHWC" turns the picture inputs and
    outputs to channels-last, which spares the runtime a transpose; "NCHW" leaves them.
    """
    import litert_torch
    import torch

    program = torch.export.load(source)
    network: Any = program.module()
    turned = [[i for i, spec in enumerate(side) if _is_picture(spec)] for side in (inputs, outputs)]
    if layout == "NHWC" and any(turned):
        network = litert_torch.to_channel_last_io(network, args=turned[0], outputs=turned[1])
    examples = []
    for spec in inputs:
        shape = [1 if size is None else size for size in spec["shape"]]
        if layout == "NHWC" and _is_picture(spec):
            shape = [shape[0], *shape[2:], shape[1]]
        examples.append(torch.zeros(shape, dtype=getattr(torch, spec["dtype"])))
    with torch.no_grad():
        litert_torch.convert(network, tuple(examples)).export(target)
    weights, order = _weights_of(program)
    rename(Path(target), weights, order, [s["name"] for s in inputs], [s["name"] for s in outputs])


def calibrate(source: str, samples: str, target: str) -> None:
    """Run the float32 file on samples and write the range of every tensor as JSON: {name: [min, max]}.

    samples: an .npz file, by input name float32 [n, ...] in the file's layout. ai-edge-quantizer's default is a moving
    average of each sample's range, which depends on the order and cuts off what is rare: on the pretrained MobileNetV2
    the plain minimum and maximum agree more often with the float network. Its profiler-based mode reads the ranges
    inside the C++ interpreter, 3 to 5 times as fast as keeping all tensors for Python, and finds the same ones.
    """
    from ai_edge_quantizer import calibrator, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    file = read(Path(source))
    signature = text(file.model.signatureDefs[0].signatureKey)
    with np.load(samples, allow_pickle=False) as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(columns.values())))
    rows = [{name: column[i : i + 1] for name, column in columns.items()} for i in range(count)]
    observer = calibrator.Calibrator(
        source,
        num_threads=os.cpu_count() or 1,
        mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
        qsv_update_func=qsv_utils.min_max_update,
    )
    observer.calibrate({signature: rows}, recipe_manager.RecipeManager())
    found = {n: (float(np.min(r["min"])), float(np.max(r["max"]))) for n, r in observer.get_model_qsvs().items()}
    Path(target).write_text(json.dumps(finite_ranges(file, found), sort_keys=True))


def finite_ranges(file: TfliteFile, ranges: Ranges) -> Ranges:
    """Padding with minus infinity, for max pooling, makes a range that has no scale: such a padding keeps the range of
    what it pads, in which its constant becomes the lowest integer. Any other endless range raises ExportFailed."""
    repaired = dict(ranges)
    for op in file.graph.operators:
        name = file.name(int(op.outputs[0]))
        if file.op_type(op) == "PADV2" and name in repaired and not _has_scale(repaired[name]):
            repaired[name] = repaired[file.name(int(op.inputs[0]))]
    for name, (low, high) in repaired.items():
        if not _has_scale((low, high)):
            raise ExportFailed(f"The values of '{name}' reach from {low:g} to {high:g} on the calibration samples")
    return repaired


def _has_scale(found: tuple[float, float]) -> bool:
    return all(abs(end) < LARGEST_RANGE for end in found)  # NaN is not below anything


def quantize(source: str, target: str, *, precision: str, kept: list[str], io: str, ranges: str) -> None:
    """The float32 file -> the file of another precision, with ai-edge-quantizer.

    kept    output tensors of the operators that stay in float32
    io      "float32", "int8" or "uint8" inputs and outputs (static int8)
    ranges  the file that `calibrate` wrote (static int8; else "")
    """
    from ai_edge_quantizer import quantizer

    tool = quantizer.Quantizer(source)
    _set_recipe(tool, precision, kept, io)
    statistics = None
    if precision == "int8":
        found = json.loads(Path(ranges).read_text())
        statistics = {name: {"min": np.array([low]), "max": np.array([high])} for name, (low, high) in found.items()}
    result = tool.quantize(statistics, enable_progress_report=False, enable_progress_bar=False)
    Path(target).write_bytes(bytes(result.quantized_model))
    _check_runs(source, target, FLOAT16_SQNR_DB if precision == "float16" else None)


def _set_recipe(tool: Any, precision: str, kept: list[str], io: str) -> None:
    from ai_edge_quantizer import algorithm_manager, qtyping

    every, algorithms = qtyping.TFLOperationName.ALL_SUPPORTED, algorithm_manager.AlgorithmName
    tensorwise, channelwise = qtyping.QuantGranularity.TENSORWISE, qtyping.QuantGranularity.CHANNELWISE
    if precision == "float16":
        half = qtyping.TensorQuantizationConfig(
            num_bits=16, symmetric=True, granularity=tensorwise, dtype=qtyping.TensorDataType.FLOAT
        )
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
        )
        tool.update_quantization_recipe(".*", every, config, algorithms.FLOAT_CASTING)
    elif precision == "dynamic-int8":
        tool.add_dynamic_config(".*", every, num_bits=8)
    else:
        tool.add_static_config(".*", every, activation_num_bits=8, weight_num_bits=8)
    for name in kept:  # an operator's scope is its output tensors' names, each with a semicolon behind it
        tool.update_quantization_recipe(f"^{re.escape(name)};", every, algorithm_key=algorithms.NO_QUANTIZE)
    if precision != "int8":
        return
    # Later rules win, and rules are ordered by their regex: this one must not be ".*" again, or the rule for a kept
    # last layer, whose scope is that of the graph's output, would decide the output's dtype.
    for side in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        if io == "float32":
            tool.update_quantization_recipe("", side, algorithm_key=algorithms.NO_QUANTIZE)
            continue
        kind = qtyping.TensorDataType.UINT if io == "uint8" else qtyping.TensorDataType.INT
        config = qtyping.OpQuantizationConfig(
            activation_tensor_config=qtyping.TensorQuantizationConfig(8, False, tensorwise, kind),
            weight_tensor_config=qtyping.TensorQuantizationConfig(8, True, channelwise),
            compute_precision=qtyping.ComputePrecision.INTEGER,
            explicit_dequantize=False,
        )
        tool.update_quantization_recipe("", side, config)


def _check_runs(source: str, target: str, least_sqnr_db: float | None) -> None:
    """Run a new file once, on noise: ExportFailed where its answers are not finite, or further than that from the
    float file's. (Interpreter raises by itself where a file does not load.)"""
    expected, got = _on_noise(source), _on_noise(target)
    if not all(np.isfinite(values).all() for values in got):
        raise ExportFailed("The quantized file answers noise with numbers that are not finite")
    for a, b in zip(expected, got, strict=True):
        if least_sqnr_db is not None and np.sum((a - b) ** 2) > np.sum(a**2) * 10 ** (-least_sqnr_db / 10):
            raise ExportFailed("The float16 file does not compute what the float32 file computes")


def _on_noise(path: str) -> list[NDArray[np.float64]]:
    from ai_edge_litert.interpreter import Interpreter

    session, noise = Interpreter(model_path=path), np.random.default_rng(0)
    session.allocate_tensors()
    for tensor in session.get_input_details():
        session.set_tensor(tensor["index"], noise.standard_normal(tensor["shape"]).astype(tensor["dtype"]))
    session.invoke()
    return [session.get_tensor(t["index"]).astype(np.float64) for t in session.get_output_details()]


def _is_picture(spec: dict[str, Any]) -> bool:
    return len(spec["shape"]) == 4 and spec["layout"] in ("NCHW", "")


def _weights_of(program: Any) -> tuple[Weights, list[str]]:
    """The weights of a traced network by layer name, and the layers in the order in which the network uses them."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    order: dict[str, None] = {}
    for node in program.graph.nodes:
        for used in node.all_input_nodes:
            if used.op == "placeholder" and used.name in names:
                order[names[used.name]] = None
    state = {**program.state_dict, **program.constants}
    arrays = {n: state[n].detach().float().numpy() for n in order if n in state and state[n].ndim >= 2}
    return {_layer_name(n): a for n, a in arrays.items()}, [_layer_name(n) for n in arrays]


def _layer_name(parameter: str) -> str:
    """ "features.0.0.weight" -> "features.0.0"."""
    return parameter.removesuffix(".weight")


def match_layers(file: TfliteFile, weights: Weights, order: list[str]) -> dict[int, str]:
    """{operator index: layer} by content; operators whose weight is no layer's, or several layers', are left out.

    Layers with one and the same weights are told apart by order where there are as many operators as layers.
    """
    matrices = {layer: _torch_matrices(weights[layer]) for layer in order}
    candidates: dict[int, tuple[str, ...]] = {}
    for index, op in enumerate(file.graph.operators):
        weight = file.weight(op)
        if weight is None or file.op_type(op) not in (*WEIGHTED, "BATCH_MATMUL"):
            continue
        stored = _file_matrix(file, op, weight)
        for alike in (_close, _proportional):
            found = tuple(name for name in order if any(alike(m, stored) for m in matrices[name]))
            if found:
                candidates[index] = found
                break
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, found in candidates.items():
        groups[found].append(index)
    matched = {}
    for found, indices in groups.items():
        if len(found) == 1:  # one layer, perhaps used several times
            matched.update(dict.fromkeys(indices, found[0]))
        elif len(found) == len(indices):
            matched.update(zip(indices, found, strict=True))
    return matched


def _torch_matrices(weight: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The matrices [outputs, taps x inputs] that a torch weight may have become, inputs last.

    [O, I, kh, kw] -> [O, kh*kw*I]; a transposed convolution's [I, O, kh, kw] -> the same; [O, I] -> itself, and [I, O].
    """
    if weight.ndim == 2:
        return [weight, weight.T]
    forward = np.moveaxis(weight, 1, -1)
    transposed = np.moveaxis(weight, 0, -1)
    return [m.reshape(m.shape[0], -1) for m in (forward, transposed)]


def _file_matrix(file: TfliteFile, op: Any, weight: int) -> NDArray[np.float32]:
    """The same of a file's weight: conv [O, kh, kw, I], depthwise [1, kh, kw, C], CONV_3D [kd, kh, kw, I, O]."""
    values = np.asarray(file.constant(weight), np.float32)
    if file.op_type(op) == "DEPTHWISE_CONV_2D":
        values = np.moveaxis(values, 3, 0)
    elif file.op_type(op) == "CONV_3D":
        values = np.moveaxis(values, -1, 0)
    return values.reshape(values.shape[0], -1)


def _close(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-6 * float(np.abs(a).max(initial=0)))


def _proportional(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Equal up to a positive factor for each output: the converter folded a multiplication into the weight."""
    if a.shape != b.shape or a.size == 0:
        return False
    lengths = np.linalg.norm(a, axis=1, keepdims=True), np.linalg.norm(b, axis=1, keepdims=True)
    if any((length == 0).any() for length in lengths) or a.shape[1] == 1:
        return False
    return np.allclose(a / lengths[0], b / lengths[1], atol=1e-5)


def rename(path: Path, weights: Weights, order: list[str], inputs: list[str], outputs: list[str]) -> None:
    """Rewrite a float file in place: tensors named after the network's layers, inputs and outputs after its signature,
    the converter's own metadata left out, constants aligned to 16 bytes as the schema asks."""
    file = read(path)
    graph, matched = file.graph, match_layers(file, weights, order)
    names: dict[int, str] = {}
    for signature in file.model.signatureDefs:  # the converter calls them args_0, output_0
        for items, given in ((signature.inputs, inputs), (signature.outputs, outputs)):
            for item in items:
                name = given[int(text(item.name).rsplit("_", 1)[1])]
                names.setdefault(int(item.tensorIndex), name)
                item.name = name
    for index, op in enumerate(graph.operators):
        layer = matched.get(index)
        for position, output in enumerate(ints(op.outputs)):
            own = layer or f"{file.op_type(op).lower()}_{index}"
            names.setdefault(output, own if position == 0 else f"{own}.{position}")
        if layer is not None:
            names.setdefault(int(file.weight(op)), f"{layer}.weight")  # type: ignore[arg-type]
            if len(op.inputs) > 2 and op.inputs[2] in file.stored and file.op_type(op) != "TRANSPOSE_CONV":
                names.setdefault(int(op.inputs[2]), f"{layer}.bias")
    used: set[str] = set()
    for index, tensor in enumerate(graph.tensors):
        tensor.name = _unused(names.get(index, f"constant_{index}"), used).encode()
    file.model.metadata = [m for m in file.model.metadata or [] if text(m.name) in KEPT_METADATA]
    path.write_bytes(serialize(file.model))


def _unused(name: str, used: set[str]) -> str:
    """`name`, or name#2, name#3 … where it is taken: the quantizer tells tensors apart by name."""
    number, free = 1, name
    while free in used:
        number += 1
        free = f"{name}#{number}"
    used.add(free)
    return free


def serialize(model: Any) -> bytes:
    """The bytes of a schema ModelT. Python's flatbuffers ignores force_align: byte vectors are aligned to 16 here."""
    import flatbuffers

    class Builder(flatbuffers.Builder):  # type: ignore[misc]
        def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:
            return super().StartVector(elemSize, numElems, 16 if elemSize == 1 and numElems >= 16 else alignment)

    builder = Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
