"""Opens an .onnx file as a network of torch that can be trained, pruned and exported."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, fx

from pocketfit.core.errors import ExportFailed, UserError
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.processes import child_process
from pocketfit.sources.onnx import compare
from pocketfit.sources.onnx.convert import convert
from pocketfit.sources.onnx.file.child import FILE
from pocketfit.sources.onnx.file.for_model import Shapes
from pocketfit.sources.onnx.file.graph import Graph, Value, load_graph

CHILD = "pocketfit.sources.onnx.file.child"
TIMEOUT_S = 600.0
MEMORY_BYTES = 8 * 2**30


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A network from an ONNX file.

    network     in eval mode; layers have the names of their weights
    signature   named inputs and outputs; None where a size is dynamic
    axes        input name -> dimension -> name of the dynamic axis ("" where the file gives none)
    metadata    what the exporter noted in the file (a text recogniser's "character", ...)
    difference  from ONNX Runtime, in parts of the largest number of an output; None: it was not compared
    findings    sentences for the user
    sha256      of the file
    file        of what open_for_model opens: the file's bytes, weights in other files taken in
    arguments   of what open_for_model opens: how the file was read, for its `arguments`
    """

    network: fx.GraphModule
    signature: Signature
    axes: Mapping[str, Mapping[int, str]]
    metadata: Mapping[str, str]
    difference: float | None
    findings: tuple[str, ...]
    sha256: str
    file: bytes = field(default=b"", repr=False)
    arguments: Mapping[str, int] = field(default_factory=dict)


def open_onnx(
    path: str | Path,
    *,
    sizes: Mapping[str, int] | None = None,
    fixed: Mapping[str, Any] | None = None,
    check: bool = True,
    timeout_s: float = TIMEOUT_S,
    memory_bytes: int = MEMORY_BYTES,
) -> Converted:
    """The network of an .onnx file; with `check`, compared with ONNX Runtime at two sizes of its dynamic axes.

    sizes   dynamic axes to fix: axis name, or "input:dimension", -> size
    fixed   inputs to fix: name -> its only value (a number or nested lists), so that branches can be resolved

    Raises UserError: one sentence that names the file, and the operator or value that cannot be converted.
    """
    path = Path(path)
    sizes, fixed = dict(sizes or {}), {name: _plain(value) for name, value in (fixed or {}).items()}
    if not path.is_file():
        raise UserError(f"{path} is no file")
    payload = {
        "path": str(path.absolute()),
        "sizes": sizes,
        "fixed": fixed,
        "check": check,
        "memory_bytes": memory_bytes,
    }
    with tempfile.TemporaryDirectory(prefix="pocketfit-") as folder:
        about = _in_child(path, "prepare", payload | {"folder": folder}, timeout_s, memory_bytes)
        graph = load_graph(Path(folder))
    return _converted(path, graph, about, hashlib.sha256(path.read_bytes()).hexdigest())


def open_for_model(
    path: str | Path,
    *,
    shape: Shapes | None = None,
    exact: bool = False,
    arguments: Mapping[str, int] | None = None,
    timeout_s: float = TIMEOUT_S,
    memory_bytes: int = MEMORY_BYTES,
) -> Converted:
    """The network of an .onnx file in the form that a Model takes: a batch of any size, all other sizes known,
    float32. It is compared with ONNX Runtime.

    shape      of one sample, for axes that the file leaves dynamic; by name where it has several inputs
    exact      whether `shape` has to agree with the sizes that the file fixes
    arguments  Converted.arguments of an earlier call: read again in the same way, without a comparison

    Raises UserError: one sentence that names the file, and the operator or value that cannot be converted.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is no file")
    payload = {
        "path": str(path.absolute()),
        "shape": None if shape is None else _plain_shapes(shape),
        "exact": exact,
        "arguments": None if arguments is None else dict(arguments),
        "memory_bytes": memory_bytes,
    }
    with tempfile.TemporaryDirectory(prefix="pocketfit-") as folder:
        about = _in_child(path, "prepare_model", payload | {"folder": folder}, timeout_s, memory_bytes)
        graph, file = load_graph(Path(folder)), Path(folder, FILE).read_bytes()
    found = _converted(path, graph, about, hashlib.sha256(file).hexdigest())
    return replace(found, file=file, arguments=about["arguments"])


def _converted(path: Path, graph: Graph, about: Mapping[str, Any], sha256: str) -> Converted:
    try:
        network, _ = convert(graph)
    except UserError as error:  # the child has converted the same graph
        raise UserError(f"{path}: {error}") from error
    return Converted(
        network=network,
        signature=Signature(tuple(map(_spec, graph.inputs)), tuple(map(_spec, graph.outputs))),
        axes={value.name: _axes(value) for value in graph.inputs},
        metadata=graph.metadata,
        difference=about["difference"],
        findings=tuple(f"{finding.rstrip('.')}." for finding in about["findings"]),
        sha256=sha256,
    )


def check_against_onnxruntime(
    path: str | Path, network: Any, inputs: Sequence[Tensor] | Mapping[str, Tensor], *, timeout_s: float = TIMEOUT_S
) -> float:
    """The largest difference between network and file on these inputs, in parts of an output's largest number.

    `inputs` in the order of the file's inputs, or by name. Raises UserError beyond compare.TOLERANCE (1e-3 in
    float32, 3e-2 in 16 bits), and for outputs of another shape.
    """
    path = Path(path)
    names = list(inputs) if isinstance(inputs, Mapping) else None
    tensors: list[Tensor] = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
    with tempfile.TemporaryDirectory(prefix="pocketfit-") as folder:
        given, answers = str(Path(folder, "in.npz")), str(Path(folder, "out.npz"))
        arrays: dict[str, Any] = {str(i): tensor.numpy() for i, tensor in enumerate(tensors)}
        np.savez(given, **arrays)
        payload = {
            "path": str(path.absolute()),
            "inputs": given,
            "outputs": answers,
            "names": names,
            "memory_bytes": MEMORY_BYTES,
        }
        about = _in_child(path, "run", payload, timeout_s, MEMORY_BYTES)
        with np.load(answers, allow_pickle=False) as archive:
            wanted = [archive[str(i)] for i in range(len(archive.files))]
    try:
        return compare.differences(network, tensors, wanted, about["names"], about["noise"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _in_child(path: Path, function: str, payload: Mapping[str, Any], timeout_s: float, memory_bytes: int) -> Any:
    """Call a function of child.py in a process of its own; every error names the file."""
    try:
        return child_process.call(
            f"{CHILD}:{function}",
            payload,
            timeout_s=timeout_s,
            memory_bytes=2 * memory_bytes,
            server=f"{CHILD}:preload",
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except ExportFailed as error:
        raise UserError(f"{path} can't be opened: {_plainly(str(error))}") from error


def _plainly(message: str) -> str:
    """ "The step sources.onnx.file.child.prepare died with ..." -> "reading it died with ..." """
    step, _, end = message.replace("prepare_model ", "prepare ").partition("prepare ")
    return f"reading it {end}" if end and step.startswith("The step") else message[:1].lower() + message[1:]


def _plain_shapes(shape: Shapes) -> Any:
    return {name: list(one) for name, one in shape.items()} if isinstance(shape, Mapping) else list(shape)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _spec(value: Value) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in value.shape or ())
    picture = len(shape) == 4 and shape[1] in (1, 3, 4)
    return TensorSpec(value.name, shape, value.dtype, "NCHW" if picture else "")


def _axes(value: Value) -> dict[int, str]:
    return {i: size or "" for i, size in enumerate(value.shape or ()) if not isinstance(size, int)}
