"""Writing .tflite files: the bytes of a schema ModelT, and what a deployed file can do without.

LiteRT needs the weights, scales and operators of a quantized file. A tenth of a small network's file is something else:
zero points that are all 0 (8 bytes for every channel of every weight and bias), names of constants, repeated constants.
`compact` removes that and changes no number: vectors with the same content are stored once, and a constant whose layer
is known from its operator's name has no name of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pocketfit.formats.tflite_read import LAYERED, OWN_METADATA, TfliteFile, ints, layer_of, read, text

ALIGNMENT = 16  # bytes, of Buffer.data: force_align in LiteRT's schema
FULLY_CONNECTED_VERSION = 5  # of the operator: the first that keeps the number of dimensions


def serialize(model: Any, *, share: bool = False) -> bytes:
    """The bytes of a schema ModelT; with `share`, equal vectors of numbers are written once and pointed at.

    Python's flatbuffers ignores force_align: byte vectors are aligned here.
    """
    import flatbuffers

    class Builder(flatbuffers.Builder):  # type: ignore[misc]  # flatbuffers has no type hints
        def __init__(self) -> None:
            super().__init__(1024)
            self.written: dict[tuple[int, bytes], int] = {}
            self.before: int | None = None  # None: no vector is open (a string ends with EndVector too)

        def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:
            self.before, self.size_bytes, self.has_offsets = self.Offset(), elemSize * numElems, False
            self.aligned = ALIGNMENT if elemSize == 1 and numElems >= ALIGNMENT else alignment
            return super().StartVector(elemSize, numElems, self.aligned)

        def PrependUOffsetTRelative(self, off: int) -> None:
            self.has_offsets = True  # offsets are relative to their place: equal bytes elsewhere point elsewhere
            super().PrependUOffsetTRelative(off)

        def EndVector(self, *arguments: Any) -> int:
            offset, before, self.before = int(super().EndVector(*arguments)), self.before, None
            if not share or before is None or self.has_offsets:
                return offset
            content = bytes(self.Bytes[self.Head() : self.Head() + 4 + self.size_bytes])  # its length comes first
            earlier = self.written.setdefault((self.aligned, content), offset)
            if earlier != offset:
                self.head = len(self.Bytes) - before  # take the second copy back
            return earlier

    builder = Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def annotate(path: Path, values: Mapping[str, str]) -> None:
    """Write metadata "pocketfit.<name>" into a file, in place: what pocketfit's sessions need to know of it.

    layout  layout of its image input, "NHWC" or "NCHW"; "" without one
    batch   "1" where the file is right for single rows only
    """
    from ai_edge_litert import schema_py_generated as schema

    file = read(path)
    model = file.model
    model.metadata = [item for item in model.metadata or [] if not text(item.name).startswith(OWN_METADATA)]
    for name, value in values.items():
        model.buffers.append(schema.BufferT(data=np.frombuffer(value.encode(), np.uint8)))
        model.metadata.append(schema.MetadataT(name=f"{OWN_METADATA}{name}", buffer=len(model.buffers) - 1))
    path.write_bytes(serialize(model))


def share_constants(source: Path, target: Path) -> None:
    """Copy a file with each constant stored once: the converter writes a weight as often as it is used."""
    file = read(source)
    _share_buffers(file)
    target.write_bytes(serialize(file.model, share=True))


def compact(file: TfliteFile) -> bytes:
    """The bytes of a deployed file that computes what `file` computes; its model is changed on the way."""
    _drop_names(file)
    _share_buffers(file)
    return serialize(file.model, share=True)


def _drop_names(file: TfliteFile) -> None:
    """Drop the names of constants, except where `tflite_read.layer_of` needs them: for a weight whose layer does not
    name the operator's output, and for the weight of an operator that belongs to no layer."""
    kept: set[int] = set()
    for op in file.graph.operators:
        weight = file.weight(op)
        if file.op_type(op) in LAYERED and weight is not None:
            layer = layer_of(file, op)
            if not layer or layer != file.name(int(op.outputs[0])):
                kept.add(weight)
    ends = {*ints(file.graph.inputs), *ints(file.graph.outputs)}
    for index, tensor in enumerate(file.graph.tensors):
        if file.raw(index) is not None and index not in kept | ends:
            tensor.name = None


def _share_buffers(file: TfliteFile) -> None:
    """Store each content once, and use one empty buffer for all computed tensors; buffer 0 is the schema's own."""
    model = file.model
    old, model.buffers = model.buffers, [type(model.buffers[0])()]
    places: dict[bytes, int] = {b"": 0}
    new: dict[int, int] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.buffer not in new:
                content = _content(file, old[tensor.buffer])
                if content not in places:
                    places[content] = len(model.buffers)
                    model.buffers.append(type(old[0])(data=np.frombuffer(content, np.uint8)))
                new[tensor.buffer] = places[content]
            tensor.buffer = new[tensor.buffer]
    for item in model.metadata or []:
        model.buffers.append(type(old[0])(data=np.frombuffer(_content(file, old[item.buffer]), np.uint8)))
        item.buffer = len(model.buffers) - 1


def _content(file: TfliteFile, buffer: Any) -> bytes:
    if buffer.offset > 1:
        return file.data[buffer.offset : buffer.offset + buffer.size]
    return b"" if buffer.data is None else np.asarray(buffer.data, np.uint8).tobytes()


def pointwise_as_fully_connected(file: TfliteFile) -> int:
    """1x1 convolutions with 4-bit weights -> FULLY_CONNECTED that keeps the dimensions; returns how many.

    [N, H, W, I] x [O, I] -> [N, H, W, O], the same sums: XNNPACK has a kernel for 4-bit weights (QC4W) of the latter,
    and leaves 4-bit CONV_2D to the builtin kernels, which are several times slower.
    """
    from ai_edge_litert import schema_py_generated as schema

    code: int | None = None
    count = 0
    for op in file.graph.operators:
        if file.op_type(op) != "CONV_2D" or file.dtype(int(op.inputs[1])) != "int4":
            continue
        weight, options = int(op.inputs[1]), op.builtinOptions
        outputs, height, width, inputs = file.shape(weight)
        if (height, width, options.strideH, options.strideW) != (1, 1, 1, 1):
            continue
        if file.shape(int(op.inputs[0]))[-1] != inputs:  # grouped
            continue
        code = _fully_connected(file) if code is None else code
        op.opcodeIndex = code
        op.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        op.builtinOptions = schema.FullyConnectedOptionsT(
            fusedActivationFunction=options.fusedActivationFunction, keepNumDims=True
        )
        file.graph.tensors[weight].shape = np.array([outputs, inputs], np.int32)
        count += 1
    return count


def _fully_connected(file: TfliteFile) -> int:
    """Index of FULLY_CONNECTED among the operator codes, appended where it is not there."""
    from ai_edge_litert import schema_py_generated as schema

    number = schema.BuiltinOperator.FULLY_CONNECTED
    for index, code in enumerate(file.model.operatorCodes):
        if max(int(code.builtinCode), int(code.deprecatedBuiltinCode)) == number:
            code.version = max(int(code.version), FULLY_CONNECTED_VERSION)
            return index
    file.model.operatorCodes.append(
        schema.OperatorCodeT(builtinCode=number, deprecatedBuiltinCode=number, version=FULLY_CONNECTED_VERSION)
    )
    return len(file.model.operatorCodes) - 1
