"""The first step of a conversion: composite operators are written out as the ONNX standard defines them.

Nothing else is rewritten. onnx's version converter breaks real files (docs/results/notes.md, "ONNX files"), and
onnxscript's optimizer folds batch norms, which a network needs for training. So the handlers read the operators of all
versions, and compute constants themselves (builder.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pocketfit.core.errors import UserError
from pocketfit.sources.onnx.file.read import AI_ONNX, MOST_NODES
from pocketfit.sources.onnx.operators import TABLE
from pocketfit.sources.onnx.refusals import REASONS

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

ROUNDS = 4  # how deep composite operators may be nested


def written_out(model: ModelProto) -> ModelProto:
    """The model without operators that are defined by others and have no handler of their own."""
    import onnx.inliner
    import onnx.shape_inference

    for _ in range(ROUNDS):
        composite = _composite(model)
        if not composite:
            break
        try:  # the definition of an operator may depend on the dtypes of its inputs
            typed = onnx.shape_inference.infer_shapes(model)
            model = onnx.inliner.inline_selected_functions(
                typed, [("", name) for name in composite], inline_schema_functions=True
            )
        except Exception as error:  # a library's error of any kind
            raise UserError(
                f"onnx can't write out the operator {composite[0]}, which has no form in torch as a whole"
            ) from error
        if sum(1 for _ in _nodes(model.graph)) > MOST_NODES:
            raise UserError(f"written out, it has more than {MOST_NODES} operators")
    return model


def _composite(model: ModelProto) -> list[str]:
    from onnx import defs

    version = max((entry.version for entry in model.opset_import if entry.domain in AI_ONNX), default=1)
    found = []
    for name in sorted({node.op_type for node in _nodes(model.graph) if node.domain in AI_ONNX}):
        if name in TABLE or name in REASONS or not defs.has(name, version):
            continue
        schema: Any = defs.get_schema(name, version)
        if schema.has_function or schema.has_context_dependent_function:
            found.append(name)
    return found


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
