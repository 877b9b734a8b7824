"""A network by its layers, with sizes that follow the layers' widths: what a forward with fixed head counts becomes.

Forwards say how many heads there are (`view(n, length, 4, 8)`), and modules check it. In the graph of a network's own
layers, the size along which removable channels lie is left to torch (-1), so that any number of heads runs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.signature import Signature
from pocketfit.passes.graph.aten import argument, operation
from pocketfit.passes.graph.attention import HeadWalk
from pocketfit.passes.graph.channel_graph import followed
from pocketfit.passes.graph.layers.layered import layered
from pocketfit.passes.graph.operators import Fact, having
from pocketfit.sources.models.check_network import BY_LAYERS

HEADS = (
    "The forward says how many attention heads there are: the network was written anew by its layers, with as many as"
    " there are."
)
SPLITS = frozenset(("split", "split_with_sizes"))
SIZED = having(Fact.VIEWS) | {"expand"} | SPLITS


def with_any_heads(model: Model) -> tuple[Model, tuple[str, ...]]:
    """(the model by its layers, so that any number of attention heads runs, or as it is where that can't be written;
    sentences)."""
    try:
        network, said = by_layers(model.network, model.signature)
    except UserError as error:
        return model, (f"The number of attention heads can't be freed: {error}.",)
    return replace(model, network=network), (*said, HEADS)


def by_layers(network: nn.Module, signature: Signature) -> tuple[nn.Module, tuple[str, ...]]:
    """(the network as a torch.fx graph of its layers, under the same names; sentences).

    [n, 12, 4, 8] where heads lie along the third dimension -> [n, 12, -1, 8]

    Raises UserError where the network can't be written so.
    """
    found = layered(network, signature)
    program, walk = followed(found.network, signature)
    own, seen = (
        [node for node in graph.nodes if node.op == "call_function" and operation(node) in SIZED]
        for graph in (found.network.graph, program.graph)
    )
    if [operation(node) for node in own] != [operation(node) for node in seen]:
        raise UserError("its views can't be told from those inside its layers")
    for node, there in zip(own, seen, strict=True):
        _free(node, there, walk)
    found.network.graph.eliminate_dead_code()
    found.network.recompile()
    found.network.meta[BY_LAYERS] = True
    return found.network, found.findings


def _free(node: fx.Node, there: fx.Node, walk: HeadWalk) -> None:
    """Leave the size of the removable channels open, in place."""
    made = walk.env[there]
    labels = made[0] if isinstance(made, list) else made
    varying = walk.labels.varying_dims(labels)
    fixed = walk.labels.fixed()
    if not varying or all(label in fixed for label in walk.labels.roots(labels).flatten().tolist()):
        return
    if operation(node) in SPLITS:
        if argument(there, "dim", 0) % labels.ndim == varying[0]:
            parts = len(made)
            node.target = torch.ops.aten.chunk.default
            node.args = (node.args[0], parts, argument(there, "dim", 0))
        return
    place, sizes = (2, node.args[2]) if operation(node) == "unflatten" else (1, node.args[1])
    if not isinstance(sizes, list | tuple):
        return
    first = argument(there, "dim") % (labels.ndim - len(sizes) + 1) if operation(node) == "unflatten" else 0
    if not 0 <= varying[0] - first < len(sizes):
        return
    opened: list[Any] = list(sizes)
    if operation(node) != "expand":
        # [-1, 32] -> [3, -1]: one size can be open, and any but the batch's is known
        opened = [labels.shape[first + i] if size == -1 and first + i else size for i, size in enumerate(opened)]
    opened[varying[0] - first] = -1
    if operation(node) != "expand" and opened.count(-1) > 1:
        raise UserError("a view of its channels leaves the batch open already")
    node.args = (*node.args[:place], opened, *node.args[place + 1 :])
