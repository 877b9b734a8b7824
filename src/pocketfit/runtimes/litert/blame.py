"""Find the layer at which litert-torch fails: its errors are about its own intermediate code, or it crashes silently.

Every kind of operator in the network is converted alone, in a child process that notes which one it is trying.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketfit.core.errors import ExportFailed
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.processes import child_process
from pocketfit.runtimes.litert.session import LiteRTSession

if TYPE_CHECKING:
    from torch import fx

TIME_LIMIT_S = 300.0  # each kind of operator takes a second or two
NOT_CONVERTED = "litert-torch could not convert the network"
RANDOM = (
    "rand",
    "rand_like",
    "randn",
    "randn_like",
    "randint",
    "randint_like",
    "bernoulli",
    "native_dropout",
    "dropout",
)


def unexplained(error: ExportFailed) -> bool:
    """Whether a failed conversion has not named a layer: the converter raised its own error, or crashed."""
    return NOT_CONVERTED in str(error) or "died with exit status" in str(error)


def explained(error: ExportFailed, source: Path, layout: str, where: Mapping[str, Any]) -> ExportFailed:
    """The same failure with the layer and the operator, where one alone fails too; the log's tail is kept.

    where  keywords of child.call
    """
    with temporary_folder() as folder:
        note = Path(folder, "at.json")
        try:
            found = child_process.call(
                "pocketfit.runtimes.litert.blame:first_that_fails",
                {"source": str(source), "note": str(note), "layout": layout},
                timeout_s=TIME_LIMIT_S,
                **where,
            )
        except ExportFailed as died:
            if "died with exit status" not in str(died) or not note.exists():
                return error
            found = {**json.loads(note.read_text()), "cause": "the converter crashes"}
    if found is None:
        return error
    return ExportFailed(sentence(**found), error.log_tail)


def sentence(operator: str, layer: str, cause: str) -> str:
    """One sentence on what failed and what to do.

    >>> sentence("topk", "head", "failed to legalize 'stablehlo.sort'").split(":")[0]
    "LiteRT has no form for the operator topk of layer 'head'"
    """
    where = f"the operator {operator} of layer '{layer}'" if layer else f"the operator {operator} in the forward"
    if operator in RANDOM:
        return (
            f"The network draws random numbers ({where}), which no file can do: if it is dropout, pass "
            "training=self.training to it"
        )
    return f"LiteRT has no form for {where}: {cause}; say it in other operators, or export to onnxruntime"


def first_that_fails(source: str, note: str, layout: str) -> dict[str, str] | None:
    """In the child: the first operator, in the order of the network, that cannot be converted alone; None: all can.

    note  a JSON file that says which operator is being tried, because the converter may crash the process
    """
    import torch

    from pocketfit.runtimes.litert import rewrite

    network: Any = torch.export.load(source).module()
    rewrite.apply(network)
    tried: set[str] = set()
    for node in network.graph.nodes:
        if node.op != "call_function" or (kind := _kind(node)) in tried or _is_guard(node):
            continue
        tried.add(kind)
        name = str(node.meta.get("original", node.target)).removeprefix("aten.").split(".", maxsplit=1)[0]
        here = {"operator": name, "layer": rewrite.layer_of(node)}
        Path(note).write_text(json.dumps(here))
        if cause := _cause(network, node, layout):
            return {**here, "cause": cause}
    return None


def _is_guard(node: fx.Node) -> bool:
    """Checks and sizes, which compute no tensor."""
    import torch

    return not isinstance(node.meta.get("val"), torch.Tensor | list | tuple)


def _kind(node: fx.Node) -> str:
    """The operator with the shapes that it meets and its settings."""
    shapes = [tuple(map(str, getattr(n.meta.get("val"), "shape", ()))) for n in node.all_input_nodes]
    settings = [arg for arg in node.args if not hasattr(arg, "meta")]
    return f"{node.target} {shapes} {settings} {dict(node.kwargs)}"


def _cause(network: Any, node: fx.Node, layout: str) -> str:
    """Why this operator alone cannot be converted; "" where it can."""
    import litert_torch
    import torch
    from torch import fx, nn

    from pocketfit.runtimes.litert.convert import shortened

    graph, examples, holder = fx.Graph(), [], nn.Module()

    def argument(one: fx.Node) -> fx.Node:
        if one.op == "get_attr":
            value = network
            for part in str(one.target).split("."):
                value = getattr(value, part)
            name = f"constant_{len(list(holder.named_buffers()))}"
            holder.register_buffer(name, value.detach())
            return graph.get_attr(name)
        value = one.meta["val"]
        if not isinstance(value, torch.Tensor):
            raise ValueError("its size depends on the batch")
        shape = [size if isinstance(size, int) else 1 for size in value.shape]
        examples.append(torch.zeros(shape, dtype=value.dtype))
        return graph.placeholder(f"x{len(examples)}")

    try:
        copies = {one: argument(one) for one in node.all_input_nodes}
    except ValueError:
        return ""
    graph.output(graph.node_copy(node, copies.__getitem__))
    if not examples:
        return ""
    try:
        with torch.no_grad(), temporary_folder() as folder:
            one = Path(folder, "one.tflite")
            litert_torch.convert(fx.GraphModule(holder, graph), tuple(examples)).export(str(one))
            LiteRTSession(one, 1).close()
    except Exception as error:  # the converter's errors are as many as its operators
        return shortened(error)
    return ""
