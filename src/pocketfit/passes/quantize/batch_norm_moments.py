"""Means and variances of a network's tensors without any data, from the statistics that its batch norms hold.

Behind a batch norm a channel has mean beta and deviation |gamma| over the images it was trained on. It is taken for a
normal distribution (Nagel et al. 2019, section 4.2.1) and followed through the graph: relu and relu6 clip it, sums add
means and variances as if their operands were independent, operators that move numbers are carried out. A layer without
a batch norm adds up the means and variances of its inputs, weighed by its weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from pocketfit.core import learned
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.passes.graph import aten
from pocketfit.passes.graph.aten import argument, call, carried_out, operation, shape_of
from pocketfit.passes.graph.fold_batch_norm import foldable
from pocketfit.passes.graph.interpret import Channels
from pocketfit.passes.graph.labels import along, vector
from pocketfit.passes.graph.operators import Fact, having
from pocketfit.passes.graph.scale_graph import Streams

FINDING = (
    "Ranges and means of activations were derived from batch-norm statistics, no data seen: they hold for inputs like"
    " those of the training, as far as its channels are distributed normally."
)
SIGMAS = 6.0  # a range reaches this many deviations from the mean (Nagel et al. 2019, section 5)


@dataclass(frozen=True)
class Moments:
    """Statistics of each element of a tensor over the data; all four are float32 of the tensor's shape."""

    mean: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor


def normal(mean: Tensor, variance: Tensor) -> Moments:
    reach = SIGMAS * variance.sqrt()
    return Moments(mean, variance, mean - reach, mean + reach)


def remembered(model: Model) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> mean and deviation of its outputs, float32 [out], from a batch norm that folds or was folded into it."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for layer, (means, deviations) in model.learned.normal.items():
        found[layer] = torch.tensor(means), torch.tensor(deviations)
    for layer, norm in foldable(model.network, model.signature):
        after = model.network.get_submodule(norm)
        assert isinstance(after.running_mean, Tensor)
        gamma = after.weight if isinstance(after.weight, Tensor) else torch.ones_like(after.running_mean)
        beta = after.bias if isinstance(after.bias, Tensor) else torch.zeros_like(after.running_mean)
        found[layer] = beta.detach().clone(), gamma.detach().abs()
    return found


def stored(layers: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, learned.Moments]:
    """The same as Learned.normal stores it; `remembered` reads it back."""
    return {name: (tuple(mean.tolist()), tuple(deviation.tolist())) for name, (mean, deviation) in layers.items()}


def trace(model: Model, program: ExportedProgram) -> dict[fx.Node, Moments]:
    """The Moments of each node of the folded network's graph; nodes behind an unknown operator are left out.

    Raises UserError for a network without batch norms.
    """
    found = remembered(model)
    if not found:
        raise UserError(
            f"{type(model.network).__name__} has no batch norm behind a convolution or linear layer, so nothing is"
            " known about its activations without data: give calibration samples"
        )
    walk = _Walk(program, found)
    with torch.no_grad():
        for node in program.graph.nodes:
            walk.visit(node)
    return {node: moments for node, moments in walk.known.items() if isinstance(moments, Moments)}


def channels(known: Mapping[fx.Node, Moments], found: Streams) -> dict[fx.Node, Channels]:
    """The same statistics for each channel of the tensors and layers in `found`, as `interpret.observe` gives them."""
    dims = {tensor.node: tensor.dim for tensor in found.tensors} | {layer.node: layer.dim for layer in found.layers}
    given = {}
    for node, dim in dims.items():
        if node in known:
            low, high, mean = (vector(values, dim) for values in (known[node].low, known[node].high, known[node].mean))
            given[node] = Channels(low, high, mean, vector(known[node].variance, dim) + mean**2, high)
    return given


def clipped(mean: Tensor, variance: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of clip(x, low, high) of a normal x (Nagel et al. 2019, appendix C).

    >>> [round(float(v), 4) for v in clipped(torch.tensor(0.0), torch.tensor(1.0), 0.0, math.inf)]
    [0.3989, 0.3408]
    """
    deviation = variance.double().clamp(min=1e-24).sqrt()
    mean = mean.double()
    ends = [torch.full_like(mean, end) for end in (low, high)]
    a, b = ((end - mean) / deviation for end in ends)
    below, above = torch.special.ndtr(a), torch.special.ndtr(-b)
    inside = 1 - below - above
    density_a, density_b = (torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) for z in (a, b))
    # at an infinite end, nothing lies beyond it
    low_end, high_end = (torch.where(torch.isinf(end), 0.0, end) for end in ends)
    a_term, b_term = (torch.where(torch.isinf(z), 0.0, z) for z in (a, b))
    first = mean * inside + deviation * (density_a - density_b)
    second = (
        (mean**2 + variance) * inside
        + 2 * mean * deviation * (density_a - density_b)
        + variance * (a_term * density_a - b_term * density_b)
    )
    first = first + low_end * below + high_end * above
    second = second + low_end**2 * below + high_end**2 * above
    return first.float(), (second - first**2).clamp(min=0).float()


class _Walk:
    """The state of one walk over the graph."""

    def __init__(self, program: ExportedProgram, layers: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self.layers, self.names = layers, aten.parameter_names(program)
        self.stored = {**program.state_dict, **program.constants}
        self.known: dict[fx.Node, Any] = {}

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            value = self.stored[self.names[node.name]].detach() if node.name in self.names else None
            if value is None:
                self.known[node] = normal(torch.zeros(shape_of(node)), torch.ones(shape_of(node)))
            elif value.is_floating_point():
                self.known[node] = Moments(value, torch.zeros_like(value), value, value)
        elif node.op == "call_function" and all(source in self.known for source in node.all_input_nodes):
            given = _follow(self, node)
            if given is not None:
                self.known[node] = given

    def of(self, node: fx.Node) -> Moments:
        found = self.known[node]
        assert isinstance(found, Moments)
        return found


def _follow(walk: _Walk, node: fx.Node) -> Any:
    name = operation(node)
    if name.startswith(("conv1d", "conv2d", "conv3d", "linear")):
        return _layer(walk, node)
    if name == "batch_norm":
        return _batch_norm(walk, node)
    if name in having(Fact.CLIPS):
        low, high = _clip_ends(node)
        source = walk.of(argument(node, "input"))
        mean, variance = clipped(source.mean, source.variance, low, high)
        return Moments(mean, variance, source.low.clamp(low, high), source.high.clamp(low, high))
    if name in having(Fact.ELEMENTWISE):
        return _by_quadrature(walk, node)
    if name in ("add", "sub", "mul"):
        return _pair(walk, node)
    return _carried_out(walk, node) if name in having(Fact.MOMENTS) else None


def _layer(walk: _Walk, node: fx.Node) -> Moments | None:
    weight, bias = argument(node, "weight"), argument(node, "bias")
    owner = walk.names.get(weight.name, "").rpartition(".")[0]
    shape = shape_of(node)
    dim = len(shape) - 1 if operation(node) == "linear" else 1
    mean, deviation = walk.layers.get(owner, (torch.empty(0), torch.empty(0)))
    if len(mean) == shape[dim]:
        return normal(along(mean, dim, shape), along(deviation**2, dim, shape))
    source, values = walk.of(argument(node, "input")), walk.of(weight).mean

    def run(inputs: Tensor, weights: Tensor, with_bias: bool) -> Tensor:
        args = [inputs, weights, *node.args[2:]]
        if len(args) > 2:
            args[2] = walk.of(bias).mean if with_bias and bias is not None else None
        result = call(node, *args, **node.kwargs)
        assert isinstance(result, Tensor)
        return result

    return normal(run(source.mean, values, True), run(source.variance, values.square(), False))


def _batch_norm(walk: _Walk, node: fx.Node) -> Moments:
    """A batch norm that could not be folded."""
    shape = shape_of(node)
    gamma, beta = (argument(node, part) for part in ("weight", "bias"))
    deviation = torch.ones(shape[1]) if gamma is None else walk.of(gamma).mean
    mean = torch.zeros(shape[1]) if beta is None else walk.of(beta).mean
    return normal(along(mean, 1, shape), along(deviation**2, 1, shape))


def _clip_ends(node: fx.Node) -> tuple[float, float]:
    defaults = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0), "hardtanh": (-1.0, 1.0)}
    low, high = defaults.get(operation(node), (-math.inf, math.inf))
    if operation(node) == "hardtanh":
        return float(argument(node, "min_val", low)), float(argument(node, "max_val", high))
    if operation(node) == "clamp":
        least, most = argument(node, "min"), argument(node, "max")
        return low if least is None else float(least), high if most is None else float(most)
    return low, high


def _by_quadrature(walk: _Walk, node: fx.Node) -> Moments:
    """hardswish, sigmoid and similar: Gauss-Hermite with 24 points, and the extremes on 33 points of the range."""
    source = walk.of(argument(node, "input"))

    def run(values: Tensor) -> Tensor:
        rest = [walk.of(a).mean if isinstance(a, fx.Node) else a for a in node.args[1:]]
        result = call(node, values, *rest, **node.kwargs)
        assert isinstance(result, Tensor)
        return result

    points, weights = np.polynomial.hermite_e.hermegauss(24)
    shares = weights / weights.sum()
    deviation = source.variance.sqrt()
    first, second = torch.zeros_like(source.mean), torch.zeros_like(source.mean)
    for point, share in zip(points.tolist(), shares.tolist(), strict=True):
        value = run(source.mean + point * deviation)
        first, second = first + share * value, second + share * value**2
    low = high = run(source.low)
    for step in range(1, 33):
        value = run(source.low + (source.high - source.low) * step / 32)
        low, high = torch.minimum(low, value), torch.maximum(high, value)
    return Moments(first, (second - first**2).clamp(min=0), low, high)


def _pair(walk: _Walk, node: fx.Node) -> Moments:
    """Two operands, taken to be independent; one may be a number."""
    one, other = (walk.of(a) if isinstance(a, fx.Node) else _number(a) for a in node.args[:2])
    if operation(node) == "mul":
        mean = one.mean * other.mean
        variance = one.variance * other.variance + one.variance * other.mean**2 + other.variance * one.mean**2
        corners = torch.stack([a * b for a in (one.low, one.high) for b in (other.low, other.high)])
        return Moments(mean, variance, corners.amin(0), corners.amax(0))
    if operation(node) == "sub":
        other = Moments(-other.mean, other.variance, -other.high, -other.low)
    mean = one.mean + other.mean
    down = ((one.mean - one.low) ** 2 + (other.mean - other.low) ** 2).sqrt()
    up = ((one.high - one.mean) ** 2 + (other.high - other.mean) ** 2).sqrt()
    return Moments(mean, one.variance + other.variance, mean - down, mean + up)


def _number(value: Any) -> Moments:
    number = torch.tensor(float(value))
    return Moments(number, torch.zeros(()), number, number)


def _carried_out(walk: _Walk, node: fx.Node) -> Any:
    """The operator, run on each of the four statistics by itself; several outputs as a list."""

    def run(part: str) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: _part(walk.known[source], part))
        return carried_out(node, args, kwargs)

    results = [run(part) for part in ("mean", "variance", "low", "high")]
    if isinstance(results[0], Tensor):
        return Moments(*results)
    return [Moments(*parts) for parts in zip(*results, strict=True)]


def _part(given: Any, part: str) -> Any:
    return getattr(given, part) if isinstance(given, Moments) else [getattr(one, part) for one in given]
