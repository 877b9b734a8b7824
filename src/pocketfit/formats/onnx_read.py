"""Read any .onnx file: what its operators store, compute in and cost. Nothing here runs the file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pocketfit.core.artifact import Contents, FileTensor, OpInfo, Quantization
from pocketfit.core.errors import UserError
from pocketfit.core.support.loading import require

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

MAX_BYTES = 2 * 2**30  # a protobuf message cannot be larger
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# Operators that may stand between a stored weight and the operator that uses it.
LOOK_THROUGH = (DEQUANTIZE, "Cast", "Identity", "Transpose")
ACTIVATIONS = ("Clip", "Relu", "LeakyRelu", "HardSigmoid", "HardSwish", "Sigmoid", "Tanh")
CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv", "FusedConv")
# torch's names of weights, with the prefixes and suffixes that ONNX Runtime's preparation and quantizer add
WEIGHT_NAME = re.compile(r"(?:Conv\w+Fusion_W_)?(.+)\.weight(?:_[ih]h_l\d+)?(?:_quantized)?")
Shape = tuple[int | None, ...]


def read_model(path: str | Path) -> ModelProto:
    """The file as a protobuf message, checked. Raises UserError for anything that is no whole, self-contained model."""
    onnx = require("onnx", "onnxruntime")
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file '{path}'")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"'{path}' is larger than 2 GiB, which no ONNX file without external data can be")
    try:
        model: ModelProto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own DecodeError, which has several homes
        raise UserError(f"'{path}' is no ONNX file, or a damaged one: it cannot be decoded") from error
    if not model.graph.node:
        raise UserError(f"'{path}' is no ONNX file, or an empty one: it holds no operator")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise UserError(f"'{path}' keeps its weights in other files; store them inside it (onnx.save does by default)")
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        raise UserError(f"'{path}' is not a valid ONNX file: {str(error).splitlines()[0][:200]}") from error
    return model


def set_metadata(model: ModelProto, values: Mapping[str, str]) -> None:
    """Add or change entries of a file's metadata; it is sorted by name."""
    kept = metadata(model) | dict(values)
    del model.metadata_props[:]
    for key, value in sorted(kept.items()):
        model.metadata_props.add(key=key, value=value)


def metadata(model: ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def contents(path: str | Path) -> Contents:
    """The file's inputs, outputs and operators, as it states them; MACs are those of one sample."""
    model = read_model(path)
    graph = _Graph.of(model)
    layout = metadata(model).get("pocketfit.layout", "")
    inputs = [value for value in model.graph.input if value.name not in graph.constants]
    return Contents(
        "onnx",
        tuple(_tensor(graph, value, layout) for value in inputs),
        tuple(_tensor(graph, value, "") for value in model.graph.output),
        _ops(graph),
    )


def layout_of(shape: Shape, stated: str = "") -> str:
    """The layout of an input: as stated by the file, else by the axis that has an image's 1, 3 or 4 channels.

    >>> layout_of((None, 3, 224, 224)), layout_of((1, 224, 224, 3)), layout_of((1, 16))
    ('NCHW', 'NHWC', '')
    """
    if len(shape) != 4:
        return ""
    if stated:
        return stated
    if shape[1] in (1, 3, 4):
        return "NCHW"
    return "NHWC" if shape[3] in (1, 3, 4) else ""


@dataclass
class _Graph:
    """Look-ups in one file's graph, by tensor name."""

    nodes: list[NodeProto]
    constants: Mapping[str, TensorProto]
    producer: Mapping[str, NodeProto]
    readers: Mapping[str, list[NodeProto]]
    outputs: frozenset[str]
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    counted: set[str] = field(default_factory=set)  # weights whose bytes have been given to an operator

    @classmethod
    def of(cls, model: ModelProto) -> _Graph:
        import onnx

        inferred = onnx.shape_inference.infer_shapes(model)
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        constants[node.output[0]] = attribute.t
        shapes: dict[str, Shape] = {name: tuple(tensor.dims) for name, tensor in constants.items()}
        dtypes = {name: _dtype(tensor.data_type) for name, tensor in constants.items()}
        for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
            tensor = value.type.tensor_type
            dtypes[value.name] = _dtype(tensor.elem_type)
            if tensor.HasField("shape"):
                shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        producer = {name: node for node in model.graph.node for name in node.output}
        outputs = frozenset(value.name for value in model.graph.output)
        return cls(list(model.graph.node), constants, producer, readers, outputs, shapes, dtypes)

    def constant_behind(self, name: str) -> str:
        """The stored tensor that `name` comes from, through dequantize and cast nodes; "" for what is computed."""
        while name not in self.constants:
            node = self.producer.get(name)
            if node is None or not (node.op_type in LOOK_THROUGH or self.scales_a_constant(node)):
                return ""
            name = node.input[0]
        return name

    def scales_a_constant(self, node: NodeProto) -> bool:
        """Whether a node multiplies a stored tensor by a stored scale: weight -> Cast -> Mul(scale)."""
        return node.op_type == "Mul" and all(self.constant_behind(name) for name in node.input)

    def shape(self, name: str) -> Shape:
        return self.shapes.get(name, ())


def _dtype(elem_type: int) -> str:
    """1 (ONNX's FLOAT) -> "float32", 3 (INT8) -> "int8"; "" where the file doesn't say."""
    import onnx

    name: str = onnx.TensorProto.DataType.Name(elem_type).lower()
    return {"float": "float32", "double": "float64", "undefined": ""}.get(name, name)


def _tensor(graph: _Graph, value: ValueInfoProto, layout: str) -> FileTensor:
    shape = graph.shape(value.name)
    dtype = graph.dtypes.get(value.name, "")
    is_input = value.name not in graph.producer
    quantization = _quantization(graph, value.name) if dtype in ("int8", "uint8") else None
    return FileTensor(value.name, shape, dtype, quantization, layout_of(shape, layout) if is_input else "")


def _quantization(graph: _Graph, name: str) -> Quantization | None:
    """The quantization of an integer input or output: that of the DequantizeLinear or QuantizeLinear beside it."""
    from onnx import numpy_helper

    node = graph.producer.get(name)
    while node is None:
        readers = graph.readers.get(name, [])
        if len(readers) != 1:
            return None
        if readers[0].op_type == "Transpose":
            name = readers[0].output[0]
        else:
            node = readers[0]
    if node.op_type not in (QUANTIZE, DEQUANTIZE) or len(node.input) < 3:
        return None
    if node.input[1] not in graph.constants or node.input[2] not in graph.constants:
        return None
    scale = numpy_helper.to_array(graph.constants[node.input[1]])
    zero_point = numpy_helper.to_array(graph.constants[node.input[2]])
    return Quantization(tuple(map(float, scale.ravel())), tuple(map(int, zero_point.ravel())))


def _ops(graph: _Graph) -> tuple[OpInfo, ...]:
    nodes = [node for node in graph.nodes if node.op_type != "Constant"]
    return tuple(_op(graph, index, node) for index, node in enumerate(nodes))


def _op(graph: _Graph, index: int, node: NodeProto) -> OpInfo:
    weight = _weight(graph, node)
    stored = graph.constants.get(weight)
    weight_bytes = 0
    if stored is not None and weight not in graph.counted:  # a weight that two operators share is stored once
        graph.counted.add(weight)
        weight_bytes = _bytes(stored)
    return OpInfo(
        index=index,
        name=node.name or f"{node.op_type}_{index}",
        type=node.op_type,
        output_shape=graph.shape(node.output[0]),
        weight_dtype="" if stored is None else graph.dtypes[weight],
        compute_dtype=_compute_dtype(graph, node),
        weight_shape=() if stored is None else tuple(stored.dims),
        weight_bytes=weight_bytes,
        macs=_macs(graph, node),
        layer=layer_of(weight),
    )


def layer_of(weight: str) -> str:
    """The layer whose weight is called so, "" for another tensor.

    >>> layer_of("features.0.weight"), layer_of("rnn.weight_ih_l0_quantized"), layer_of("val_7")
    ('features.0', 'rnn', '')
    """
    found = WEIGHT_NAME.fullmatch(weight)
    return found[1] if found else ""


def _weight(graph: _Graph, node: NodeProto) -> str:
    """The operator's largest stored tensor; scalars, int64 (shapes, indices) and quantization's own do not count."""
    if node.op_type in (QUANTIZE, *LOOK_THROUGH) or graph.scales_a_constant(node):
        return ""
    found = [name for name in map(graph.constant_behind, node.input) if name]
    weights = [name for name in found if graph.constants[name].dims and graph.dtypes[name] != "int64"]
    return max(weights, key=lambda name: math.prod(graph.constants[name].dims), default="")


def _bytes(tensor: TensorProto) -> int:
    import onnx

    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return (int(math.prod(tensor.dims)) + 1) // 2
    itemsize: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(math.prod(tensor.dims)) * itemsize


def _compute_dtype(graph: _Graph, node: NodeProto) -> str:
    """The dtype in which a node computes: integers where every input comes out of a DequantizeLinear and the output
    goes into a QuantizeLinear; matrix products of integers may give float."""
    inputs = [name for name in node.input if name]
    data = [name for name in inputs if not graph.constant_behind(name)]
    stated = graph.dtypes.get(data[0], "") if data else ""
    if node.op_type in (QUANTIZE, DEQUANTIZE) or not stated.startswith("float"):
        return stated
    # ONNX Runtime quantizes a stored float bias between integers while it loads a file (WeightBiasQuantization).
    bias = node.input[2] if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 else ""
    for name in inputs:
        if name == bias and name in graph.constants:
            continue
        source = graph.producer.get(name)
        scalar = name in graph.constants and not graph.constants[name].dims
        from_integers = source is not None and source.op_type == DEQUANTIZE
        if not from_integers and not scalar and graph.dtypes.get(name) != "int64":
            return stated
    readers = graph.readers.get(node.output[0], [])
    quantized = readers and all(reader.op_type == QUANTIZE for reader in readers)
    if node.op_type != "MatMul" and (node.output[0] in graph.outputs or not quantized):
        return stated
    return graph.dtypes.get(graph.producer[data[0]].input[0], stated)


def _macs(graph: _Graph, node: NodeProto) -> int:
    """Multiply-accumulates of one sample: each output element takes one for each weight that reaches it."""

    def size(shape: Shape, start: int = 0) -> int:
        return math.prod(1 if n is None else n for n in shape[start:])

    shapes = [graph.shape(name) for name in node.input]
    output = graph.shape(node.output[0])
    kind = node.op_type
    if kind in (*CONVOLUTIONS, "ConvTranspose"):
        data, weight = (shapes[0], shapes[3]) if kind == "QLinearConv" else (shapes[0], shapes[1])
        if len(weight) < 3:
            return 0
        # Conv's kernel is [out, in / groups, …], ConvTranspose's [in, out / groups, …] and reaches out from its input
        return size(data if kind == "ConvTranspose" else output, 1) * size(weight, 1)
    if kind in ("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"):
        data, weight = (shapes[0], shapes[3]) if kind == "QLinearMatMul" else (shapes[0], shapes[1])
        if not data or not weight or not output:
            return 0
        across = data[0] if kind == "Gemm" and _attribute(node, "transA") else data[-1]
        batched = len(output) > 1
        return size(output, 1 if batched else 0) * (across or 1)
    return 0


def _attribute(node: NodeProto, name: str) -> int:
    return int(next((attribute.i for attribute in node.attribute if attribute.name == name), 0))


@dataclass(frozen=True)
class WeightPairs:
    """How many pairs of a layer's weights are multiplied together, and how many of these can overflow 16 bits."""

    layer: str
    pairs: int
    saturating: int


def saturating_pairs(path: str | Path) -> list[WeightPairs]:
    """Where uint8 x int8 products overflow on x86 processors without VNNI, layer by layer, from the stored weights.

    Their instruction vpmaddubsw multiplies two neighbours along the reduction axis with two activations and adds the
    products in 16 bits: with activations of 255, weights of one sign that add up to more than 128 leave -32768 … 32767.
    The order is that of ONNX Runtime's kernels: a convolution's [O, I, kh, kw] is multiplied as [O, kh * kw * I].
    Depthwise convolutions have a kernel of their own, which adds in 32 bits, and are left out.
    """
    graph = _Graph.of(read_model(path))
    found = []
    for op, node in zip(_ops(graph), (n for n in graph.nodes if n.op_type != "Constant"), strict=True):
        if op.weight_dtype != "int8" or op.compute_dtype != "uint8":
            continue
        rows = _reduction_rows(graph, node)
        if rows is None:
            continue
        rows = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
        pairs = rows.reshape(len(rows), -1, 2).astype(np.int32)
        highest, lowest = np.maximum(pairs, 0).sum(axis=2) * 255, np.minimum(pairs, 0).sum(axis=2) * 255
        beyond = (highest > np.iinfo(np.int16).max) | (lowest < np.iinfo(np.int16).min)
        found.append(WeightPairs(op.layer or op.name, beyond.size, int(beyond.sum())))
    return found


def _reduction_rows(graph: _Graph, node: NodeProto) -> NDArray[np.int8] | None:
    """An operator's stored weight as [outputs, reduction], in the order in which it is multiplied; None: depthwise."""
    from onnx import numpy_helper

    values = numpy_helper.to_array(graph.constants[_weight(graph, node)])
    if node.op_type == "Conv":
        if values.shape[1] == 1 and _attribute(node, "group") > 1:
            return None
        return np.moveaxis(values, 1, -1).reshape(len(values), -1)
    if node.op_type == "ConvTranspose":
        return None  # computed in float32
    if values.ndim != 2:
        return np.moveaxis(values, -2, -1).reshape(-1, values.shape[-2])
    return values if _attribute(node, "transB") else values.T


def op_of_kernel(path: str | Path) -> dict[str, int]:
    """Names under which ONNX Runtime may run an operator -> its index in `contents(path).ops`.

    Kernels keep the operator's name, or are called after their output tensor ("<tensor>_nchwc", where an activation
    has been fused into the convolution before it).
    """
    graph = _Graph.of(read_model(path))
    nodes = [node for node in graph.nodes if node.op_type != "Constant"]
    index = {id(node): i for i, node in enumerate(nodes)}
    names = {node.name: i for i, node in enumerate(nodes) if node.name}
    for node in nodes:
        main = node
        while main.op_type in (*ACTIVATIONS, QUANTIZE) and main.input[0] in graph.producer:
            main = graph.producer[main.input[0]]
        owner = main if _weight(graph, main) else node
        for name in node.output:
            names.setdefault(f"{name}_nchwc", index[id(owner)])
    return names
