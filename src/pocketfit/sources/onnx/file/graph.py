"""An ONNX graph in plain values: the form in which the child process hands on a file that it has read.

The child parses the file, which may be malicious; it writes this form as JSON (structure) and safetensors (numbers), so
that no other process ever parses a stranger's protobuf.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

STRUCTURE, NUMBERS = "graph.json", "constants.safetensors"


@dataclass(frozen=True)
class Value:
    """A named input or output. `dtype` is torch's name for it; a size is a number, an axis by name, or None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator of the file.

    version     version of the operator set that it belongs to
    scope       dotted name of the torch module that it was exported from, "" where the file doesn't say
    attributes  numbers, texts, lists of them, tensors, or graphs (branches and loop bodies)
    """

    operator: str
    domain: str
    version: int
    name: str
    scope: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.operator} '{self.name or next(filter(None, self.outputs), '')}'"


@dataclass(frozen=True)
class Graph:
    """A whole network, or one branch of it.

    constants   the tensors that the file stores, by name
    unreadable  the reason for each constant that no torch tensor can hold, by name
    metadata    the exporter's notes ("character": the letters of a text recogniser, ...)
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def all_nodes(self) -> Iterator[Node]:
        """All nodes, those of branches and loop bodies included."""
        for node in self.nodes:
            yield node
            for value in node.attributes.values():
                if isinstance(value, Graph):
                    yield from value.all_nodes()


def save_graph(graph: Graph, folder: Path) -> None:
    """Writes graph.json and constants.safetensors into the folder."""
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_to_json(graph, tensors))
    (folder / NUMBERS).write_bytes(save(tensors))
    (folder / STRUCTURE).write_text(structure)


def load_graph(folder: Path) -> Graph:
    """The inverse of `save_graph`."""
    return _from_json(json.loads((folder / STRUCTURE).read_text()), load_file(folder / NUMBERS))


def _to_json(graph: Graph, tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "inputs": [[v.name, v.dtype, v.shape] for v in graph.inputs],
        "outputs": [[v.name, v.dtype, v.shape] for v in graph.outputs],
        "nodes": [
            [n.operator, n.domain, n.version, n.name, n.scope, n.inputs, n.outputs, _attributes(n.attributes, tensors)]
            for n in graph.nodes
        ],
        "constants": {name: _kept(tensor, tensors) for name, tensor in graph.constants.items()},
        "unreadable": dict(graph.unreadable),
        "metadata": dict(graph.metadata),
    }


def _attributes(attributes: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    packed: dict[str, Any] = {}
    for name, value in attributes.items():
        if isinstance(value, Tensor):
            packed[name] = {"tensor": _kept(value, tensors)}
        elif isinstance(value, Graph):
            packed[name] = {"graph": _to_json(value, tensors)}
        else:
            packed[name] = value
    return packed


def _kept(tensor: Tensor, tensors: dict[str, Tensor]) -> str:
    key = str(len(tensors))
    tensors[key] = tensor.clone(memory_format=torch.contiguous_format)
    return key


def _from_json(data: dict[str, Any], tensors: Mapping[str, Tensor]) -> Graph:
    return Graph(
        tuple(_value(*entry) for entry in data["inputs"]),
        tuple(_value(*entry) for entry in data["outputs"]),
        tuple(
            Node(
                operator=op,
                domain=domain,
                version=version,
                name=name,
                scope=scope,
                inputs=tuple(inputs),
                outputs=tuple(outputs),
                attributes=_unpacked(attributes, tensors),
            )
            for op, domain, version, name, scope, inputs, outputs, attributes in data["nodes"]
        ),
        {name: tensors[key] for name, key in data["constants"].items()},
        data["unreadable"],
        data["metadata"],
    )


def _value(name: str, dtype: str, shape: list[int | str | None] | None) -> Value:
    return Value(name, dtype, None if shape is None else tuple(shape))


def _unpacked(attributes: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    unpacked: dict[str, Any] = {}
    for name, value in attributes.items():
        if isinstance(value, dict):
            graph = value.get("graph")
            unpacked[name] = tensors[value["tensor"]] if graph is None else _from_json(graph, tensors)
        else:
            unpacked[name] = value
    return unpacked
