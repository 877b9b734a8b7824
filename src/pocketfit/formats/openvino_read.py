"""Read any OpenVINO file, an .xml with its .bin: what its operators store, compute in and cost. Nothing runs it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

from pocketfit.core.artifact import Contents, FileTensor, OpInfo
from pocketfit.core.errors import UserError
from pocketfit.formats.onnx_read import layer_of, layout_of

MAX_BYTES = 2**28  # of an .xml, which holds no weights
DTYPES = {"f32": "float32", "f16": "float16", "f64": "float64", "bf16": "bfloat16", "boolean": "bool"}
# Operators that may stand between a stored weight and the operator that uses it.
ENDS = ("Parameter", "Result", "Const")
LOOK_THROUGH = ("Convert", "Subtract", "Multiply", "Reshape", "Transpose")
CONVOLUTIONS = {"Convolution": 1, "GroupConvolution": 2}  # leading dimensions of a kernel that count its outputs
TRANSPOSED = {"ConvolutionBackpropData": 1, "GroupConvolutionBackpropData": 2}  # those that count its inputs
HALVED = "_compressed"  # end of the names of weights that OpenVINO has rounded to float16
EIGHT_BITS = 256  # levels of a FakeQuantize
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class _Port:
    shape: Shape
    dtype: str
    name: str = ""


@dataclass(frozen=True)
class _Layer:
    """One operator; attributes: those of its element `data`."""

    number: str
    name: str
    type: str
    attributes: Mapping[str, str]
    inputs: tuple[str, ...]  # ids of its ports
    outputs: Mapping[str, _Port]


@dataclass
class _Graph:
    layers: Mapping[str, _Layer]
    edges: Mapping[tuple[str, str], tuple[str, str]]  # (layer, port) <- (layer, port)
    metadata: Mapping[str, str]
    counted: set[str] = field(default_factory=set)  # weights whose bytes have been given to an operator

    def sources(self, layer: _Layer) -> Iterator[tuple[_Layer, _Port]]:
        """What each input reads, in order."""
        for port in layer.inputs:
            number, output = self.edges[layer.number, port]
            yield self.layers[number], self.layers[number].outputs[output]

    @cached_property
    def constants(self) -> dict[str, _Layer | None]:
        """By number of a layer: the stored tensor that it comes from, None for what is computed. In the file's order,
        which is one of execution."""
        found: dict[str, _Layer | None] = {}
        for layer in self.layers.values():
            if layer.type == "Const":
                found[layer.number] = layer
            elif layer.type in LOOK_THROUGH:
                behind = [found.get(source.number) for source, _ in self.sources(layer)]
                found[layer.number] = behind[0] if behind and all(one is not None for one in behind) else None
        return found


def contents(path: str | Path) -> Contents:
    """The file's inputs, outputs and operators, as it states them; MACs are those of one sample."""
    graph = _read(Path(path))
    stated = graph.metadata.get("pocketfit.layout", "")
    inputs, outputs = [], []
    for layer in graph.layers.values():
        if layer.type == "Parameter":
            (port,) = layer.outputs.values()
            inputs.append(
                FileTensor(port.name or layer.name, port.shape, port.dtype, None, layout_of(port.shape, stated))
            )
        elif layer.type == "Result":
            ((source, port),) = graph.sources(layer)
            outputs.append(FileTensor(port.name or source.name, port.shape, port.dtype))
    kept = [layer for layer in graph.layers.values() if layer.type not in ENDS]
    ops = tuple(_op(graph, index, layer) for index, layer in enumerate(kept))
    return Contents("openvino", tuple(inputs), tuple(outputs), ops)


def metadata(path: str | Path) -> dict[str, str]:
    """What the file says of itself beside the network: the entries of the .onnx file that it was made of."""
    return dict(_read(Path(path)).metadata)


def producers(path: str | Path) -> dict[int, int]:
    """By index of an operator, the index of the one that makes the first tensor that it reads and that is computed."""
    graph = _read(Path(path))
    kept = [layer for layer in graph.layers.values() if layer.type not in ENDS]
    index = {layer.number: i for i, layer in enumerate(kept)}
    found = {}
    for layer in kept:
        computed = [s.number for s, _ in graph.sources(layer) if graph.constants.get(s.number) is None]
        if computed and computed[0] in index:
            found[index[layer.number]] = index[computed[0]]
    return found


def _read(path: Path) -> _Graph:
    weights = path.with_suffix(".bin")
    if not path.is_file():
        raise UserError(f"There is no file '{path}'")
    if not weights.is_file():
        raise UserError(f"'{path}' has no weights: {weights.name} should lie beside it")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"'{path}' is larger than 256 MiB, which no OpenVINO network is without its weights")
    data = path.read_bytes()
    if b"<!" in data[:1000] or b"<!ENTITY" in data:  # a file of OpenVINO defines nothing
        raise UserError(f"'{path}' is no OpenVINO file: it has a document type of its own")
    try:
        root = ElementTree.fromstring(data)
        graph = _graph(root)
        _check(graph, weights.stat().st_size)
    except (ElementTree.ParseError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' is no OpenVINO file, or a damaged one: it cannot be decoded") from error
    return graph


def _graph(root: ElementTree.Element) -> _Graph:
    layers = {}
    for element in root.iterfind("./layers/layer"):
        data = element.find("data")
        outputs = {port.attrib["id"]: _port(port) for port in element.iterfind("./output/port")}
        inputs = tuple(port.attrib["id"] for port in element.iterfind("./input/port"))
        attributes = {} if data is None else dict(data.attrib)
        number = element.attrib["id"]
        layers[number] = _Layer(number, element.attrib["name"], element.attrib["type"], attributes, inputs, outputs)
    if root.tag != "net" or not layers:
        raise ValueError("no network")
    edges = {
        (edge.attrib["to-layer"], edge.attrib["to-port"]): (edge.attrib["from-layer"], edge.attrib["from-port"])
        for edge in root.iterfind("./edges/edge")
    }
    entries = root.find("./rt_info/framework")
    told = {} if entries is None else {entry.tag: entry.attrib.get("value", "") for entry in entries}
    return _Graph(layers, edges, told)


def _port(element: ElementTree.Element) -> _Port:
    sizes = [int(size.text or "") for size in element.iterfind("dim")]
    kind = element.attrib["precision"].lower()
    dtype = DTYPES.get(kind.replace("fp", "f")) or _integer(kind)
    name = element.attrib.get("names", "").split(",")[0]
    return _Port(tuple(None if size < 0 else size for size in sizes), dtype, name)


def _integer(kind: str) -> str:
    """ "u8" -> "uint8", "i4" -> "int4"."""
    return f"{'uint' if kind[0] == 'u' else 'int'}{int(kind[1:])}"


def _check(graph: _Graph, weights_bytes: int) -> None:
    """Raises KeyError or ValueError where an edge leads nowhere, or a constant lies outside the .bin."""
    for layer in graph.layers.values():
        list(graph.sources(layer))
        if layer.type == "Const":
            start, size = int(layer.attributes["offset"]), int(layer.attributes["size"])
            if start < 0 or size < 0 or start + size > weights_bytes:
                raise ValueError(layer.name)


def _op(graph: _Graph, index: int, layer: _Layer) -> OpInfo:
    weight = _weight(graph, layer)
    shape: tuple[int, ...] = ()
    dtype, stored = "", 0
    if weight is not None:
        (port,) = weight.outputs.values()
        shape, dtype = tuple(size or 0 for size in port.shape), port.dtype
        if weight.number not in graph.counted:  # a weight that two operators share is stored once
            graph.counted.add(weight.number)
            stored = int(weight.attributes["size"])
    outputs = list(layer.outputs.values())
    return OpInfo(
        index=index,
        name=layer.name,
        type=layer.type,
        output_shape=outputs[0].shape if outputs else (),
        weight_dtype=dtype,
        compute_dtype=_compute_dtype(graph, layer, dtype),
        weight_shape=shape,
        weight_bytes=stored,
        macs=_macs(graph, layer),
        layer=layer_of(weight.name.removesuffix(HALVED)) if weight is not None else "",
    )


def _weight(graph: _Graph, layer: _Layer) -> _Layer | None:
    """The operator's largest stored tensor; scalars, int64 (shapes, indices) and quantization's own do not count."""
    if layer.type == "FakeQuantize" or graph.constants.get(layer.number) is not None:
        return None
    found = []
    for source, _ in graph.sources(layer):
        constant = graph.constants.get(source.number)
        if constant is not None:
            (port,) = constant.outputs.values()
            if port.shape and port.dtype != "int64":
                found.append((math.prod(size or 0 for size in port.shape), constant))
    return max(found, key=lambda one: one[0])[1] if found else None


def _compute_dtype(graph: _Graph, layer: _Layer, weight_dtype: str) -> str:
    """ "uint8" where all that is read lies on 256 steps, and the weight is stored in 8 bits: which type of 8 bits the
    kernel takes is the plugin's choice."""
    data = [(source, port) for source, port in graph.sources(layer) if graph.constants.get(source.number) is None]
    if not data:
        return ""
    steps = [source.attributes.get("levels") for source, _ in data if source.type == "FakeQuantize"]
    if len(steps) == len(data) and set(steps) == {str(EIGHT_BITS)} and weight_dtype in ("", "int8", "uint8"):
        return "uint8"
    return data[0][1].dtype


def _macs(graph: _Graph, layer: _Layer) -> int:
    """Multiply-accumulates of one sample: each output element takes one for each weight that reaches it."""

    def size(shape: Shape, start: int = 0) -> int:
        return math.prod(1 if n is None else n for n in shape[start:])

    shapes = [port.shape for _, port in graph.sources(layer)]
    outputs = [port.shape for port in layer.outputs.values()]
    if layer.type in CONVOLUTIONS:
        return size(outputs[0], 1) * size(shapes[1], CONVOLUTIONS[layer.type])
    if layer.type in TRANSPOSED:  # kernels are [in, out / groups, …] and reach out from the input
        leading = TRANSPOSED[layer.type]
        return size(shapes[0], 1) * size(shapes[1], leading)
    if layer.type == "MatMul":
        data = shapes[0]
        across = data[-2 if layer.attributes.get("transpose_a") == "true" and len(data) > 1 else -1]
        return size(outputs[0], 1 if len(outputs[0]) > 1 else 0) * (across or 1)
    return 0
