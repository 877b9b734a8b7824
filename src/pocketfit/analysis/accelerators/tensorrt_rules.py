"""What TensorRT asks of a quantized .onnx file, checked node by node, and the lines that build an engine of it.

A file that is ready has explicit quantization: QuantizeLinear and DequantizeLinear around what runs in int8, both of
signed int8 with zero points of 0, one scale a tensor for activations, one a channel for stored weights at most, and
biases in float.

Sources, read 2026-11-28:
  rules   github.com/onnx/onnx-tensorrt at 96e7810 (10.1 GA): onnxOpImporters.cpp (QuantDequantLinearHelper, which
          refuses a file or ignores what it states), docs/operators.md (DequantizeLinear takes int8, fp8 and int4)
  scheme  docs.nvidia.com/deeplearning/tensorrt, "Working with Quantized Types" and "Explicit Quantization" (11.0):
          symmetric, signed int8, a DequantizeLinear between stored integers and the layer that uses them
  lines   the same, "Migrating trtexec Usage from TensorRT 10.x to 11.x" (11.4.1): 11 has no precision flags and is
          strongly typed by itself; "Command-Line Programs" (10.8): --useCudaGraph, --dumpProfile. JetPack 6.1 has
          TensorRT 10.3 (docs.pytorch.org/TensorRT, getting_started/jetpack, 2.6.1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pocketfit.core.artifact import FileTensor
from pocketfit.formats.onnx_read import DEQUANTIZE, QUANTIZE, read_model

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

INTEGER_OPERATORS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
NOT_HERE = (
    "not_possible_here: an engine is built and timed by TensorRT on the NVIDIA GPU that runs it, and pocketfit drives"
    " neither; trtexec prints its latency and throughput there"
)
MOST = 32  # rows of a batch on a server


@dataclass(frozen=True)
class Breach:
    """A node that breaks a rule."""

    node: str
    rule: str


@dataclass(frozen=True)
class _Look:
    """Look-ups in one graph, by tensor name."""

    constants: Mapping[str, TensorProto]
    readers: Mapping[str, Sequence[NodeProto]]

    @classmethod
    def of(cls, model: ModelProto) -> _Look:
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            if node.op_type == "Constant":
                constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
            for name in node.input:
                readers.setdefault(name, []).append(node)
        return cls(constants, readers)


def breaches(path: Path) -> list[Breach]:
    """The nodes of an .onnx file that break a rule, in the file's order. Raises UserError for a file that is none."""
    model = read_model(path)
    look, found = _Look.of(model), []
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        if node.op_type in INTEGER_OPERATORS:
            found.append(
                Breach(name, f"{node.op_type} is no operator of TensorRT: it takes integers by Q/DQ pairs only")
            )
        elif node.op_type in (QUANTIZE, DEQUANTIZE):
            found += [Breach(name, rule) for rule in _of_pair(node, look)]
    return found


def _of_pair(node: NodeProto, look: _Look) -> list[str]:
    """The rules that a QuantizeLinear or DequantizeLinear breaks, as sentences."""
    from onnx import TensorProto, numpy_helper

    constants, broken = look.constants, []
    zero = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    data = constants.get(node.input[0])
    kind = zero.data_type if zero is not None else data.data_type if data is not None else 0
    if kind == TensorProto.INT32:
        return ["dequantizes int32 (a bias), and TensorRT takes int8, fp8 and int4: keep biases in float"]
    if kind == TensorProto.UINT8:
        broken.append("is uint8, and TensorRT's quantization is signed int8")
    elif kind and kind not in (TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN):
        broken.append(f"is {TensorProto.DataType.Name(kind).lower()}, and TensorRT takes int8, fp8 and int4")
    if node.op_type == QUANTIZE and zero is None and not _number(node, "output_dtype"):
        broken.append("has no zero point, which makes it uint8 in ONNX and int8 in TensorRT")
    if zero is not None and kind != TensorProto.FLOAT8E4M3FN and np.any(numpy_helper.to_array(zero)):
        broken.append("has a zero point other than 0, and TensorRT's quantization is symmetric")
    if node.input[1] in constants:
        scales = numpy_helper.to_array(constants[node.input[1]])
        if not (scales > 0).all():
            broken.append("has a scale that is not positive")
        if scales.size > 1 and scales.ndim == 1:  # blocks, with scales of the weight's own rank, are another scheme
            broken += _of_channels(node, look, scales.size)
    return broken


def _of_channels(node: NodeProto, look: _Look, scales: int) -> list[str]:
    """The rules that scales a channel break."""
    data = look.constants.get(node.input[0])
    if data is None:
        return ["has a scale a channel for a tensor that is computed: TensorRT takes those for stored weights only"]
    axis = _number(node, "axis", 1)
    axis += len(data.dims) if axis < 0 else 0
    if not 0 <= axis < len(data.dims) or data.dims[axis] != scales:
        return [f"has {scales} scales along axis {axis} of a weight of shape {list(data.dims)}"]
    for reader in look.readers.get(node.output[0], ()):
        wanted = _output_axis(reader, node.output[0], len(data.dims))
        if wanted is not None and wanted != axis:
            return [
                f"has its scales along axis {axis}, where the output channels of {reader.op_type} are axis {wanted}:"
                " TensorRT takes a scale for each output channel"
            ]
    return []


def _output_axis(reader: NodeProto, weight: str, rank: int) -> int | None:
    """The axis of a layer's weight that holds the output channels; None for another operator or input."""
    if len(reader.input) < 2 or reader.input[1] != weight:
        return None
    if reader.op_type == "Gemm":
        return 0 if _number(reader, "transB") else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1}.get(reader.op_type)


def _number(node: NodeProto, name: str, otherwise: int = 0) -> int:
    return int(next((attribute.i for attribute in node.attribute if attribute.name == name), otherwise))


def commands(file: str, inputs: Sequence[FileTensor]) -> dict[str, str]:
    """The trtexec line for a Jetson (JetPack 6, TensorRT 10) and for a server (TensorRT 11), by device.

    >>> image = FileTensor("image", (None, 3, 8, 8), "float32")
    >>> commands("net.onnx", (image,))["jetson"].split()[1:5]
    ['--onnx=net.onnx', '--saveEngine=net.plan', '--stronglyTyped', '--shapes=image:1x3x8x8']
    """
    begin = f"--onnx={file} --saveEngine={Path(file).with_suffix('.plan')}"
    open_axes = any(None in tensor.shape for tensor in inputs)
    one = f" --shapes={_shapes(inputs, 1)}" if open_axes else ""
    several = ""
    if open_axes:
        rows = {"min": 1, "opt": MOST // 4, "max": MOST}
        several = "".join(f" --{word}Shapes={_shapes(inputs, count)}" for word, count in rows.items())
    return {
        "jetson": f"/usr/src/tensorrt/bin/trtexec {begin} --stronglyTyped{one} --useCudaGraph --dumpProfile",
        "server": f"trtexec {begin}{several} --useCudaGraph --dumpProfile",
    }


def _shapes(inputs: Sequence[FileTensor], rows: int) -> str:
    """ "image:8x3x224x224,mask:8xSIZE": the first axis that is open is the batch, SIZE stands for others."""

    def sizes(tensor: FileTensor) -> str:
        stated = [str(size) if size is not None else "SIZE" for size in tensor.shape]
        return "x".join([str(rows), *stated[1:]] if tensor.shape and tensor.shape[0] is None else stated)

    return ",".join(f"{tensor.name}:{sizes(tensor)}" for tensor in inputs)
