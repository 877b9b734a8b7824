"""A network as torch.export's ATen graph: its layers in order, and small questions about nodes."""

from __future__ import annotations

import io
import logging
import math
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from pocketfit.core.errors import UserError
from pocketfit.core.signature import Signature
from pocketfit.passes.graph.operators import Fact, having
from pocketfit.sources.models.check_network import blamed
from pocketfit.sources.models.unwrap import copied, eval_mode

BATCH = 2  # not 1: a size of 1 broadcasts and is squeezed away, so it would be mistaken for no dimension


@dataclass(frozen=True)
class Layer:
    """One layer of a network, in the order of execution, for one sample.

    name    dotted name of the module; an operation in the forward of a larger module has its own name behind that:
            "features.3.add"
    type    class of the module ("Conv2d"), or name of the operation ("add")
    shapes  without the batch; the input's is that of the first input
    params  numbers that training changes, counted at the first use of a layer
    macs    multiply-accumulates of convolutions, linear layers and matrix products; 0 for all else
    """

    name: str
    type: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    params: int
    macs: int


def export(
    network: nn.Module, signature: Signature, batch: int = BATCH, *, free_batch: bool = False
) -> ExportedProgram:
    """The network in eval mode as an ATen graph at fixed sizes, or for any batch size (`free_batch`).

    Raises UserError where torch.export can't follow it.
    """
    if network.training:
        network = copied(network)
        eval_mode(network)
    free = {0: torch.export.Dim("batch")} if free_batch else None
    shapes = tuple(free if spec.shape[0] is None else None for spec in signature.inputs)
    try:
        with quiet():
            return torch.export.export(network, zeros(signature, batch), dynamic_shapes=shapes if free_batch else None)
    except Exception as error:  # torch.export has no base class for what it can meet in a stranger's code
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        layer, _ = blamed(error, network)
        where = f"layer '{layer}' of {type(network).__name__}" if layer else type(network).__name__
        raise UserError(
            f"torch.export cannot follow {where} at the input {inputs_in_words(signature)} ({cause}); "
            "the forward must be free of Python branches that depend on values (torch.cond can say the same)"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch.export inside. It warns of tensors that a forward keeps on its module (recurrent layers do so with
    their weights), though it exports them correctly; where it fails it prints the whole graph beside its error.
    """
    talking = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level, printed = talking.level, io.StringIO()
    talking.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(printed):
            warnings.filterwarnings("ignore", message=r"The tensor attributes? self\.[\s\S]* assigned during export")
            yield
    except BaseException:
        printed = io.StringIO()
        raise
    finally:
        talking.setLevel(level)
        sys.stderr.write(printed.getvalue())


def zeros(signature: Signature, batch: int) -> tuple[Tensor, ...]:
    """An input of zeros for each of the signature's inputs."""
    return tuple(torch.zeros(spec.with_batch(batch), dtype=getattr(torch, spec.dtype)) for spec in signature.inputs)


def noise(signature: Signature, batch: int) -> tuple[Tensor, ...]:
    """Normal numbers for each of the signature's inputs, the same ones each time; 0 and 1 for whole numbers."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for spec in signature.inputs:
        shape, dtype = spec.with_batch(batch), getattr(torch, spec.dtype)
        values = torch.randn(shape, generator=generator)
        made.append(values if dtype.is_floating_point else (values > 0).to(dtype))
    return tuple(made)


def inputs_in_words(signature: Signature) -> str:
    """The shapes of one sample: "3x224x224"."""
    return ", ".join("x".join(map(str, spec.with_batch(1)[1:])) for spec in signature.inputs)


def operation(node: fx.Node) -> str:
    """Name of the ATen operator without overload and without the mark of in-place ones: "relu", "getitem"."""
    name: str = getattr(getattr(node.target, "overloadpacket", node.target), "__name__", str(node.target))
    return name if name.startswith("__") else name.rstrip("_")


def carried_out(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """The operator, run on other arguments than its own. These may lie differently in memory, so that `view` has to
    copy; an operator that works in place gets a copy of them."""
    if getattr(getattr(node.target, "_schema", None), "is_mutable", False):
        args = (args[0].clone(), *args[1:])
    if operation(node) in ("view", "_unsafe_view") and isinstance(args[1], list | tuple):
        return args[0].reshape(args[1])
    if operation(node) == "view_as":
        return args[0].reshape(args[1].shape)
    return call(node, *args, **kwargs)


def call(node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """The node's operator with other arguments."""
    function: Any = node.target  # torch's hints know that it may be a name, as in nodes of other kinds
    return function(*args, **kwargs)


def argument(node: fx.Node, name: str, default: Any = None) -> Any:
    """An argument by the name that ATen's schema gives it, whether it was passed by place or by name."""
    operator: Any = node.target
    for place, argument in enumerate(operator._schema.arguments):
        if argument.name in (name, "self" if name == "input" else name):
            return node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, default)
    return default


def module_of(node: fx.Node) -> str:
    """Dotted name of the innermost module whose forward called this ("" for the network itself)."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return re.sub(r"@\d+", "", str(stack[-1][0])) if stack else ""


def off_grid(graph: fx.Graph) -> tuple[str, ...]:
    """A sentence about the layers whose weights no pass puts on a grid: recurrent ones, and those whose weights are
    computed at each call."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        multiplies = operation(node).startswith(("conv", "linear"))
        weight = argument(node, "weight") if multiplies else None
        if operation(node) in having(Fact.RECURRENT) or (isinstance(weight, fx.Node) and weight.op == "call_function"):
            found.setdefault(module_of(node) or "the network's own forward", operation(node))
    if not found:
        return ()
    names = ", ".join(f"{name} ({kind})" for name, kind in found.items())
    return (f"The weights of {names} stay in float: no pass rounds them, or trains them on the grid.",)


def parameter_names(program: ExportedProgram) -> dict[str, str]:
    """Placeholder -> dotted name of the parameter or buffer that it stands for."""
    signature = program.graph_signature
    return {**signature.inputs_to_parameters, **signature.inputs_to_buffers}


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's output, or of the first of its outputs; () where there is none."""
    value = node.meta.get("val")
    if isinstance(value, list | tuple) and value:
        value = value[0]
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()


def layers(program: ExportedProgram, network: nn.Module) -> tuple[Layer, ...]:
    """The layers in the order in which they are carried out, one row for each leaf module and each loose operation."""
    rows: dict[str, Layer] = {}
    counted: set[str] = set()
    batch = next((shape_of(node)[0] for node in program.graph.nodes if _is_input(node, program)), 1)
    for node in program.graph.nodes:
        if node.op != "call_function" or operation(node) == "getitem" or not shape_of(node):
            continue
        owner = module_of(node)
        module = network.get_submodule(owner)
        leaf = next(module.children(), None) is None and owner != ""
        macs = macs_of(node) // batch
        if leaf and owner in rows:  # a module's further operations, or a further call of it
            rows[owner] = replace(rows[owner], output_shape=shape_of(node)[1:], macs=rows[owner].macs + macs)
            continue
        name = owner if leaf else _free_name(f"{owner}.{operation(node)}".lstrip("."), rows)
        inputs = [shape_of(n) for n in node.all_input_nodes if n.op == "call_function" or _is_input(n, program)]
        rows[name] = Layer(
            name,
            type(module).__name__ if leaf else operation(node),
            (inputs[0] if inputs else ())[1:],
            shape_of(node)[1:],
            _count(node, network, parameter_names(program), counted, owner if leaf else None),
            macs,
        )
    return tuple(rows.values())


def _is_input(node: fx.Node, program: ExportedProgram) -> bool:
    return node.op == "placeholder" and node.name in program.graph_signature.user_inputs


def _free_name(name: str, taken: dict[str, Layer]) -> str:
    number, free = 1, name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def _count(node: fx.Node, network: nn.Module, names: dict[str, str], counted: set[str], module: str | None) -> int:
    """Parameters of the leaf module, or those that a loose operation uses, that no earlier row has counted."""
    if module is None:
        own = [names[n.name] for n in node.all_input_nodes if n.name in names]
    else:
        own = [f"{module}.{name}" for name, _ in network.get_submodule(module).named_parameters()]
    parameters = dict(network.named_parameters(remove_duplicate=False))
    total = 0
    for name in own:
        if name in parameters and str(id(parameters[name])) not in counted:
            counted.add(str(id(parameters[name])))
            total += parameters[name].numel()
    return total


def macs_of(node: fx.Node) -> int:
    """Multiply-accumulates for the whole batch, or for one sample in a graph that leaves the size of the batch open.

    Each output of a convolution takes (inputs / groups) x kernel.
    """
    name, out = operation(node), math.prod(_sizes(node))
    shapes = [_sizes(a) if isinstance(a, fx.Node) else () for a in node.args]
    if name.startswith("conv_transpose"):
        return math.prod(shapes[0]) * math.prod(shapes[1][1:])
    if name.startswith("conv") or name == "linear":
        return out * math.prod(shapes[1][1:])
    if name in ("matmul", "mm", "bmm"):
        return out * shapes[0][-1]
    return 0


def _sizes(node: fx.Node) -> tuple[int, ...]:
    """The shape of its output, where every size that is left open is 1."""
    value = node.meta.get("val")
    return tuple(map(_closed, value.shape)) if isinstance(value, Tensor) else ()


def _closed(size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr  # "4*s0"
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))
