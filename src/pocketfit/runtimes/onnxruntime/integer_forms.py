"""Operators of a static int8 file in the form that ONNX Runtime's CPU kernels like best; the arithmetic stays the same.

In the float file that is calibrated (`prepare`)
    HardSigmoid(x)                    ->  Clip(x + b/a, 0, 1/a) * a      sums and products have integer kernels
    x HardSigmoid(x)                  ->  the same of Clip(x, -b/a)      below, it is 0: no integers are spent there
    ReduceMean over height and width  ->  GlobalAveragePool              so has this
Before quantization (`in_float`)
    what Softmax or a norm reads stays in float, as these compute in float: MatMul [uint8] -> Add [float] -> Softmax
Around quantization (`align`, `merge`)
    integers * scale, times a number  ->  the same integers with another scale
    integers * scale, plus a number   ->  the same integers with another zero point
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pocketfit.formats.onnx_norms import nodes_of_norms
from pocketfit.formats.onnx_read import DEQUANTIZE, QUANTIZE

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

IN_FLOAT = ("InstanceNormalization", "LayerNormalization", "BatchNormalization", "Softmax", "LogSoftmax")
SHIFTED, CLIPPED = "/shifted", "_above"  # ends of the names of a sum in front of such a Clip, and of what one gives
SATURATED, ABOVE = "/saturated", "/above"  # ends of the names of Clips that integers carry out by themselves
STEPS = 255  # of 8 bits
FEWEST_STEPS = (
    3  # in an offset: with fewer, the steps would grow by more than 4/3, and cost more than a second rounding
)
FEWEST_OF_GATE = 32  # of x in the 3 of x + 3: coarser integers of x would make a coarse gate, which has 128 of its own
FEWEST_EXACT = 8  # where biases can take what rounding leaves of an offset
WIDER = 1.1  # times as wide a range may become for an offset
Range = tuple[float, float]


@dataclass(frozen=True)
class Scalar:
    """A node that gives `value` times `factor` plus `offset`, numbers both, and at most `most`."""

    node: str
    value: str
    output: str
    factor: float = 1.0
    offset: float = 0.0
    most: float = math.inf


def prepare(model: ModelProto) -> None:
    """Rewrite HardSigmoid and ReduceMean, in place."""
    stated = (*model.graph.value_info, *model.graph.input)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in stated}
    constants, nodes, clipped = _constants(model), [], _clipped(model)
    for node in model.graph.node:
        if node.op_type == "HardSigmoid" and node.input[0] in clipped:
            nodes += _saturating(model, node, gates_itself=True)
        elif node.op_type == "Mul" and node.output[0] in clipped.values():
            nodes.append(node)
            node.input[:] = [f"{name}{CLIPPED}" if name in clipped else name for name in node.input]
        elif node.op_type == "HardSigmoid" and _attribute(node, "alpha", 0.2) > 0:
            nodes += _saturating(model, node)
        elif node.op_type == "ReduceMean" and ranks.get(node.input[0]) == 4 and _over_pixels(node, constants):
            nodes += _pooled(model, node)
        else:
            nodes.append(node)
    _replace_nodes(model, nodes)


def _clipped(model: ModelProto) -> dict[str, str]:
    """What is computed, multiplied by its own HardSigmoid, and read by nothing else -> the product."""
    readers, found = _readers(model), {}
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        value, gate = (node.input[0], node.output[0]) if node.op_type == "HardSigmoid" else ("", "")
        after = readers.get(gate, [])
        if value in ends or len(after) != 1 or after[0].op_type != "Mul" or _attribute(node, "alpha", 0.2) <= 0:
            continue
        if sorted(after[0].input) == sorted((value, gate)) and len(readers[value]) == 2:
            found[value] = after[0].output[0]
    return found


def _saturating(model: ModelProto, node: NodeProto, *, gates_itself: bool = False) -> list[NodeProto]:
    from onnx import helper

    slope, shift = _attribute(node, "alpha", 0.2), _attribute(node, "beta", 0.5)
    value, output = node.input[0], node.output[0]
    first = []
    if gates_itself:
        least = _store(model, f"{output}_least", np.array(-shift / slope, np.float32))
        first = [helper.make_node("Clip", [value, least], [f"{value}{CLIPPED}"], f"{node.name or output}{ABOVE}")]
        value = f"{value}{CLIPPED}"
    numbers = {"shift": shift / slope, "zero": 0.0, "top": 1 / slope, "slope": slope}
    named = {word: _store(model, f"{output}_{word}", np.array(number, np.float32)) for word, number in numbers.items()}
    base = node.name or output
    sum_, clip = f"{output}_shifted", f"{output}_saturated"
    return [
        *first,
        helper.make_node("Add", [value, named["shift"]], [sum_], f"{base}{SHIFTED}"),
        helper.make_node("Clip", [sum_, named["zero"], named["top"]], [clip], f"{base}{SATURATED}"),
        helper.make_node("Mul", [clip, named["slope"]], [output], f"{base}/scaled"),
    ]


def _over_pixels(node: NodeProto, constants: Mapping[str, Any]) -> bool:
    axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
    if axes is None and len(node.input) > 1 and node.input[1] in constants:
        axes = constants[node.input[1]].ravel().tolist()
    return axes is not None and sorted(axis % 4 for axis in axes) == [2, 3]


def _pooled(model: ModelProto, node: NodeProto) -> list[NodeProto]:
    from onnx import helper

    base, output = node.name or node.output[0], node.output[0]
    if _attribute(node, "keepdims", 1):
        return [helper.make_node("GlobalAveragePool", [node.input[0]], [output], base)]
    axes = _store(model, f"{output}_axes", np.array([2, 3], np.int64))
    return [
        helper.make_node("GlobalAveragePool", [node.input[0]], [f"{output}_kept"], base),
        helper.make_node("Squeeze", [f"{output}_kept", axes], [output], f"{base}/Squeeze"),
    ]


def in_float(model: ModelProto, *, but_outputs: bool) -> tuple[list[str], set[str]]:
    """(names of the nodes that stay in float, names of the matrix products' outputs that are not quantized).

    but_outputs  whether what writes an output of the file is quantized in any case
    """
    nodes, readers = list(model.graph.node), _readers(model)
    outputs = {value.name for value in model.graph.output}
    kept = {n.output[0] for n in nodes if n.op_type in IN_FLOAT and not (but_outputs and n.output[0] in outputs)}
    for node in reversed(nodes):  # readers come behind what they read
        after = readers.get(node.output[0], [])
        if node.op_type != "Add" or not after or node.output[0] in outputs:
            continue
        of_norm = any(reader.output[0] in kept and reader.op_type in IN_FLOAT for reader in after)
        if of_norm or all(reader.output[0] in kept for reader in after):
            kept.add(node.output[0])
    kept |= nodes_of_norms(model) - outputs
    products = {node.output[0] for node in nodes if node.op_type == "MatMul"} - outputs
    in_float_only = {name for name in products if all(reader.output[0] in kept for reader in readers.get(name, []))}
    return [node.name for node in nodes if node.output[0] in kept and node.name], in_float_only


def left_in_float(model: ModelProto, tensors: Collection[str]) -> None:
    """tensor -> QuantizeLinear -> DequantizeLinear -> reader  becomes  tensor -> reader, for these tensors."""
    readers = _readers(model)
    for tensor in tensors:
        for pair in readers.get(tensor, []):
            if pair.op_type != QUANTIZE:
                continue
            for wide in readers.get(pair.output[0], []):
                if wide.op_type == DEQUANTIZE:
                    _rename_inputs(model, wide.output[0], tensor)
    _remove_unread(model)


def align(model: ModelProto, ranges: Mapping[str, Range]) -> tuple[dict[str, Range], list[Scalar]]:
    """(the ranges, such that products with a number and sums with one need no integers of their own; these nodes).

    A number that is not a multiple of the steps becomes one, in place, where convolutions' biases can take the rest.
    """
    found, scalars = dict(ranges), []
    constants, readers = _constants(model), _readers(model)
    factors: dict[str, Scalar] = {}  # products by their outputs
    gates: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Clip" and node.name.endswith(SATURATED):
            if node.output[0] not in gates:
                found[node.output[0]] = (0.0, float(constants[node.input[2]]))
            continue
        if node.op_type == "Clip" and node.name.endswith(ABOVE):  # a learned range is that of what is clipped
            low, high = found[node.output[0]]
            found[node.output[0]] = (low, min(high, found[node.input[0]][1]))
            continue
        if gate := _gate(node, readers, constants, found):
            gates.add(gate.output)
            scalars.append(gate)
            continue
        one = _scalar(node, constants)
        if one is None or one.value not in found or one.output not in found:
            continue
        if one.offset:
            layers = readers.get(one.output, [])
            may_round = bool(layers) and all(n.op_type == "Conv" and n.input[1] in constants for n in layers)
            spread = _on_steps(found[one.value], one.offset, may_round=may_round)
            if spread is None:
                continue
            _set_range(found, factors, one.value, spread[0])
            if spread[1] != one.offset:
                _move_into_biases(model, layers, one.offset - spread[1], constants)
                one = replace(one, offset=spread[1])
                node.op_type = "Add"
                node.input[:] = [one.value, _store(model, f"{one.output}_offset", np.array(one.offset, np.float32))]
        else:
            factors[one.output] = one
        low, high = found[one.value]
        found[one.output] = (low * one.factor + one.offset, high * one.factor + one.offset)
        scalars.append(one)
    return found, scalars


def _gate(
    node: NodeProto, readers: Mapping[str, list[NodeProto]], constants: Mapping[str, Any], found: dict[str, Range]
) -> Scalar | None:
    """min(x + 3, 6) of an x that is at least -3, as x's own integers; sets the ranges of both."""
    after = readers.get(node.output[0], [])
    if not node.name.endswith(SHIFTED) or not node.input[0].endswith(CLIPPED) or len(after) != 1:
        return None
    value, output = node.input[0], after[0].output[0]
    shift, top = (float(constants[name]) for name in (node.input[1], after[0].input[2]))
    count = math.floor(shift * STEPS / (max(found[value][1], 0.0) + shift))
    if count < FEWEST_OF_GATE:
        return None
    step = shift / count
    found[value], found[output] = (-shift, STEPS * step - shift), (0.0, STEPS * step)
    return Scalar(node.name, value, output, offset=shift, most=top)


def _on_steps(range_: Range, offset: float, *, may_round: bool) -> tuple[Range, float] | None:
    """(a range whose steps divide the offset, and which holds its negative: what padding holds, seen from before the
    sum; the offset, rounded to steps where there are few of them). None where the range would be much wider."""
    low, high = min(range_[0], 0.0), max(range_[1], 0.0)
    least, most = min(low, -offset), max(high, -offset)
    if high <= low or most - least > WIDER * (high - low):
        return None
    step = (most - least) / STEPS
    count = math.floor(abs(offset) / step)
    if count >= (FEWEST_EXACT if may_round else FEWEST_STEPS):
        step = abs(offset) / count
    elif may_round:
        offset = round(offset / step) * step
    else:
        return None
    below = math.ceil(-least / step - 1e-6)
    return ((-below * step, (STEPS - below) * step), offset) if below <= STEPS else None


def _move_into_biases(
    model: ModelProto, layers: Collection[NodeProto], offset: float, constants: Mapping[str, Any]
) -> None:
    """Add to the biases of convolutions what this offset of their inputs gives, away from the borders."""
    for layer in layers:
        weight = constants[layer.input[1]].astype(np.float64)
        bias = constants[layer.input[2]] if len(layer.input) > 2 else np.zeros(len(weight))
        moved = (bias + offset * weight.reshape(len(weight), -1).sum(1)).astype(np.float32)
        del layer.input[2:]
        layer.input.append(_store(model, f"{layer.output[0]}_bias", moved))


def _set_range(found: dict[str, Range], factors: Mapping[str, Scalar], name: str, range_: Range) -> None:
    """Set the range of a tensor, and of those that it is a multiple of."""
    found[name] = range_
    while name in factors:
        one = factors[name]
        name, range_ = one.value, (range_[0] / one.factor, range_[1] / one.factor)
        found[name] = range_


def _scalar(node: NodeProto, constants: Mapping[str, Any]) -> Scalar | None:
    if node.op_type not in ("Mul", "Div", "Add", "Sub") or len(node.input) != 2:
        return None
    for place, value in enumerate(node.input):
        number = constants.get(node.input[1 - place])
        if number is None or number.size != 1 or value in constants or (place and node.op_type in ("Div", "Sub")):
            continue
        single = float(number.ravel()[0])
        if node.op_type in ("Mul", "Div"):
            factor = single if node.op_type == "Mul" else 1 / single if single else 0.0
            return Scalar(node.name, value, node.output[0], factor=factor) if factor > 0 else None
        return Scalar(node.name, value, node.output[0], offset=-single if node.op_type == "Sub" else single)
    return None


def merge(model: ModelProto, scalars: Collection[Scalar]) -> None:
    """Let what reads the integers of a Scalar's output read the integers of its input, where they are the same."""
    for one in scalars:
        ends = _same_integers(model, one)
        if ends is not None:
            wide, narrow, most = ends
            top = np.iinfo(_constants(model)[wide.input[2]].dtype)
            source = (
                wide.input[0] if most >= top.max else _at_most(model, one, wide.input[0], np.array(most, top.dtype))
            )
            _rename_inputs(model, narrow.output[0], source)
        elif math.isfinite(one.most):
            made = next((node for node in model.graph.node if one.output in node.output), None)
            if made is not None and made.name == one.node:  # else the Clip is still there
                made.output[0] = f"{one.output}_unbounded"
                _rename_inputs(model, one.output, _at_most(model, one, made.output[0], np.array(one.most, np.float32)))
    _remove_unread(model)


def _same_integers(model: ModelProto, one: Scalar) -> tuple[NodeProto, NodeProto, float] | None:
    """(the DequantizeLinear before a Scalar, the QuantizeLinear behind it, the integer that stands for `most`), where
    both have the same integers; else None."""
    constants, readers = _constants(model), _readers(model)
    made = {name: node for node in model.graph.node for name in node.output}
    node = next((node for node in model.graph.node if node.name == one.node), None)
    after = readers.get(node.output[0], []) if node is not None else []
    if node is None or [n.op_type for n in after] != [QUANTIZE] or node.output[0] != one.output:
        return None
    wide = [n for n in map(made.get, node.input) if n is not None and n.op_type == DEQUANTIZE]
    wide = [n for n in wide if n.input[0] not in constants and len(n.input) > 2]
    ends = {value.name for value in model.graph.output}
    if len(wide) != 1 or {one.output, after[0].output[0]} & ends:
        return None
    (old_scale, old_zero), (scale, zero) = (_grid(n, constants) for n in (wide[0], after[0]))
    if abs(scale - old_scale * one.factor) > 1e-5 * scale or zero != old_zero - round(one.offset / old_scale):
        return None
    return wide[0], after[0], zero + round(one.most / scale) if math.isfinite(one.most) else math.inf


def _at_most(model: ModelProto, one: Scalar, source: str, most: Any) -> str:
    """The name of min(source, most): of integers, or of float."""
    from onnx import helper

    top, output = _store(model, f"{one.output}_most", most), f"{one.output}_bounded"
    clip = helper.make_node("Clip", [source, "", top], [output], f"{one.node}/Clip")
    nodes = list(model.graph.node)
    place = next(i for i, node in enumerate(nodes) if source in node.output) + 1
    _replace_nodes(model, [*nodes[:place], clip, *nodes[place:]])
    return output


def _grid(node: NodeProto, constants: Mapping[str, Any]) -> tuple[float, int]:
    zero = constants[node.input[2]] if len(node.input) > 2 else np.zeros(1, np.int64)
    return float(constants[node.input[1]].ravel()[0]), int(zero.ravel()[0])


def _constants(model: ModelProto) -> dict[str, Any]:
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _readers(model: ModelProto) -> dict[str, list[NodeProto]]:
    found: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node)
    return found


def _rename_inputs(model: ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _remove_unread(model: ModelProto) -> None:
    """Remove nodes that nothing reads any more, and then the constants that nothing reads."""
    outputs = {value.name for value in model.graph.output}
    kept, read = [], set(outputs)
    for node in reversed(model.graph.node):
        if read & set(node.output):
            kept.append(node)
            read |= set(node.input)
    _replace_nodes(model, kept[::-1])
    stored = [type(t).FromString(t.SerializeToString()) for t in model.graph.initializer if t.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(stored)


def _replace_nodes(model: ModelProto, nodes: list[NodeProto]) -> None:
    """Put these nodes in the place of all. (A message extended by its own nodes loses them.)"""
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _store(model: ModelProto, name: str, value: Any) -> str:
    from onnx import numpy_helper

    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _attribute(node: NodeProto, name: str, default: float) -> float:
    return next((a.f if a.type == a.FLOAT else a.i for a in node.attribute if a.name == name), default)
