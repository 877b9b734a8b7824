"""Read a .tflite file: its tensors and operators, from the flatbuffer. Nothing here runs the file.

The schema is LiteRT's own (`ai_edge_litert.schema_py_generated`).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.artifact import Contents, FileTensor, OpInfo, Quantization
from pocketfit.core.errors import UserError
from pocketfit.numerics.nibbles import unpack_int4

IDENTIFIER = b"TFL3"  # bytes 4 to 7 of every .tflite
MAX_BYTES = 2**31 - 1  # a flatbuffer's offsets are 32 bits, signed on some readers
DTYPES = {  # names in the schema's TensorType -> numpy; int4 has no numpy form
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "FLOAT64": np.float64,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT16": np.int16,
    "UINT16": np.uint16,
    "INT32": np.int32,
    "UINT32": np.uint32,
    "INT64": np.int64,
    "UINT64": np.uint64,
    "BOOL": np.bool_,
}
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D")  # input 1 is the weight
LAYERED = (*WEIGHTED, "BATCH_MATMUL")  # what a layer of the network with weights becomes
SHAPE_DTYPES = ("int32", "int64", "bool", "string")  # constants that are axes, shapes or biases, never weights
OWN_METADATA = "pocketfit."  # see tflite_write.annotate
CASTS = ("QUANTIZE", "DEQUANTIZE", "CAST")


@dataclass(frozen=True)
class TfliteFile:
    """The parsed flatbuffer: `model` is the schema's ModelT, `graph` its main subgraph, `data` the whole file."""

    path: Path
    data: bytes
    model: Any
    graph: Any

    def op_type(self, op: Any) -> str:
        """ "CONV_2D"; a custom operator by its own name."""
        code = self.model.operatorCodes[op.opcodeIndex]
        # files from before 2020 have their code in the 8-bit field only
        builtin = max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
        name = _names("BuiltinOperator")[builtin]
        return text(code.customCode) if name == "CUSTOM" and code.customCode else name

    def dtype(self, index: int) -> str:
        """ "float32", "int8", "int4": of tensor `index`."""
        return _names("TensorType")[self.graph.tensors[index].type].lower()

    def name(self, index: int) -> str:
        return text(self.graph.tensors[index].name)

    def shape(self, index: int) -> tuple[int, ...]:
        return ints(self.graph.tensors[index].shape)

    def raw(self, index: int) -> NDArray[np.uint8] | None:
        """The stored bytes of a constant tensor, None for one that is computed.

        They lie in Buffer.data, or at Buffer.offset from the file's start (ai-edge-quantizer writes those).
        """
        buffer = self.model.buffers[self.graph.tensors[index].buffer]
        if buffer.offset > 1:
            if buffer.offset + buffer.size > len(self.data):
                raise ValueError(f"buffer of tensor {index} lies behind the end of the file")
            return np.frombuffer(self.data, np.uint8, buffer.size, buffer.offset)
        if buffer.data is None or len(buffer.data) == 0:
            return None
        return np.asarray(buffer.data, np.uint8)

    def constant(self, index: int) -> NDArray[np.generic] | None:
        """A constant tensor as an array of its own shape (int4: as int8); None when it is computed."""
        kind, raw = DTYPES.get(self.dtype(index).upper()), self.raw(index)
        if raw is not None and self.dtype(index) == "int4":
            return unpack_int4(raw, math.prod(self.shape(index))).reshape(self.shape(index))
        if raw is None or kind is None:
            return None
        return np.frombuffer(raw.tobytes(), kind).reshape(self.shape(index))

    @cached_property
    def notes(self) -> dict[str, str]:
        """The metadata that tflite_write.annotate has written into the file: {"layout": "NHWC"}."""
        found = {}
        for item in self.model.metadata or ():
            if text(item.name).startswith(OWN_METADATA):
                buffer = self.model.buffers[item.buffer]
                raw = b"" if buffer.data is None else np.asarray(buffer.data, np.uint8).tobytes()
                if buffer.offset > 1:
                    raw = self.data[buffer.offset : buffer.offset + buffer.size]
                found[text(item.name).removeprefix(OWN_METADATA)] = raw.decode(errors="replace")
        return found

    @cached_property
    def stored(self) -> dict[int, int]:
        """Tensors with a constant value -> the tensor that stores it: itself, or the source of its DEQUANTIZE."""
        found = {i: i for i in range(len(self.graph.tensors)) if self.raw(i) is not None}
        for op in self.graph.operators:
            if self.op_type(op) == "DEQUANTIZE" and int(op.inputs[0]) in found:
                found[int(op.outputs[0])] = int(op.inputs[0])
        return found

    def weight(self, op: Any) -> int | None:
        """The tensor that stores an operator's weight: input 1 of the WEIGHTED types, seen through a DEQUANTIZE of a
        constant (float16 files); else its largest constant that is no shape or axis; None without one."""
        found = [self.stored[i] for i in ints(op.inputs) if i in self.stored]
        found = [i for i in found if self.dtype(i) not in SHAPE_DTYPES]
        if self.op_type(op) in CASTS or not found:
            return None
        if self.op_type(op) in WEIGHTED:
            return self.stored.get(int(op.inputs[1]))
        return max(found, key=self.stored_bytes)

    def stored_bytes(self, index: int) -> int:
        """Bytes that a tensor's constant takes in the file."""
        raw = self.raw(index)
        return 0 if raw is None else len(raw)

    def quantization(self, index: int) -> Quantization | None:
        """Scales and zero points of a tensor, None where it has none."""
        stated = self.graph.tensors[index].quantization
        if stated is None or stated.scale is None or len(stated.scale) == 0:
            return None
        scales = tuple(float(s) for s in stated.scale)
        zeros = tuple(ints(stated.zeroPoint)) or (0,) * len(scales)
        return Quantization(scales, zeros, int(stated.quantizedDimension) if len(scales) > 1 else -1)


def read(path: Path) -> TfliteFile:
    """Parse a .tflite file. Raises UserError, naming the file, for anything that is not a whole one."""
    from ai_edge_litert import schema_py_generated as schema

    path = Path(path)
    if not path.is_file():
        raise UserError(f"'{path}' is not there: give the path of a .tflite file")
    size_bytes = path.stat().st_size
    if size_bytes > MAX_BYTES:
        raise UserError(f"'{path}' has {size_bytes / 1e9:.1f} GB; a .tflite file has at most {MAX_BYTES / 1e9:.1f} GB")
    data = path.read_bytes()
    if data[4:8] != IDENTIFIER:
        raise UserError(f"'{path}' is not a .tflite file: it does not have {IDENTIFIER.decode()} at bytes 4 to 7")
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        parsed = TfliteFile(path, data, model, model.subgraphs[_main_subgraph(model)])
        _check(parsed)
    except (struct.error, IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError) as e:
        raise UserError(f"'{path}' is damaged or cut short: {type(e).__name__} while reading it; get it again") from e
    return parsed


def inspect(path: Path) -> Contents:
    """The inputs, outputs and operators of the file's main subgraph, in execution order.

    `layer` is filled for the files that pocketfit writes; see `layer_of`.
    """
    file = read(path)
    try:
        return contents(file)
    except (IndexError, KeyError, ValueError, TypeError, AttributeError) as e:
        raise UserError(f"'{path}' is damaged: {type(e).__name__} while reading its operators; get it again") from e


def contents(file: TfliteFile) -> Contents:
    """`inspect` of a file that has been read."""
    graph = file.graph
    counted: set[int] = set()
    ops = []
    for index, op in enumerate(graph.operators):
        weight = file.weight(op)
        bytes_here = 0
        if weight is not None and (buffer := graph.tensors[weight].buffer) not in counted:
            counted.add(buffer)  # a weight that two operators share is stored once
            bytes_here = file.stored_bytes(weight)
        computed = [i for i in ints(op.inputs) if i >= 0 and i not in file.stored]
        output = int(op.outputs[0]) if len(op.outputs) else None
        ops.append(
            OpInfo(
                index=index,
                name=file.name(output) if output is not None else "",
                type=file.op_type(op),
                output_shape=file.shape(output) if output is not None else (),
                weight_dtype=file.dtype(weight) if weight is not None else "",
                compute_dtype=file.dtype(computed[0]) if computed else "",
                weight_shape=file.shape(weight) if weight is not None else (),
                weight_bytes=bytes_here,
                macs=_macs(file, op, weight),
                layer=layer_of(file, op),
            )
        )
    return Contents("tflite", *_inputs_and_outputs(file), tuple(ops))


def _macs(file: TfliteFile, op: Any, weight: int | None) -> int:
    """Multiply-accumulates of one run at the shapes in the file."""
    kind = file.op_type(op)
    if kind == "BATCH_MATMUL":  # [..., M, K] x [..., K, N] -> [..., M, N]
        options = op.builtinOptions
        shape = file.shape(int(op.inputs[0]))
        return math.prod(file.shape(int(op.outputs[0]))) * shape[-2 if options is not None and options.adjX else -1]
    if weight is None or kind not in WEIGHTED:
        return 0
    shape = file.shape(weight)
    if kind == "TRANSPOSE_CONV":  # weight [O, kh, kw, I]; each input pixel meets all of it
        return math.prod(file.shape(int(op.inputs[2]))[:-1]) * math.prod(shape)
    outputs = math.prod(file.shape(int(op.outputs[0])))
    if kind == "CONV_3D":  # weight [kd, kh, kw, I, O]
        return outputs * math.prod(shape[:-1])
    per_output = shape[1] * shape[2] if kind == "DEPTHWISE_CONV_2D" else math.prod(shape[1:])
    return outputs * per_output  # weights: depthwise [1, kh, kw, C], conv [O, kh, kw, I], fully connected [O, I]


def _inputs_and_outputs(file: TfliteFile) -> tuple[tuple[FileTensor, ...], tuple[FileTensor, ...]]:
    names: dict[tuple[str, int], str] = {}
    for signature in file.model.signatureDefs or ():
        if file.model.subgraphs[signature.subgraphIndex] is file.graph:
            for side, items in (("in", signature.inputs), ("out", signature.outputs)):
                names.update({(side, int(item.tensorIndex)): text(item.name) for item in items or ()})

    def tensor(side: str, index: int) -> FileTensor:
        stated = file.graph.tensors[index]
        shape = ints(stated.shapeSignature) if stated.shapeSignature is not None else file.shape(index)
        return FileTensor(
            names.get((side, index)) or file.name(index),
            tuple(None if size < 0 else size for size in shape),
            file.dtype(index),
            file.quantization(index),
            _layout(file, index) if side == "in" else _output_layout(file, index),
        )

    inputs = tuple(tensor("in", i) for i in ints(file.graph.inputs))
    return inputs, tuple(tensor("out", i) for i in ints(file.graph.outputs))


def _output_layout(file: TfliteFile, index: int) -> str:
    """The layout of an output that is a map, as the file states it; "" for another output."""
    return file.notes.get("output_layout", "") if len(file.shape(index)) == 4 else ""


def _layout(file: TfliteFile, index: int) -> str:
    """The layout of an image input, "" for another input.

    pocketfit's files note it. In other tools' files it is "NCHW" where the first operator transposes to channels-last,
    "NHWC" where it transposes from there, or where it is a convolution or pooling; else it follows from the axis that
    is as short as a channel axis.
    """
    shape = file.shape(index)
    if len(shape) != 4:
        return ""
    if "layout" in file.notes:
        return file.notes["layout"]
    reached = {index}
    for op in file.graph.operators:
        if len(op.inputs) == 0 or int(op.inputs[0]) not in reached:
            continue
        kind = file.op_type(op)
        if kind == "TRANSPOSE":
            order = file.constant(int(op.inputs[1]))
            known = {(0, 2, 3, 1): "NCHW", (0, 3, 1, 2): "NHWC"}
            return "" if order is None else known.get(tuple(order.tolist()), "")
        if kind in WEIGHTED or kind.endswith("POOL_2D"):
            return "NHWC"
        reached.update(ints(op.outputs))
    return "NHWC" if shape[3] in (1, 3, 4) else "NCHW" if shape[1] in (1, 3, 4) else ""


def layer_of(file: TfliteFile, op: Any) -> str:
    """The layer that an operator came from, "" for an operator without one. The weight is called "<layer>.weight", or
    it has no name, as deployed files drop it where the operator's output is called "<layer>"."""
    weight = file.weight(op)
    if weight is None:
        return ""
    name = file.name(weight)
    if name.endswith(".weight"):
        return name.removesuffix(".weight")
    return file.name(int(op.outputs[0])) if not name and file.op_type(op) in LAYERED else ""


def _check(file: TfliteFile) -> None:
    """Check that every index of the main graph is in range: in damaged files that goes wrong first."""
    tensors, buffers = len(file.graph.tensors), len(file.model.buffers)
    for tensor in file.graph.tensors:
        if not 0 <= tensor.buffer < buffers:
            raise IndexError("a tensor names a buffer that is not there")
    for index in range(tensors):
        file.raw(index)
    for op in file.graph.operators:
        file.op_type(op)
        if any(not -1 <= i < tensors for i in (*ints(op.inputs), *ints(op.outputs))):
            raise IndexError("an operator names a tensor that is not there")
    if not len(file.graph.inputs) or not len(file.graph.outputs):
        raise ValueError("the graph has no inputs or no outputs")


def _main_subgraph(model: Any) -> int:
    return int(model.signatureDefs[0].subgraphIndex) if model.signatureDefs else 0


@cache
def _names(enum: str) -> dict[int, str]:
    """Number -> name of one of the schema's enums."""
    from ai_edge_litert import schema_py_generated as schema

    return {v: k for k, v in vars(getattr(schema, enum)).items() if not k.startswith("_")}


def text(value: bytes | str | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def ints(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(int(v) for v in values)
