"""The network as a quantized file will compute it, in torch: every layer's weights and every tensor on its grid.

An estimate, for what a file can't be asked cheaply: which layer's weights or which tensor costs how much, and what to
change about it by gradients. It has no integers and no kernel's own rounding; files are measured in their runtime.

Where a file quantizes follows from how runtimes fuse: the output of a convolution, a linear layer or a sum is on the
grid behind its activation (conv -> relu6 is one kernel), and operators that only move numbers keep their input's grid.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import is_not
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid
from pocketfit.core.signature import Signature
from pocketfit.numerics.quantization_ranges import fingerprint
from pocketfit.passes.graph.aten import argument, inputs_in_words, module_of, operation, quiet, shape_of, zeros
from pocketfit.passes.graph.feed import Fed, call
from pocketfit.passes.graph.fold_batch_norm import fold_batch_norm
from pocketfit.passes.graph.operators import Fact, having
from pocketfit.passes.quantize.simulate.fake_quantize import (
    fake_activation,
    fake_weight,
    grid_of,
    largest_integer,
    widest_scale,
)

WEIGHTED = having(Fact.LAYER)
FUSED = having(Fact.FUSED)  # a layer in front of one of these gives what comes out behind it
MOVING = having(Fact.SAME_GRID)


_LAST: WeakKeyDictionary[nn.Module, tuple[str, fx.GraphModule]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Layer:
    """A layer with weights: its dotted name, its weight's name, the axis of its output channels, whether depthwise, and
    its bias's name ("" without one)."""

    name: str
    parameter: str
    axis: int
    depthwise: bool
    bias: str = ""


class WeightGrid(nn.Module):
    """A layer's weight on its way into the kernel: on the grid of `step()`, which broadcasts along the outputs.

    Where it learns, `ratio` stands for the weight and `stretch` for the step, both in units of the first step.
    """

    def __init__(self, layer: Layer, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.layer, self.bits, self.active = layer, bits, True
        self.scale = nn.Parameter(widest_scale(weight, bits, layer.axis), requires_grad=False)
        self.ratio: nn.Parameter | None = None
        self.stretch: nn.Parameter | None = None

    def learn(self, weight: Tensor, scale: Tensor) -> None:
        """From now on its own copy of the weight is what counts, and may be trained."""
        self.scale.data = scale
        self.ratio, self.stretch = nn.Parameter(weight.detach() / scale), nn.Parameter(torch.zeros_like(scale))

    def step(self) -> Tensor:
        """The scale. It is never so large that the largest weight of a channel rounds to less than the end of the
        grid: a runtime's quantizer puts the largest weight at the end."""
        if self.ratio is None or self.stretch is None:
            return self.scale
        others = [d for d in range(self.ratio.ndim) if d != self.layer.axis]
        most = self.ratio.detach().abs().amax(others, keepdim=True) / (largest_integer(self.bits) - 0.49)
        dead = most == 0
        return self.scale * torch.minimum(self.stretch.exp(), torch.where(dead, torch.ones_like(most), most))

    def forward(self, weight: Tensor) -> Tensor:
        if not self.active:
            return weight
        if self.ratio is not None:
            weight = self.ratio * self.scale
        return fake_weight(weight, self.step(), self.bits)


class Point(nn.Module):
    """A tensor that the file holds, with the range of its grid; while `observing` the range widens to what it sees."""

    def __init__(self, name: str, layer: str) -> None:
        super().__init__()
        self.name, self.layer, self.active, self.observing = name, layer, False, False
        self.low = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.high = nn.Parameter(torch.zeros(()), requires_grad=False)

    @property
    def range(self) -> tuple[float, float]:
        return float(self.low.detach()), float(self.high.detach())

    @property
    def step(self) -> float:
        """The step of the grid that an 8-bit tensor has on this range."""
        return grid_of(*self.range)[0]

    def forward(self, values: Tensor) -> Tensor:
        if self.observing:
            self.low.data.clamp_(max=values.min())
            self.high.data.clamp_(min=values.max())
        return fake_activation(values, self.low, self.high) if self.active else values


@dataclass(frozen=True)
class Simulation:
    """network: runs like the folded network, through `weights` (by layer name) and `points` (by node name)."""

    network: fx.GraphModule
    weights: Mapping[str, WeightGrid]
    points: Mapping[str, Point]

    def activate(self, *, weights: Collection[str] | bool = True, points: Collection[str] | bool = True) -> None:
        """Put these layers' weights and these tensors on their grids, all others not; True: all, False: none."""
        for name, grid in self.weights.items():
            grid.active = weights if isinstance(weights, bool) else name in weights
        for name, point in self.points.items():
            point.active = points if isinstance(points, bool) else name in points

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Inside, the points widen their ranges to what they see, and nothing is on a grid."""
        before = (
            {name: grid.active for name, grid in self.weights.items()},
            {name: point.active for name, point in self.points.items()},
        )
        self.activate(weights=False, points=False)
        for point in self.points.values():
            point.observing = True
        try:
            yield
        finally:
            for name, point in self.points.items():
                point.observing, point.active = False, before[1][name]
            for name, grid in self.weights.items():
                grid.active = before[0][name]


def simulate(model: Model, grid: Grid) -> Simulation:
    """The model's network, batch norms folded, with a copy of its weights. Ranges are empty: observe samples first.

    Names in the grid that are no layer's are the exporter's to refuse. Raises UserError where torch.export can't follow
    the network.
    """
    module = _folded(model)
    points = _insert_points(module, grid)
    weights = _insert_weights(module, grid)
    module.graph.lint()
    module.recompile()
    return Simulation(module, weights, points)


def fingerprints_of(model: Model, grid: Grid, inputs: Fed) -> dict[str, list[float]]:
    """quantization_ranges.fingerprint of each point of the float network on these inputs, by the point's name."""
    simulation = simulate(model, grid)
    simulation.activate(weights=False, points=False)
    found: dict[str, list[float]] = {}
    for name, point in simulation.points.items():

        def note(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
            found[name] = fingerprint(given[0].numpy())

        point.register_forward_pre_hook(note)
    with torch.inference_mode():
        call(simulation.network, inputs)
    return found


def _folded(model: Model) -> fx.GraphModule:
    """A graph of the folded network with a copy of its weights. The last graph is kept as long as its network exists,
    because several grids and passes are tried on one network."""
    if model.network not in _LAST or _LAST[model.network][0] != model.key:
        graph = _traced(fold_batch_norm(model.network, model.signature), model.signature)
        _LAST.clear()
        _LAST[model.network] = model.key, graph
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*LeafSpec", category=FutureWarning)  # of torch, about itself
        copied: fx.GraphModule = copy.deepcopy(_LAST[model.network][1])
    return copied


def _traced(network: nn.Module, signature: Signature) -> fx.GraphModule:
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if spec.shape[0] is None else None for spec in signature.inputs)
    try:
        with quiet():
            program = torch.export.export(network, zeros(signature, 2), dynamic_shapes=shapes)
    except Exception as error:  # torch.export has no base class for what it can meet in a stranger's code
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"torch.export cannot follow {type(network).__name__} at the input {inputs_in_words(signature)} ({cause})"
        ) from error
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    _loosen(module)
    return module


def _loosen(module: fx.GraphModule) -> None:
    """Change the graph in place so that it no longer relies on how tensors lie in memory: those on grids are copies.

    view -> reshape, which copies where it must; x.relu_() -> x.relu() where nobody else reads x.
    """
    for node in module.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if operation(node) in ("view", "_unsafe_view") and isinstance(node.args[1], list | tuple):
            node.target = torch.ops.aten.reshape.default
        elif node.target._schema.is_mutable and _alone(node):
            packet = getattr(torch.ops.aten, operation(node), None)
            if (same := getattr(packet, node.target._overloadname, None)) is not None:
                node.target = same


def _alone(node: fx.Node) -> bool:
    """Whether nobody but this operator sees the tensor that it changes, by itself or through a view."""
    source = node.args[0]
    while isinstance(source, fx.Node) and source.op == "call_function" and len(source.users) == 1:
        if operation(source) not in MOVING:
            return True
        source = source.args[0]
    return False


def layers_of(module: fx.GraphModule, *, through_grids: bool = False) -> dict[fx.Node, Layer]:
    """The nodes that multiply with a parameter of their own, in order; `through_grids`: of a simulation's network."""
    found = {}
    for node in module.graph.nodes:
        if node.op != "call_function" or operation(node) not in WEIGHTED:
            continue
        weight = node.args[1]
        if through_grids and isinstance(weight, fx.Node) and weight.op == "call_module":
            weight = weight.args[0]
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            continue
        shape, parameter = shape_of(weight), str(weight.target)
        transposed = operation(node).startswith("conv_transpose")
        groups = argument(node, "groups", 1)
        depthwise = groups > 1 and not transposed and shape[1] == 1 and shape[0] == groups
        bias = node.args[2] if len(node.args) > 2 else None
        stored = str(bias.target) if isinstance(bias, fx.Node) and bias.op == "get_attr" else ""
        found[node] = Layer(parameter.removesuffix(".weight"), parameter, 1 if transposed else 0, depthwise, stored)
    return found


def _insert_weights(module: fx.GraphModule, grid: Grid) -> dict[str, WeightGrid]:
    layers = layers_of(module)
    weights: dict[str, WeightGrid] = {}
    for number, (node, layer) in enumerate(layers.items()):
        bits = grid.bits(layer.name, depthwise=layer.depthwise)
        if bits is None:
            continue
        if layer.name not in weights:
            weights[layer.name] = WeightGrid(layer, module.get_parameter(layer.parameter), bits)
        name = f"weight_grid_{number}"
        module.add_submodule(name, weights[layer.name])
        source = node.args[1]
        with module.graph.inserting_before(node):
            rounded = module.graph.call_module(name, (source,))
        node.update_arg(1, rounded)
    return weights


def _insert_points(module: fx.GraphModule, grid: Grid) -> dict[str, Point]:
    points: dict[str, Point] = {}
    if grid.activation_bits is None:
        return points
    for number, (node, layer) in enumerate(tensors_of(module, grid.keep_float)):
        name = f"point_{number}"
        points[node.name] = Point(node.name, layer)
        module.add_submodule(name, points[node.name])
        with module.graph.inserting_after(node):
            rounded = module.graph.call_module(name, (node,))
        node.replace_all_uses_with(rounded, delete_user_cb=partial(is_not, rounded))
    return points


def tensors_of(module: fx.GraphModule, keep_float: Collection[str] = ()) -> list[tuple[fx.Node, str]]:
    """The nodes whose outputs a quantized file holds as integers, each with the layer that it is the output of: the
    dotted name of the layer with weights that ends there, or of the module and operation ("features.3.add").

    A tensor between layers in float only is left out, and so is what follows from parameters alone: files hold that as
    a constant.
    """
    varying: set[fx.Node] = set()
    names: dict[fx.Node, str] = {node: layer.name for node, layer in layers_of(module).items()}
    found: list[tuple[fx.Node, str]] = []
    for node in module.graph.nodes:
        if node.op == "placeholder" or any(source in varying for source in node.all_input_nodes):
            varying.add(node)
        if node.op == "placeholder" and _is_float(node):
            names[node] = node.name
        elif node.op != "call_function" or not _is_float(node) or node not in varying:
            continue
        elif operation(node) in FUSED and _source(node) in names and len(_source(node).users) == 1:
            names[node] = names[_source(node)]
        elif operation(node) in MOVING:
            continue
        else:
            names.setdefault(node, f"{module_of(node)}.{operation(node)}".lstrip("."))
        users = [user for user in node.users if user.op != "call_function" or _is_float(user)]  # not its size
        if len(users) == 1 and operation(users[0]) in FUSED and users[0].op == "call_function":
            continue  # the grid is behind the activation
        made_in_float = node.op == "placeholder" or names[node] in keep_float
        if made_in_float and all(user.op == "output" or names_of(user, module) in keep_float for user in users):
            continue
        if users:
            found.append((node, names[node]))
    return found


def names_of(node: fx.Node, module: fx.GraphModule) -> str:
    """Dotted name of the layer whose weight a node multiplies with, "" for all others."""
    weight = node.args[1] if node.op == "call_function" and operation(node) in WEIGHTED else None
    return str(weight.target).removesuffix(".weight") if isinstance(weight, fx.Node) else ""


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype.is_floating_point
