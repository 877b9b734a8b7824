"""Take off each bias of a static int8 file the mean error that everything before it causes.

Clipping, and rounding in front of an activation, move the means of channels: errors that averaging does not take away.
Layer by layer, in the order in which they are carried out, the bias loses the mean difference between the layer's
outputs in the file and in the float file (Nagel et al. 2019, section 4.2 and appendix D, with the tensors on their
grids as well). Each layer sees the layers before it corrected. The file is cut behind every such layer, so that all of
it takes one run over the samples, in float between QuantizeLinear and DequantizeLinear, as ONNX Runtime does without
optimization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.formats.onnx_read import DEQUANTIZE

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

LAYERS = ("Conv", "ConvTranspose", "Gemm")  # their third input is the bias, their second axis counts its numbers
LARGEST = 2**31 - 1
Values = dict[str, NDArray[Any]]
Opened = Callable[[bytes], Any]


def correct(model: ModelProto, exact: ModelProto, samples: Values, opened: Opened) -> None:
    """Change the integer biases of `model`, in place.

    exact    the float file that it was made from: layers have the same names
    samples  [n, ...] for each of the file's inputs, by name
    opened   gives an InferenceSession of a file's bytes, without optimization
    """
    from onnx import numpy_helper

    layers = _with_integer_biases(model)
    wanted = _means(exact, layers, _rows(samples), opened)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    biases = {node.output[0]: node for node in model.graph.node if node.op_type == DEQUANTIZE}
    rows = _rows(samples)
    for segment, read_later in _segments(model, layers):
        _run(model, segment, rows, read_later, opened)
        layer = segment[-1]
        if layer.name not in wanted:
            continue
        output = layer.output[0]
        error = np.mean([_of_channels(row[output]) for row in rows], 0) - wanted[layer.name]
        whole, scale = (biases[layer.input[2]].input[place] for place in (0, 1))
        before, scales = (numpy_helper.to_array(stored[name]) for name in (whole, scale))
        after = np.clip(np.rint(before - error / scales), -LARGEST, LARGEST).astype(np.int32)
        stored[whole].CopyFrom(numpy_helper.from_array(after, whole))
        moved = ((after.astype(np.float64) - before) * scales).astype(np.float32)
        for row in rows:
            row[output] = row[output] + moved.reshape(-1, *[1] * (row[output].ndim - 2))


def _with_integer_biases(model: ModelProto) -> set[str]:
    """Names of the layers whose bias is stored as integers, and belongs to no other layer."""
    stored = {tensor.name for tensor in model.graph.initializer}
    biases = {n.output[0] for n in model.graph.node if n.op_type == DEQUANTIZE and set(n.input) <= stored}
    read = [name for node in model.graph.node for name in node.input]
    return {
        node.name
        for node in model.graph.node
        if node.op_type in LAYERS and len(node.input) > 2 and node.input[2] in biases
        if read.count(node.input[2]) == 1
    }


def _rows(samples: Values) -> list[Values]:
    count = min(len(array) for array in samples.values())
    return [{name: array[i : i + 1] for name, array in samples.items()} for i in range(count)]


def _means(exact: ModelProto, layers: set[str], rows: list[Values], opened: Opened) -> Values:
    """float64 [channels] by the layer's name: the mean outputs in the float file."""
    import onnx

    found = [node for node in exact.graph.node if node.name in layers]
    names = [node.output[0] for node in found]
    model = onnx.ModelProto()
    model.CopyFrom(exact)
    ends = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in ends)
    session = opened(model.SerializeToString())
    sums = [np.zeros(1)] * len(names)
    for row in rows if names else ():
        answers = session.run(names, row)
        sums = [total + _of_channels(answer) for total, answer in zip(sums, answers, strict=True)]
    return {node.name: total / len(rows) for node, total in zip(found, sums, strict=True)}


def _of_channels(values: NDArray[np.float32]) -> NDArray[np.float64]:
    means: NDArray[np.float64] = values.mean((0, *range(2, values.ndim)), dtype=np.float64)
    return means


def _segments(model: ModelProto, layers: set[str]) -> Iterator[tuple[list[NodeProto], set[str]]]:
    """The nodes up to each of these layers and that layer last, with the names that any node behind it reads. What
    follows the last layer is left out."""
    nodes = list(model.graph.node)
    ends = [place for place, node in enumerate(nodes) if node.name in layers]
    for start, end in zip([0, *(place + 1 for place in ends)], ends, strict=False):
        yield nodes[start : end + 1], {name for node in nodes[end + 1 :] for name in node.input}


def _run(
    model: ModelProto, segment: Sequence[NodeProto], rows: list[Values], read_later: set[str], opened: Opened
) -> None:
    """Add to every row what the segment gives and a later one reads, and its last output; forget what nobody reads."""
    import onnx
    from onnx import helper

    made = {name for node in segment for name in node.output}
    read = {name for node in segment for name in node.input if name}
    given = [name for name in rows[0] if name in read]
    wanted = sorted((made & read_later) | {segment[-1].output[0]})
    graph = helper.make_graph(
        segment,
        "segment",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(rows[0][n].dtype), None) for n in given],
        [onnx.ValueInfoProto(name=name) for name in wanted],
        [tensor for tensor in model.graph.initializer if tensor.name in read],
    )
    made_model = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = opened(made_model.SerializeToString())
    for row in rows:
        answers = session.run(wanted, {name: row[name] for name in given})
        row.update(zip(wanted, answers, strict=True))
        for name in set(row) - read_later - {segment[-1].output[0]}:
            del row[name]
