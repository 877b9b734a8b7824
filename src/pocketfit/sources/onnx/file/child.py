"""The child process: read a file, convert it, compare it with ONNX Runtime, and hand it over as plain values.

Everything here returns JSON and raises UserError; damage that the libraries do stays in this process.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketfit.core.errors import UserError

if TYPE_CHECKING:
    from pocketfit.sources.onnx.file.for_model import Shapes
    from pocketfit.sources.onnx.file.graph import Graph


LONGEST_SENTENCE = 500
FREE = "free"  # beside the sizes of axes, whose keys have a colon
FILE = "model.onnx"


def preload() -> None:
    """Load what the children of a fork server share; not onnxruntime, which starts a thread (fork_server.py)."""
    import onnx.inliner
    import onnx.shape_inference  # noqa: F401
    import torch

    from pocketfit.sources.onnx.convert import convert
    from pocketfit.sources.onnx.file.graph import Graph, Node, Value

    torch.set_num_threads(1)
    node = Node(
        operator="Relu", domain="", version=14, name="a", scope="", inputs=("x",), outputs=("y",), attributes={}
    )
    values = [Value(name, "float32", ("n", 2)) for name in "xy"]
    convert(Graph((values[0],), (values[1],), (node,), {}))  # loads torch's symbols for sizes


def prepare(
    path: str, folder: str, sizes: Mapping[str, int], fixed: Mapping[str, Any], check: bool, memory_bytes: int
) -> dict[str, Any]:
    """Write the graph of the file into `folder` (graph.py), converted once and compared with ONNX Runtime.

    -> {"findings": [...], "difference": largest difference of an output in parts of its largest number, or None,
    "tried": [the shapes of the inputs], ...}
    """
    limit_memory(memory_bytes)
    from pocketfit.sources.onnx.file.graph import save_graph

    graph, result = prepared(Path(path), sizes, fixed, check=check)
    save_graph(graph, Path(folder))
    return result


def prepare_model(
    path: str,
    folder: str,
    shape: Shapes | None,
    exact: bool,
    arguments: Mapping[str, int] | None,
    memory_bytes: int,
) -> dict[str, Any]:
    """As `prepare`, in the form that a Model takes (for_model.py); the file itself, weights and all, is written to
    <folder>/model.onnx.

    shape, exact  the user's, of one sample
    arguments     of an earlier call: the graph is read as it was then, and not compared again

    -> what `prepare` gives, "arguments": the sizes of dynamic axes, and "free" (Fitted.free)
    """
    limit_memory(memory_bytes)
    from pocketfit.sources.onnx.file.graph import save_graph
    from pocketfit.sources.onnx.file.read import whole

    graph, result = prepared_model(Path(path), shape, arguments, exact=exact)
    save_graph(graph, Path(folder))
    try:
        Path(folder, FILE).write_bytes(whole(Path(path)))
    except UserError as error:
        raise UserError(one_line(str(error))) from error
    return result


def prepared(
    path: Path, sizes: Mapping[str, int], fixed: Mapping[str, Any], *, check: bool
) -> tuple[Graph, dict[str, Any]]:
    """The graph of a file, and what `prepare` returns."""
    from pocketfit.sources.onnx import compare
    from pocketfit.sources.onnx.convert import convert
    from pocketfit.sources.onnx.file.specialise import specialise

    try:
        graph = specialise(_graph(path), sizes, fixed)
        network, findings = convert(graph)
    except UserError as error:  # a damaged file's names may hold anything
        raise UserError(one_line(str(error))) from error
    result: dict[str, Any] = {"difference": None, "tried": [], "findings": list(findings)}
    if check:
        checked = compare.check(path, graph, network, fixed)
        result |= {"difference": checked.difference, "tried": list(checked.tried)}
        result["findings"] += checked.findings
    return graph, result


def prepared_model(
    path: Path, shape: Shapes | None, arguments: Mapping[str, int] | None, *, exact: bool
) -> tuple[Graph, dict[str, Any]]:
    """The graph of a file in the form that a Model takes, and what `prepare_model` returns."""
    from pocketfit.sources.onnx import compare
    from pocketfit.sources.onnx.convert import convert
    from pocketfit.sources.onnx.file.for_model import Fitted, in_float32, readings, sizes_for
    from pocketfit.sources.onnx.file.specialise import with_sizes

    def read(one: Fitted) -> dict[str, Any]:
        network, findings = convert(one.graph)
        if arguments is not None:
            return {"difference": None, "tried": [], "findings": list(findings)}
        checked = compare.check(path, one.graph, network, {}, own_batch=one.own_batch)
        if one.free and checked.difference is None:
            raise UserError(" ".join(checked.findings))
        found = {"difference": checked.difference, "tried": list(checked.tried)}
        return found | {"findings": [*findings, *checked.findings]}

    try:
        graph, said = in_float32(_graph(path))
        if arguments is None:
            sizes = sizes_for(graph, shape, exact=exact)
        else:
            sizes = {axis: size for axis, size in arguments.items() if axis != FREE}
        ways = readings(graph, sizes)
        if arguments is not None:
            ways = [way for way in ways if way.free == arguments.get(FREE, 0)]
        first: UserError | None = None
        for way in ways:
            try:
                result = read(way)
            except UserError as error:
                first = first or error
                continue
            result["findings"] = [*filter(None, [said]), *result["findings"]]
            return way.graph, {**result, "arguments": {**sizes, FREE: way.free}}
        if first is None:
            raise UserError("its batch is another one than when the model was saved")
        if not ways[0].free:
            raise first
        convert(with_sizes(graph, sizes))  # says what is wrong with the file as it is
        raise UserError(
            f"its batch is fixed to {ways[0].own_batch} and can't be freed: export it with a dynamic batch ({first})"
        )
    except UserError as error:
        raise UserError(one_line(str(error))) from error


def _graph(path: Path) -> Graph:
    from pocketfit.sources.onnx.file.normalise import written_out
    from pocketfit.sources.onnx.file.read import inlined, parse, to_graph

    return to_graph(written_out(inlined(parse(path))), path.parent)


def one_line(message: str) -> str:
    """The message without line breaks and terminal control characters, and not longer than a sentence."""
    plain = " ".join("".join(sign if sign.isprintable() else " " for sign in message).split())
    return plain if len(plain) <= LONGEST_SENTENCE else f"{plain[:LONGEST_SENTENCE]} ..."


def run(path: str, inputs: str, outputs: str, names: Sequence[str] | None, memory_bytes: int) -> dict[str, Any]:
    """Run the file in ONNX Runtime: arrays "0", "1", ... in the .npz `inputs` -> arrays "0", "1", ... in `outputs`.

    names  names of the inputs, where they are not all of the file's in their order

    Returns the outputs' names, and how far each moves when the inputs are nudged.
    """
    limit_memory(memory_bytes)
    import numpy as np

    from pocketfit.sources.onnx.compare import noise_of, reason_of, session

    try:
        opened = session(Path(path))
        with np.load(inputs, allow_pickle=False) as archive:
            given = names if names is not None else [value.name for value in opened.get_inputs()]
            feed = {name: archive[str(i)] for i, name in enumerate(given[: len(archive.files)])}
        answers = opened.run(None, feed)
    except Exception as error:  # ONNX Runtime's own errors
        raise UserError(f"ONNX Runtime can't run it on these inputs: {reason_of(error)}") from error
    np.savez(outputs, **{str(i): answer for i, answer in enumerate(answers)})
    return {"names": [value.name for value in opened.get_outputs()], "noise": noise_of(opened, feed, answers)}


def limit_memory(more_bytes: int) -> None:
    """Limit the address space of this process to what it has now plus `more_bytes`; on Linux only.

    The parent checks resident memory twenty times a second, and one allocation in between may exceed the machine.
    """
    if sys.platform != "linux":
        return
    import resource

    import psutil
    import torch  # noqa: F401  (its libraries map several gigabytes that they never touch)

    limit = psutil.Process().memory_info().vms + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
