"""A graph in the form that a Model takes: a batch of any size, all other sizes known, float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pocketfit.core.errors import UserError
from pocketfit.core.support.text import some
from pocketfit.sources.onnx.file.graph import Graph, Node, Value
from pocketfit.sources.onnx.file.specialise import with_sizes
from pocketfit.sources.onnx.tensors import DTYPES

BATCH = "batch"
Shapes = Sequence[int] | Mapping[str, Sequence[int]]
OTHER_FLOATS = ("float16", "bfloat16", "float64")  # Models start from float32
FLOAT32 = next(number for number, dtype in DTYPES.items() if dtype is torch.float32)
NUMBERS = {number for number, dtype in DTYPES.items() if str(dtype).removeprefix("torch.") in OTHER_FLOATS}


@dataclass(frozen=True)
class Fitted:
    """One way to read the graph.

    own_batch  the batch that the file fixes, 0 where it is dynamic
    free       how the batch became dynamic: 0 in the file, 1 as a size of the input, 2 in the targets of Reshape, too
    """

    graph: Graph
    own_batch: int
    free: int


def sizes_for(graph: Graph, shape: Shapes | None, *, exact: bool) -> dict[str, int]:
    """Sizes of the axes besides the batch that the file leaves dynamic, as "input:dimension" -> size.

    shape  of one sample; by name where the file has several inputs. A shape without a name is for every input with as
           many axes that leaves some open
    exact  whether sizes that the file fixes have to be those of `shape`

    Raises UserError where a size is not known or another one, and for an input that the file does not have.
    """
    _refuse_states(graph)
    if not isinstance(shape, Mapping) and len(graph.inputs) == 1:
        return _sizes_of(graph.inputs[0], shape, exact=exact)
    names = [value.name for value in graph.inputs]
    shapes = shape if isinstance(shape, Mapping) else {}
    if unknown := [name for name in shapes if name not in names]:
        raise UserError(f"it has no input '{unknown[0]}'; its inputs are {some(names, 8)}")
    found: dict[str, int] = {}
    for value in graph.inputs:
        own = value.shape or ()
        open_axes = any(not isinstance(axis, int) for axis in own[1:])
        whole = not isinstance(shape, Mapping) and shape is not None and open_axes and len(shape) == len(own) - 1
        found |= _sizes_of(value, shape if whole else shapes.get(value.name), exact=exact)  # type: ignore[arg-type]
    return found


def _refuse_states(graph: Graph) -> None:
    """Raises UserError for an input that is fed by an output, as the names say (state and stateN, h and hn), and whose
    first axis is not the batch: nothing says then how a step follows another."""
    for given in graph.inputs[1:]:
        fed_by = [value.name for value in graph.outputs[1:] if value.name.startswith(given.name)]
        batches = [(value.shape or (None,))[0] for value in (given, graph.inputs[0])]
        if fed_by and given.dtype.startswith("float") and batches[0] != batches[1]:
            raise UserError(
                f"its input '{given.name}' is a state, which its output '{fed_by[0]}' gives for the next step, and"
                " pocketfit runs no network step by step: export it for a whole sequence, with a state of zeros inside"
            )


def _sizes_of(value: Value, shape: Sequence[int] | None, *, exact: bool) -> dict[str, int]:
    if not value.shape:
        raise UserError(f"its input '{value.name}' has no dimension for the batch")
    own = value.shape[1:]
    dynamic = {dim: axis for dim, axis in enumerate(own, 1) if not isinstance(axis, int)}
    if shape is not None and len(shape) != len(own) and (exact or dynamic):
        raise UserError(
            f"a sample of its input '{value.name}' is {_words(own)}, and the input shape given is {_words(shape)}"
        )
    if dynamic and shape is None:
        axes = some([f"{dim} ('{axis}')" if axis and axis != "?" else f"{dim}" for dim, axis in dynamic.items()])
        raise UserError(
            f"its input '{value.name}' leaves the size of {'axis' if len(dynamic) == 1 else 'axes'} {axes} open: say"
            f" with --input-shape what to feed, for {_words(own)}"
        )
    for dim, (size, wanted) in enumerate(zip(own, shape or (), strict=False), 1):
        if exact and isinstance(size, int) and size != wanted:
            raise UserError(
                f"the size of axis {dim} of its input '{value.name}' is {size}, and the input shape given is"
                f" {_words(shape or ())}"
            )
    return {f"{value.name}:{dim}": (shape or ())[dim - 1] for dim in dynamic}


def readings(graph: Graph, sizes: Mapping[str, int]) -> list[Fitted]:
    """The ways to read a graph, the most literal one first; the right one is the first that answers as
    the file does, row by row."""
    graph = with_sizes(graph, sizes)
    batches = [(value.shape or (None,))[0] for value in graph.inputs]
    if not any(isinstance(batch, int) for batch in batches):
        return [Fitted(graph, 0, 0)]
    batch = batches[0]
    if not isinstance(batch, int) or set(batches) != {batch}:
        names = some([value.name for value in graph.inputs], 8)
        raise UserError(
            f"its inputs ({names}) have different batches, {some(list(map(str, batches)), 8)}: give each one first axis"
        )
    if batch < 1:
        raise UserError(f"its input '{graph.inputs[0].name}' has a batch of {batch}")
    free = _with_free_batch(graph, batch)
    return [Fitted(free, batch, 1), Fitted(_with_free_targets(free, batch), batch, 2)]


def in_float32(graph: Graph) -> tuple[Graph, str]:
    """The graph with float32 in place of other floats, and a sentence about it, "" where nothing changed."""
    found = sorted({kind for kind in map(_kind, graph.constants.values()) if kind in OTHER_FLOATS})
    found += [value.dtype for value in graph.inputs if value.dtype in OTHER_FLOATS and value.dtype not in found]
    if not found:
        return graph, ""
    return _converted(graph), f"The file's numbers are {' and '.join(found)}: the network computes in float32"


def _kind(tensor: Tensor) -> str:
    """The dtype of a stored tensor, "" of a single number."""
    return str(tensor.dtype).removeprefix("torch.") if tensor.numel() > 1 else ""


def _converted(graph: Graph) -> Graph:
    def value(given: Value) -> Value:
        return replace(given, dtype="float32") if given.dtype in OTHER_FLOATS else given

    return replace(
        graph,
        inputs=tuple(map(value, graph.inputs)),
        outputs=tuple(map(value, graph.outputs)),
        nodes=tuple(
            replace(node, attributes={name: _attribute(name, given) for name, given in node.attributes.items()})
            for node in graph.nodes
        ),
        constants={name: _tensor(tensor) for name, tensor in graph.constants.items()},
    )


def _attribute(name: str, given: Any) -> Any:
    if isinstance(given, Tensor):
        return _tensor(given)
    if isinstance(given, Graph):
        return _converted(given)
    return FLOAT32 if name in ("to", "dtype") and isinstance(given, int) and given in NUMBERS else given


def _tensor(tensor: Tensor) -> Tensor:
    return tensor.float() if str(tensor.dtype).removeprefix("torch.") in OTHER_FLOATS else tensor


def _with_free_batch(graph: Graph, batch: int) -> Graph:
    def freed(value: Value) -> Value:
        same = value.shape and value.shape[0] == batch
        return replace(value, shape=(BATCH, *(value.shape or ())[1:])) if same else value

    return replace(graph, inputs=tuple(map(freed, graph.inputs)), outputs=tuple(map(freed, graph.outputs)))


def _with_free_targets(graph: Graph, batch: int) -> Graph:
    """Targets of Reshape that begin with the batch begin with 0, which is the size of what is reshaped."""
    stored = dict(graph.constants)
    stored |= {
        node.outputs[0]: node.attributes["value"]
        for node in graph.nodes
        if node.operator == "Constant" and isinstance(node.attributes.get("value"), Tensor)
    }
    constants = dict(graph.constants)

    def freed(node: Node) -> Node:
        if node.operator != "Reshape" or node.domain or not node.inputs or node.inputs[0] in stored:
            return node
        if isinstance(target := node.attributes.get("shape"), list):  # files of old
            return replace(node, attributes={**node.attributes, "shape": _from_input(target, batch)})
        held = stored.get(node.inputs[1]) if len(node.inputs) > 1 else None
        if held is None or held.ndim != 1 or held.dtype != torch.int64 or node.attributes.get("allowzero", 0):
            return node
        name = f"{node.inputs[1]} of any batch"
        constants[name] = torch.tensor(_from_input(held.tolist(), batch), dtype=torch.int64)
        return replace(node, inputs=(node.inputs[0], name, *node.inputs[2:]))

    change: Callable[[Node], Node] = freed
    return replace(graph, nodes=tuple(map(change, graph.nodes)), constants=constants)


def _from_input(target: list[int], batch: int) -> list[int]:
    return [0, *target[1:]] if len(target) > 1 and target[0] == batch else target


def _words(shape: Sequence[Any]) -> str:
    """(3, "h", None) -> "3x?x?"."""
    return "x".join(str(size) if isinstance(size, int) else "?" for size in shape) or "one number"
