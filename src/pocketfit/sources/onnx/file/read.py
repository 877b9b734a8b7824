"""Reads an .onnx file that a stranger may have written: sizes are checked before anything is allocated.

Runs in a child process only (open.py), because a damaged file may crash the libraries below.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pocketfit.core.errors import MissingPackage, UserError
from pocketfit.sources.onnx import tensors
from pocketfit.sources.onnx.file.graph import Graph, Node, Value

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

LARGEST_FILE = 2**31  # protobuf's own limit
MOST_NODES = 100_000
DEEPEST = 8  # branches within branches
NAME_SCOPES = "pkg.torch.onnx.name_scopes"  # what torch's exporter notes: the modules around an operator
AI_ONNX = ("", "ai.onnx")


def read(path: Path) -> tuple[ModelProto, Graph]:
    """The parsed file, its functions written out, and the same in plain values.

    Raises UserError, in one sentence, for what is no whole ONNX file, and for weights outside the file's folder.
    """
    model = parse(path)
    return model, to_graph(inlined(model), path.parent)


def parse(path: Path) -> ModelProto:
    """The file as protobuf, weights in other files not yet read."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingPackage("onnx", "onnxruntime") from error
    if not path.is_file():
        raise UserError("there is no such file")
    if path.stat().st_size > LARGEST_FILE:
        raise UserError("it is larger than 2 GiB, more than an ONNX file can be; its weights belong into a file beside")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, ValueError) as error:
        raise UserError("it is damaged, cut off, or no ONNX file") from error
    if not model.graph.node:
        raise UserError("it holds no network")
    graphs = [model.graph, *model.functions]
    if any(not isinstance(name, str) for graph in graphs for name in _texts(graph)):
        raise UserError("it is damaged: some of its names are no text")  # protobuf gives bytes for them
    # ONNX Runtime opens the file by itself: parts that are not read here must be safe for it, too.
    for part in (*graphs, *(g for info in model.training_info for g in (info.initialization, info.algorithm))):
        for tensor in _tensors(part):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                place_of(tensor, path.parent)
    return model


def whole(path: Path) -> bytes:
    """The file's bytes, weights in other files taken in.

    Raises UserError for what `parse` refuses, and where file and weights together exceed protobuf's limit.
    """
    from onnx import TensorProto as Proto

    model = parse(path)
    apart = [
        tensor
        for part in (model.graph, *model.functions)
        for tensor in _tensors(part)
        if tensor.data_location == Proto.EXTERNAL
    ]
    if not apart:
        return path.read_bytes()
    if sum(tensors.byte_count(tensor) for tensor in apart) + path.stat().st_size > LARGEST_FILE:
        raise UserError("it has more than 2 GiB of weights, which no single file can hold")
    for tensor in apart:
        fetch_external(tensor, path.parent)
    return bytes(model.SerializeToString())


def _tensors(graph: Any) -> Iterator[TensorProto]:
    """Every tensor in a graph or function, and in the branches inside."""
    yield from getattr(graph, "initializer", ())
    sparse = list(getattr(graph, "sparse_initializer", ()))
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)


def _texts(graph: Any) -> Iterator[Any]:
    """Every name in a graph or function, and in the branches inside."""
    yield from (graph.name, *(entry.domain for entry in getattr(graph, "opset_import", ())))
    for value in (*graph.input, *graph.output, *getattr(graph, "initializer", ())):
        yield getattr(value, "name", value)
    for node in graph.node:
        yield from (node.op_type, node.name, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
            if attribute.HasField("g"):
                yield from _texts(attribute.g)


def inlined(model: ModelProto) -> ModelProto:
    """The model with the file's own functions written out, so that it has standard operators only."""
    if not model.functions:
        return model
    import onnx.inliner

    _check_functions(model)
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # a library's error of any kind
        raise UserError(f"its functions can't be written out: {first_line(error)}") from error


def _check_functions(model: ModelProto) -> None:
    """Refuse functions that call themselves, or that grow without bound when they are written out."""
    bodies = {(f.domain, f.name): f.node for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(key: tuple[str, str], above: tuple[tuple[str, str], ...]) -> int:
        if key in above or len(above) > 50:
            raise UserError(f"its function '{key[1]}' calls itself")
        if key not in sizes:
            sizes[key] = sum(cost(node, (*above, key)) for node in bodies[key])
        return sizes[key]

    def cost(node: NodeProto, above: tuple[tuple[str, str], ...]) -> int:
        inner = sum(cost(n, above) for a in node.attribute for n in a.g.node)
        key = (node.domain, node.op_type)
        return inner + (size(key, above) if key in bodies else 1)

    if sum(cost(node, ()) for node in model.graph.node) > MOST_NODES:
        raise UserError(f"written out, its functions have more than {MOST_NODES} operators")


def to_graph(model: ModelProto, folder: Path) -> Graph:
    """The same network in plain values; each node stands behind those whose outputs it reads."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    reader = _Reader(folder, {"" if domain in AI_ONNX else domain: v for domain, v in versions.items()})
    graph = reader.graph(model.graph, frozenset(), 0)
    return Graph(
        graph.inputs,
        graph.outputs,
        graph.nodes,
        graph.constants,
        graph.unreadable,
        {entry.key: entry.value for entry in model.metadata_props},
    )


class _Reader:
    def __init__(self, folder: Path, versions: Mapping[str, int]) -> None:
        self.folder, self.versions, self.nodes_read = folder, versions, 0

    def graph(self, proto: GraphProto, outer: frozenset[str], depth: int) -> Graph:
        """`outer`: names that a branch can see from the graphs around it."""
        if depth > DEEPEST:
            raise UserError(f"it has branches within branches, {DEEPEST} deep and more")
        self.nodes_read += len(proto.node)
        if self.nodes_read > MOST_NODES:
            raise UserError(f"it has more than {MOST_NODES} operators")
        constants, unreadable = self._stored(proto)
        inputs = [value for value in proto.input if value.name not in constants and value.name not in unreadable]
        here = {*constants, *unreadable, *(value.name for value in inputs)}
        nodes = in_order(list(proto.node), outer | here)
        for node in nodes:
            here |= {name for name in node.output if name}
        missing = [value.name for value in proto.output if value.name not in outer | here]
        if missing:
            raise UserError(f"nothing makes its output '{missing[0]}'")
        visible = frozenset(outer | here)
        return Graph(
            tuple(_value(value) for value in inputs),
            tuple(_value(value) for value in proto.output),
            tuple(self._node(node, visible, depth) for node in nodes),
            constants,
            unreadable,
        )

    def _stored(self, proto: GraphProto) -> tuple[dict[str, Tensor], dict[str, str]]:
        constants: dict[str, Tensor] = {}
        unreadable: dict[str, str] = {}
        for name, tensor in self._initializers(proto):
            try:
                constants[name] = tensor()
            except tensors.Unreadable as reason:
                unreadable[name] = str(reason)
        return constants, unreadable

    def _initializers(self, proto: GraphProto) -> Iterator[tuple[str, Any]]:
        for tensor in proto.initializer:
            yield tensor.name, lambda tensor=tensor: self._tensor(tensor)
        for sparse in proto.sparse_initializer:
            yield sparse.values.name, lambda sparse=sparse: tensors.dense(sparse, self._tensor)

    def _tensor(self, proto: TensorProto) -> Tensor:
        from onnx import TensorProto as Proto

        if proto.data_location == Proto.EXTERNAL:
            fetch_external(proto, self.folder)
        return tensors.to_torch(proto)

    def _node(self, proto: NodeProto, visible: frozenset[str], depth: int) -> Node:
        domain = "" if proto.domain in AI_ONNX else proto.domain
        attributes = {a.name: self._attribute(proto, a, visible, depth) for a in proto.attribute}
        return Node(
            operator=proto.op_type,
            domain=domain,
            version=self.versions.get(domain, 1),
            name=proto.name,
            scope=scope_of(proto),
            inputs=tuple(proto.input),
            outputs=tuple(proto.output),
            attributes=attributes,
        )

    def _attribute(self, node: NodeProto, proto: Any, visible: frozenset[str], depth: int) -> Any:
        from onnx import AttributeProto as Kind

        plain: dict[Any, Callable[[], Any]] = {
            Kind.FLOAT: lambda: proto.f,
            Kind.INT: lambda: proto.i,
            Kind.STRING: lambda: proto.s.decode("utf-8", "replace"),
            Kind.FLOATS: lambda: list(proto.floats),
            Kind.INTS: lambda: list(proto.ints),
            Kind.STRINGS: lambda: [text.decode("utf-8", "replace") for text in proto.strings],
            Kind.GRAPH: lambda: self.graph(proto.g, visible, depth + 1),
        }
        if proto.type in plain:
            return plain[proto.type]()
        try:
            if proto.type == Kind.TENSOR:
                return self._tensor(proto.t)
            if proto.type == Kind.SPARSE_TENSOR:
                return tensors.dense(proto.sparse_tensor, self._tensor)
        except tensors.Unreadable as reason:
            return f"unreadable: {reason}"
        raise UserError(f"the operator {node.op_type} '{node.name}' has an attribute of an unknown kind")


def in_order(nodes: list[NodeProto], known: frozenset[str] | set[str]) -> list[NodeProto]:
    """Nodes sorted so that each stands behind those whose outputs it reads. Raises UserError for a cycle."""
    made = Counter(name for node in nodes for name in node.output if name)
    twice = next((name for name, count in made.items() if count > 1 or name in known), None)
    if twice is not None:
        raise UserError(f"two operators make the same value '{twice}'")
    open_reads = [{name for name in reads(node) if name and name not in known} for node in nodes]
    readers: dict[str, list[int]] = {}
    for place, names in enumerate(open_reads):
        for name in names:
            readers.setdefault(name, []).append(place)
            if name not in made:
                raise UserError(f"nothing makes the value '{name}', which {nodes[place].op_type} reads")
    ready = [place for place, names in enumerate(open_reads) if not names]
    order: list[int] = []
    while ready:
        freed = []
        order += ready
        for place in ready:
            for name in nodes[place].output:
                for reader in readers.get(name, ()):
                    open_reads[reader].discard(name)
                    if not open_reads[reader]:
                        freed.append(reader)
                readers.pop(name, None)
        ready = sorted(set(freed))
    if len(order) < len(nodes):
        stuck = nodes[min(set(range(len(nodes))) - set(order))]
        raise UserError(f"its operators go in a circle: {stuck.op_type} '{stuck.name}' waits for its own output")
    return [nodes[place] for place in order] if order != sorted(order) else nodes


def reads(node: NodeProto) -> list[str]:
    """What a node needs: its inputs, and what its branches take from outside."""
    names = list(node.input)
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
            inside = {v.name for v in (*graph.input, *graph.initializer)} | {o for n in graph.node for o in n.output}
            inside |= {sparse.values.name for sparse in graph.sparse_initializer}
            names += [name for n in graph.node for name in reads(n) if name not in inside]
            names += [value.name for value in graph.output if value.name not in inside]
    return names


def fetch_external(tensor: TensorProto, folder: Path) -> None:
    """Read numbers that lie in a file beside the model into the tensor.

    Only regular files inside the model's folder are opened: no absolute path, no "..", no link that leads out.
    """
    from onnx import TensorProto

    about = {entry.key: entry.value for entry in tensor.external_data}
    file, location = place_of(tensor, folder), about.get("location", "")
    if not file.is_file():
        raise UserError(f"the file {location!r} with its weights '{tensor.name}' is not there")
    try:
        offset, length = int(about.get("offset") or 0), int(about["length"]) if about.get("length") else None
    except ValueError as error:
        raise UserError(f"the place of its weights '{tensor.name}' in {location!r} is no number") from error
    wanted = tensors.byte_count(tensor)
    if (length is not None and length != wanted) or offset < 0 or offset + wanted > file.stat().st_size:
        raise UserError(f"the file {location!r} is too short for its weights '{tensor.name}', or of another model")
    with file.open("rb") as opened:
        opened.seek(offset)
        tensor.raw_data = opened.read(wanted)
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def place_of(tensor: TensorProto, folder: Path) -> Path:
    """The file that holds the tensor's numbers. Raises UserError where that is outside of the model's folder."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    parts = PurePosixPath(location.replace("\\", "/"))
    outside = not location or parts.is_absolute() or ".." in parts.parts or ":" in location or "\0" in location
    file = folder / location
    if outside or not file.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"its weights '{tensor.name}' lie in {location!r}, outside of the folder of the file")
    return file


def scope_of(node: NodeProto) -> str:
    """The innermost torch module that the operator came from: "['', 'features', 'features.0', 'conv2d']" -> it."""
    noted = next((entry.value for entry in node.metadata_props if entry.key == NAME_SCOPES), "")
    try:
        scopes = ast.literal_eval(noted) if 0 < len(noted) < 10_000 else []
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""


def _value(proto: ValueInfoProto) -> Value:
    kind = proto.type.WhichOneof("value")
    if kind != "tensor_type":
        return Value(proto.name, kind or "", None)
    about = proto.type.tensor_type
    dtype = None if about.elem_type in (tensors.UINT4, tensors.INT4) else tensors.DTYPES.get(about.elem_type)
    shape: tuple[int | str | None, ...] | None = None
    if about.HasField("shape"):
        shape = tuple(
            size.dim_value if size.HasField("dim_value") and size.dim_value >= 0 else size.dim_param or None
            for size in about.shape.dim
        )
        if math.prod(size for size in shape if isinstance(size, int)) > tensors.MOST_NUMBERS:
            raise UserError(f"its '{proto.name}' of shape {list(shape)} is larger than any memory")
    return Value(proto.name, str(dtype).removeprefix("torch.") if dtype else "text", shape)


def first_line(error: BaseException) -> str:
    """The message of an error in one line, to be put into a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
