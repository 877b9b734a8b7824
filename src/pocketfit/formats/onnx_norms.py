"""Norms that a file writes out in single operators: they stay in float in a static int8 file, as LayerNormalization
does.

    mean(x * x) - mean(x)^2  ->  Max(0)  ->  + eps  ->  Sqrt  ->  Reciprocal  ->  * scale  ->  * (x - mean)  ->  + bias

Two large numbers that are nearly alike are subtracted there: with 8 bits each, nothing is left of the difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

MEANS = ("ReduceMean", "ReduceSum")
# Operators between a mean and the root, and between the root and the norm's result.
INSIDE = ("Add", "Sub", "Mul", "Div", "Max", "Clip", "Pow", "Reciprocal", "Sqrt", "Identity", "Cast")
MOVES = ("Unsqueeze", "Squeeze", "Reshape", "Expand")
MOST_STEPS = 8  # from the root to the norm's result


def nodes_of_norms(model: ModelProto) -> set[str]:
    """The first outputs of all nodes of such norms."""
    made = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: set[str] = set()
    for root in model.graph.node:
        if root.op_type == "Sqrt" and (above := _above(root, made)):
            found |= above | _below(root, readers, made)
    return found


def _above(root: NodeProto, made: dict[str, NodeProto]) -> set[str]:
    """What the root is taken of, up to the means and the squares in them; nothing where no mean of squares is there."""
    found, waiting, has_mean = {root.output[0]}, [root.input[0]], False
    while waiting:
        node = made.get(waiting.pop())
        if node is None or node.output[0] in found or node.op_type not in (*INSIDE, *MOVES, *MEANS):
            continue
        found.add(node.output[0])
        if node.op_type not in MEANS:
            waiting += node.input
            continue
        square = made.get(node.input[0])
        if square is not None and _is_square(square):
            has_mean = True
            found.add(square.output[0])
            inner = made.get(square.input[0])
            if inner is not None and inner.op_type == "Sub":  # mean((x - mean(x)) ^ 2)
                found |= {inner.output[0], *(name for name in inner.input if _is_mean(made.get(name)))}
    return found if has_mean else set()


def _is_mean(node: NodeProto | None) -> bool:
    return node is not None and node.op_type in MEANS


def _is_square(node: NodeProto) -> bool:
    return node.op_type == "Pow" or (node.op_type == "Mul" and node.input[0] == node.input[1])


def _below(root: NodeProto, readers: dict[str, list[NodeProto]], made: dict[str, NodeProto]) -> set[str]:
    """From the root to the sum with the bias, and the differences x - mean(x) that are scaled on the way."""
    found: set[str] = set()
    here = [root]
    for _ in range(MOST_STEPS):
        after = [node for each in here for node in readers.get(each.output[0], [])]
        here = [node for node in after if node.op_type in (*INSIDE, *MOVES) and node.output[0] not in found]
        for node in here:
            found.add(node.output[0])
            for name in node.input:
                other = made.get(name)
                if other is not None and other.op_type == "Sub":
                    found.add(name)
        here = [node for node in here if node.op_type != "Add"]
    return found
