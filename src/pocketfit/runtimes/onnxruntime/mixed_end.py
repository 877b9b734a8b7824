"""The end of an ONNX graph that stays in float; see runtimes/common/mixed_ends.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pocketfit.core.errors import UserError
from pocketfit.runtimes.common import mixed_ends

if TYPE_CHECKING:
    from onnx import ModelProto

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")


def names_and_sentences(
    model: ModelProto, ranges: Mapping[str, tuple[float, float]], io: str
) -> tuple[list[str], list[str]]:
    """(names of the nodes that stay in float, sentences on them). Raises UserError where ends are to be integers."""
    end = mixed_end(model, ranges)
    if not end.operators:
        return [], []
    if io != "float32":
        raise UserError(end.why_no_integers(model.graph.output[0].name))
    return [model.graph.node[place].name for place in end.operators], [end.sentence]


def mixed_end(model: ModelProto, ranges: Mapping[str, tuple[float, float]]) -> mixed_ends.End:
    """The operators at the end that stay in float, by their place among the nodes."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    operators = [
        mixed_ends.Operator(
            tuple(node.input),
            tuple(node.output),
            joins=node.op_type == "Concat",
            weights=max((sizes.get(name, 0) for name in node.input), default=0) if node.op_type in LAYERS else 0,
        )
        for node in model.graph.node
    ]
    return mixed_ends.mixed_end(operators, ranges)
