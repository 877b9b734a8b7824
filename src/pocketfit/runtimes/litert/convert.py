"""The child process that converts a traced network to the float .tflite.

The converter's tensor names say nothing ("ChannelLastIOWrapper;;...;11"), so the float file is rewritten with names
from the network: the output of layer "features.0.0" is called that, its weight "features.0.0.weight". An operator's
layer is found by its constants: with batch norms folded, a layer's weight is in the file as in torch, transposed.
"""

from __future__ import annotations

import importlib
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import CannotRunHere, ExportFailed
from pocketfit.core.signature import TensorSpec
from pocketfit.formats.tflite_read import LAYERED, TfliteFile, ints, read, text
from pocketfit.formats.tflite_write import annotate, serialize
from pocketfit.runtimes.common import agreement
from pocketfit.runtimes.litert.session import LiteRTSession

Weights = dict[str, NDArray[np.float32]]
KEPT_METADATA = ("min_runtime_version",)
NOT_CONVERTED = "litert-torch could not convert the network"
ROW_BY_ROW = (
    "The file is right for one sample at a time only: pocketfit runs the samples of a batch one after the other"
)


def preload() -> None:
    """Load what the children of a fork server share (processes/fork_server.py); nothing that starts a thread."""
    for name in ("litert_torch", "ai_edge_quantizer.quantizer", "ai_edge_litert.interpreter"):
        importlib.import_module(name)
    import torch

    from pocketfit.runtimes.litert import quantize  # noqa: F401

    torch.set_num_threads(1)


def convert(
    source: str, target: str, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], layout: str
) -> list[str]:
    """Convert a traced network (.pt2) to the float32 .tflite at batch 1, with the network's names for tensors and
    signature; -> sentences on how the network was changed.

    inputs, outputs: TensorSpec.to_json() of the network's signature. `layout` "NHWC" turns image inputs and outputs to
    channels-last, which spares the runtime a transpose; "NCHW" leaves them.
    """
    import litert_torch
    import torch

    from pocketfit.runtimes.litert import rewrite

    program = torch.export.load(source)
    given, wanted = [TensorSpec.from_json(s) for s in inputs], [TensorSpec.from_json(s) for s in outputs]
    network: Any = program.module()
    notes = rewrite.apply(network)
    turned = [[i for i, spec in enumerate(side) if layout == "NHWC" and _is_picture(spec)] for side in (given, wanted)]
    if any(turned):
        network = litert_torch.to_channel_last_io(network, args=turned[0], outputs=turned[1])
    examples = [torch.zeros(_as_fed(spec, spec.with_batch(1), layout), dtype=_dtype(spec)) for spec in given]
    try:
        with torch.no_grad():
            litert_torch.convert(network, tuple(examples)).export(target)
    except Exception as error:  # the converter's errors are as many as its operators
        raise ExportFailed(f"{NOT_CONVERTED}: {shortened(error)}") from error
    try:
        LiteRTSession(Path(target), 1).close()
    except CannotRunHere as error:
        raise ExportFailed(f"{NOT_CONVERTED} to operators that LiteRT runs: {shortened(error)}") from error
    weights, order = _weights_of(program)
    rename(Path(target), weights, order, [s.name for s in given], [s.name for s in wanted])
    about = {"layout": layout if turned[0] else "NCHW" if any(map(_is_picture, given)) else ""}
    if turned[1]:
        about["output_layout"] = layout
    if not _right_for_any_batch(program.module(), Path(target), given, wanted, layout):
        about["batch"] = "1"
        notes.append(ROW_BY_ROW)
    annotate(Path(target), about)
    return notes


def _right_for_any_batch(
    network: Any, target: Path, inputs: list[TensorSpec], outputs: list[TensorSpec], layout: str
) -> bool:
    """agreement.any_batch for this file: litert-torch may silently mix weights up, or write a fixed batch size."""
    session = LiteRTSession(target, 1)
    kinds = {spec.name: spec.dtype for spec in session.signature.inputs}  # int64 has become int32

    def run(arrays: agreement.Arrays) -> agreement.Arrays:
        fed = {
            spec.name: np.ascontiguousarray(_moved(values, spec, layout)).astype(kinds[spec.name], copy=False)
            for spec, values in zip(inputs, arrays, strict=True)
        }
        found = session.run(fed)
        return [_moved(found[spec.name], spec, layout, back=True) for spec in outputs]

    return agreement.any_batch(network, run, inputs, [spec.name for spec in outputs], "The .tflite")


def _moved(values: NDArray[np.generic], spec: TensorSpec, layout: str, *, back: bool = False) -> NDArray[np.generic]:
    if layout != "NHWC" or not _is_picture(spec):
        return values
    return values.transpose(0, 3, 1, 2) if back else values.transpose(0, 2, 3, 1)


def _as_fed(spec: TensorSpec, shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1]) if layout == "NHWC" and _is_picture(spec) else shape


def _dtype(spec: TensorSpec) -> Any:
    import torch

    return getattr(torch, spec.dtype)


def shortened(error: BaseException) -> str:
    """The line of a converter's error that says what is wrong, without its pages of MLIR.

    >>> shortened(ValueError("Failed to run converter passes: <eval>.4:20:0: error: failed to legalize 'mhlo.sort': x"))
    "failed to legalize 'mhlo.sort'"
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    telling = [line for line in lines if not line.endswith(":")] or lines
    line = next((line for line in telling if "error: " in line), telling[0]).split("error: ", maxsplit=1)[-1]
    found = re.match(r"(failed to legalize(?: operation)? '[^']*')", line)
    return (found[1] if found else line)[:200]


def _is_picture(spec: TensorSpec) -> bool:
    return len(spec.shape) == 4 and spec.layout in ("NCHW", "")


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
        if weight is None or file.op_type(op) not in LAYERED:
            continue
        stored = _file_matrix(file, op, weight)
        for alike in (_close, _proportional):
            found = tuple(name for name in order if any(alike(m, stored) for m in matrices[name]))
            if not found and file.op_type(op) == "TRANSPOSE_CONV":
                inputs = file.shape(weight)[-1]
                found = tuple(n for n in order if any(alike(m, stored) for m in _blocks(weights[n], inputs)))
            if found:
                candidates[index] = found
                break
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, found in candidates.items():
        groups[found].append(index)
    matched = {}
    for found, indices in groups.items():
        if len(found) == 1:  # one layer, maybe used several times
            matched.update(dict.fromkeys(indices, found[0]))
        elif len(found) == len(indices):
            matched.update(zip(indices, found, strict=True))
    return matched


def _torch_matrices(weight: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The matrices [outputs, taps x inputs] that a torch weight may have become in the file, inputs last.

    [O, I, kh, kw] -> [O, kh*kw*I]; a transposed convolution's [I, O, kh, kw] -> the same; [O, I] -> itself and [I, O].
    """
    if weight.ndim == 2:
        return [weight, weight.T]
    forward = np.moveaxis(weight, 1, -1)
    transposed = np.moveaxis(weight, 0, -1)
    return [m.reshape(m.shape[0], -1) for m in (forward, transposed)]


def _blocks(weight: NDArray[np.float32], inputs: int) -> list[NDArray[np.float32]]:
    """The matrices of each group of a transposed convolution [I, O / groups, kh, kw]; each group is an operator."""
    if weight.ndim != 4 or len(weight) <= inputs or len(weight) % inputs:
        return []
    parts = np.split(weight, len(weight) // inputs)
    return [np.moveaxis(part, 0, -1).reshape(part.shape[1], -1) for part in parts]


def _file_matrix(file: TfliteFile, op: Any, weight: int) -> NDArray[np.float32]:
    """A file's weight as such a matrix: conv [O, kh, kw, I], depthwise [1, kh, kw, C], CONV_3D [kd, kh, kw, I, O]."""
    values = np.asarray(file.constant(weight), np.float32)
    if file.op_type(op) == "DEPTHWISE_CONV_2D":
        values = np.moveaxis(values, 3, 0)
    elif file.op_type(op) == "CONV_3D":
        values = np.moveaxis(values, -1, 0)
    return values.reshape(values.shape[0], -1)


def _close(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-6 * float(np.abs(a).max(initial=0)))


def _proportional(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Whether a and b are equal up to a positive factor for each output: the converter may fold a multiplication into
    the weight."""
    if a.shape != b.shape or a.size == 0:
        return False
    lengths = np.linalg.norm(a, axis=1, keepdims=True), np.linalg.norm(b, axis=1, keepdims=True)
    if any((length == 0).any() for length in lengths) or a.shape[1] == 1:
        return False
    return np.allclose(a / lengths[0], b / lengths[1], atol=1e-5)


def rename(path: Path, weights: Weights, order: list[str], inputs: list[str], outputs: list[str]) -> None:
    """Rewrite a float file in place: name tensors after the network's layers, inputs and outputs after its signature,
    drop the converter's own metadata, and align constants to 16 bytes as the schema requires."""
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
            weight = file.weight(op)
            assert weight is not None  # only operators with a weight are matched to layers
            names.setdefault(weight, f"{layer}.weight")
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
