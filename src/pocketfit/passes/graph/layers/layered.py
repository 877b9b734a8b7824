"""A network as a torch.fx graph of its own real layers: no class of the user's, no code of pocketfit.

torch.export says which operators there are. Each call whose weights are those of one layer becomes that layer of
torch.nn, under the name that it had, so that the weights keep their names; all other operators stay functions. What is
else in training than in use (dropout, batch norms) is read from the graph that the network has in training.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from pocketfit.core.errors import UserError
from pocketfit.core.signature import Signature
from pocketfit.passes.graph import aten
from pocketfit.passes.graph.aten import argument, operation
from pocketfit.passes.graph.layers.torch_layers import RECURRENT, Call, call_of, stand_in
from pocketfit.sources.models.unwrap import copied

DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
CHECKS = ("_assert_scalar", "_assert_async", "_assert_tensor_metadata", "sym_constrain_range_for_size")
OTHERWISE = (
    "The network's own forward does something else in training; what was written does in training what it does in use."
)


@dataclass
class Layered:
    """The network as layers and functions.

    network   in eval mode, with weights of its own
    layers    dotted name -> the call that says how the layer is made, in the order of the graph
    tensors   names of parameters and buffers that no layer holds, in order
    tied      (name, name of the parameter that it is as well)
    sources   node of `network` -> the operator of torch.export's graph that it was made from
    findings  sentences
    """

    network: fx.GraphModule
    layers: dict[str, Call] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    tied: list[tuple[str, str]] = field(default_factory=list)
    sources: dict[fx.Node, fx.Node] = field(default_factory=dict)
    findings: tuple[str, ...] = ()


def layered(network: nn.Module, signature: Signature) -> Layered:
    """The network (in eval mode) by its layers; any batch size.

    Raises UserError where torch.export can't follow it, or where its graph holds graphs (torch.cond and the like).
    """
    program = aten.export(network, signature, free_batch=True)
    training, said = _in_training(network, signature, program)
    return _Builder(network, program, training).build(said)


def _in_training(
    network: nn.Module, signature: Signature, program: ExportedProgram
) -> tuple[dict[fx.Node, fx.Node], tuple[str, ...]]:
    """(node -> the same node of the network in training, sentences); no nodes where training does something else."""
    learner = copied(network)
    learner.train()
    shapes = tuple({0: torch.export.Dim("batch")} if spec.shape[0] is None else None for spec in signature.inputs)
    try:
        with aten.quiet():
            other = torch.export.export(learner, aten.zeros(signature, aten.BATCH), dynamic_shapes=shapes)
    except Exception:  # torch.export has no base class for what it can meet in a stranger's code
        return {}, (OTHERWISE,)
    here, there = (list(_working(p)) for p in (program, other))
    outputs = [len(p.graph_signature.user_outputs) for p in (program, other)]
    if outputs[0] != outputs[1] or [operation(node) for node in here] != [operation(node) for node in there]:
        return {}, (OTHERWISE,)
    return dict(zip(here, there, strict=True)), ()


def _working(program: ExportedProgram) -> Iterator[fx.Node]:
    """The nodes that make tensors from the inputs: neither sizes, nor the counters of batch norms."""
    names = aten.parameter_names(program)
    for node in program.graph.nodes:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor | list | tuple):
            continue
        if any(names.get(source.name, "").endswith("num_batches_tracked") for source in node.all_input_nodes):
            continue
        yield node


class _Builder:
    """The state of one walk over torch.export's graph."""

    def __init__(self, network: nn.Module, program: ExportedProgram, training: dict[fx.Node, fx.Node]) -> None:
        self.program, self.training = program, training
        signature = program.graph_signature
        self.names = {**aten.parameter_names(program), **signature.inputs_to_lifted_tensor_constants}
        self.stored: dict[str, Any] = {**program.state_dict, **program.constants}
        self.own = network.state_dict(keep_vars=True)
        self.layers = dict(network.named_modules())
        self.root, self.graph = nn.Module(), fx.Graph()
        self.found = Layered(fx.GraphModule(nn.Module(), fx.Graph()))
        self.env: dict[fx.Node, Any] = {}
        self.held: dict[str, fx.Node] = {}
        self.switch: fx.Node | None = None
        self.last: fx.Node  # of the inputs, and of the tensors that no layer holds

    def build(self, said: tuple[str, ...]) -> Layered:
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name not in self.names:
                self.env[node] = self.last = self.graph.placeholder(node.name)
        for node in self.program.graph.nodes:
            if node.op == "call_function" and operation(node) not in CHECKS:
                self.env[node] = self.visit(node)
            elif node.op == "get_attr":
                raise UserError(f"Its graph holds a graph ({node.target}), as torch.cond and torch.no_grad make them")
            elif node.op == "output":
                self.graph.output(self.answer())
        self.place_tensors()
        network = fx.GraphModule(self.root, self.graph, "Network")
        network.graph.eliminate_dead_code()
        network.delete_all_unused_submodules()
        network.recompile()
        called = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
        self.found.layers = {name: call for name, call in self.found.layers.items() if name in called}
        self.found.network = network.eval()
        self.found.findings = said
        return self.found

    def visit(self, node: fx.Node) -> Any:
        call, name = call_of(node, self.training.get(node)), ""
        if call is not None:
            name = self.owner(call)
        made = self.layer(name, call, node) if name and call is not None else self.function(node)
        if isinstance(made, fx.Node):
            made.meta["val"] = node.meta.get("val")
            made.meta["made_by"] = aten.module_of(node)
            self.found.sources[made] = node
        return made

    def owner(self, call: Call) -> str:
        """The name of the layer that holds all tensors of a call under its own names for them; "" where none does."""
        names = {attribute: self.names.get(node.name, "") for attribute, node in call.tensors.items()}
        owners = {name.rpartition(".")[0] for name in names.values()}
        if len(owners) != 1 or any(name.rpartition(".")[2] != attribute for attribute, name in names.items()):
            return ""
        (owner,) = owners
        known = self.found.layers.get(owner)
        return owner if known is None or known.code == call.code else ""

    def layer(self, name: str, call: Call, node: fx.Node) -> Any:
        if name not in self.found.layers:
            own = self.layers.get(name)
            if getattr(own, "momentum", 0.1) is None:  # averages over all batches: no number in the graph says so
                call = Call(call.kind, call.args, {**call.options, "momentum": None}, call.tensors, call.inputs)
            module = call.made()
            for attribute, held in call.tensors.items():
                setattr(module, attribute, stand_in(self.tensor(self.names[held.name])))
            counter = self.own.get(f"{name}.num_batches_tracked")
            if counter is not None and hasattr(module, "num_batches_tracked"):
                module.num_batches_tracked = counter.detach().clone()
            self.found.layers[name] = call
            _put(self.root, name, module)
            for attribute in call.tensors:
                self.tie(f"{name}.{attribute}")
        made = self.graph.call_module(name, self.mapped(call.inputs))
        if operation(node) not in RECURRENT:
            return made
        hidden = self.graph.call_function(operator.getitem, (made, 1))
        parts = [hidden]
        if operation(node) == "lstm":
            parts = [self.graph.call_function(operator.getitem, (hidden, place)) for place in (0, 1)]
        return [self.graph.call_function(operator.getitem, (made, 0)), *parts]

    def function(self, node: fx.Node) -> Any:
        kind = operation(node)
        if kind == "getitem":
            given, place = self.of(node.all_input_nodes[0]), cast("int", node.args[1])
            return (
                given[place] if isinstance(given, list) else self.graph.call_function(operator.getitem, (given, place))
            )
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise UserError(f"Its graph holds {kind}, which takes graphs")
        if kind == "slice" and _whole(node):
            return self.of(node.all_input_nodes[0])
        args, kwargs = self.mapped(node.args), dict(self.mapped(node.kwargs))
        other = self.training.get(node)
        if kind in DROPOUTS:
            return self.graph.call_function(getattr(torch, kind), (args[0], node.args[1], self.trains()))
        rate = argument(other, "dropout_p", 0.0) if kind == "scaled_dot_product_attention" and other else 0.0
        if rate:
            kwargs["dropout_p"], args = self.graph.call_function(operator.mul, (self.trains(), rate)), args[:4]
        if kind == "sym_size":
            return self.graph.call_method("size", args)
        if "device" in kwargs:
            first = next(node for node in self.graph.nodes if node.op == "placeholder")
            kwargs["device"] = self.graph.call_function(getattr, (first, "device"))
            kwargs.pop("pin_memory", None)
        return self.graph.call_function(cast("Callable[..., Any]", node.target), args, kwargs)

    def trains(self) -> fx.Node:
        """The network's own `training`, as a node."""
        if self.switch is None:
            with self.graph.inserting_after(self.last):
                self.switch = self.graph.create_node("get_attr", "training")
        return self.switch

    def mapped(self, value: Any) -> Any:
        return fx.map_arg(value, self.of)

    def of(self, node: fx.Node) -> Any:
        if node in self.env:
            return self.env[node]
        name = self.names[node.name]
        if name not in self.held:
            self.held[name] = self.graph.get_attr(name) if _has(self.root, name) else self._loose(name)
            self.held[name].meta["val"] = node.meta.get("val")
        return self.held[name]

    def _loose(self, name: str) -> fx.Node:
        """A node for a tensor that no layer seen so far holds; its place is found at the end."""
        with self.graph.inserting_after(self.last):
            self.last = self.graph.create_node("get_attr", name)
        return self.last

    def place_tensors(self) -> None:
        for name in self.held:
            if not _has(self.root, name):
                tensor = stand_in(self.tensor(name))
                self.found.tensors[name] = tensor
                _put(self.root, name, tensor)
                self.tie(name)

    def tie(self, name: str) -> None:
        """A parameter that another layer, too, has in the network that was given is one parameter here as well."""
        tensor = self.own.get(name)
        for other in (*_tensors_of(self.root),):
            if other != name and tensor is not None and self.own.get(other) is tensor:
                _put(self.root, name, _get(self.root, other))
                self.found.tied.append((name, other))
                return

    def tensor(self, name: str) -> Tensor:
        found = self.stored[name]
        assert isinstance(found, Tensor)
        return found

    def answer(self) -> Any:
        """The outputs in the form that the network gives them: a tensor, or a tuple, list or dict of such."""
        outputs = [
            None if spec.arg.name is None else self.env[self._by_name(spec.arg.name)]
            for spec in self.program.graph_signature.output_specs
            if spec.kind == torch.export.graph_signature.OutputKind.USER_OUTPUT
        ]
        form = pytree.tree_unflatten(outputs, self.program.call_spec.out_spec)
        return form if _plain(form) else tuple(outputs)

    def _by_name(self, name: str) -> fx.Node:
        found: fx.Node = next(node for node in self.program.graph.nodes if node.name == name)
        return found


def _whole(node: fx.Node) -> bool:
    """Whether a slice takes everything, as x[:, 0] makes them."""
    start, end, step = (argument(node, name, default) for name, default in (("start", 0), ("end", None), ("step", 1)))
    return not start and step == 1 and (end is None or (isinstance(end, int) and end == sys.maxsize))


def _plain(form: Any) -> bool:
    if type(form) is dict:
        return all(isinstance(key, str) and _plain(part) for key, part in form.items())
    return all(map(_plain, form)) if type(form) in (tuple, list) else isinstance(form, fx.Node)


def _put(root: nn.Module, name: str, value: nn.Module | Tensor) -> None:
    """Put a layer or tensor under a dotted name; what lies between is an empty nn.Module where there is nothing yet."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if isinstance(value, nn.Module):
        for key, child in root.get_submodule(last).named_children() if last in root._modules else ():
            value.add_module(key, child)
        root.add_module(last, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(last, value)
    else:
        root.register_buffer(last, value)


def _get(root: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    found = getattr(root.get_submodule(owner), last)
    assert isinstance(found, Tensor)
    return found


def _has(root: nn.Module, name: str) -> bool:
    return name in dict.fromkeys(_tensors_of(root))


def _tensors_of(root: nn.Module) -> Iterator[str]:
    for name, _ in (*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False)):
        yield name
