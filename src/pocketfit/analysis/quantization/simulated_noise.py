"""The noise that quantized layers add to a network's outputs, one layer after another, in torch.

When a layer's grid is switched, only nodes behind it are computed again: a row of the table costs about two runs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid, RangeMethod
from pocketfit.core.samples import Samples
from pocketfit.numerics import quantization_ranges as numerics
from pocketfit.passes.graph.feed import Fed, all_of, rows_in
from pocketfit.passes.graph.main_answer import main_answer
from pocketfit.passes.quantize.simulate.observe_ranges import batches, observe, set_ranges
from pocketfit.passes.quantize.simulate.simulation import Point, Simulation, WeightGrid, simulate

Values = dict[fx.Node, Any]
Energies = tuple[float, float]  # of the signal and of the noise


@dataclass
class Group:
    """A layer with the tensors behind it. Noise is the squared error of the outputs, summed over all samples."""

    name: str
    grids: list[fx.Node] = field(default_factory=list)
    points: list[fx.Node] = field(default_factory=list)
    bits: int | None = None
    reads: str = ""  # the group whose tensor its layer multiplies with
    signal: float = 0.0
    weights: float | None = None
    activations: float | None = None
    both: float = 0.0
    others: float = 0.0
    own: Energies | None = None
    drift: Energies | None = None
    channels: NDArray[np.float32] | None = None
    rows: NDArray[np.float32] | None = None
    columns: NDArray[np.float32] | None = None


@dataclass
class Noise:
    """Squared outputs, and their squared errors with everything, only weights, only tensors on their grids."""

    groups: list[Group]
    signal: float = 0.0
    whole: float = 0.0
    weights: float = 0.0
    activations: float = 0.0


def measure(
    model: Model,
    grid: Grid,
    samples: Samples,
    judged: Sequence[int],
    observed: Sequence[int],
    ranges: RangeMethod,
    layers: Collection[str] | None = None,
    progress: Any = None,
) -> Noise:
    """The noise of every layer (or these) alone, with it left out, and of the whole network; see sensitivity.py."""
    simulation = simulate(model, grid)
    total = len(observed) + len(judged)
    with torch.inference_mode():
        seen = observe(simulation, samples, observed, histograms=numerics.needs_histogram(ranges))
        set_ranges(simulation, seen, ranges)
        found = Noise([one for one in groups_of(simulation) if layers is None or one.name in layers])
        done = len(observed)
        for batch in batches(samples, judged):
            _add(found, _Runs(simulation), batch)
            done += rows_in(batch)
            if progress:
                progress(done, total)
    return found


def groups_of(simulation: Simulation) -> list[Group]:
    """The layers, in order, with the nodes at which they are put on grids and the ranges of their weights."""
    module, found = simulation.network, dict[str, Group]()
    for node in module.graph.nodes:
        called = _called(module, node)
        if isinstance(called, WeightGrid):
            group = found.setdefault(called.layer.name, Group(called.layer.name))
            group.grids.append(node)
            group.bits = called.bits
            weight = module.get_parameter(called.layer.parameter).detach()
            group.rows = _widths(weight, called.layer.axis)
            group.reads = _tensor_of(module, next(iter(node.users)).args[0])
            if not called.layer.depthwise:
                group.columns = _widths(weight, 1 - called.layer.axis)
        elif isinstance(called, Point):
            found.setdefault(called.layer, Group(called.layer)).points.append(node)
    return list(found.values())


class _Runs:
    """Runs of the network that start from the tensors of an earlier one."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation, self.module = simulation, simulation.network
        self.runner = _Keeping(self.module)

    def all_of(self, batch: Fed, *, weights: bool, points: bool) -> Values:
        """All tensors of a whole run."""
        self.simulation.activate(weights=weights, points=points)
        self.runner.garbage_collect_values = False
        self.runner.run(*all_of(batch), enable_io_processing=False)
        return dict(self.runner.env)

    def switched(self, nodes: Collection[fx.Node], before: Values, *, on: bool) -> Values:
        """All tensors of a run like that of `before`, with these nodes' grids switched."""
        grids = [cast(Point | WeightGrid, self.module.get_submodule(str(node.target))) for node in nodes]
        for grid in grids:
            grid.active = on
        changed = set(nodes)
        for node in self.module.graph.nodes:
            if any(source in changed for source in node.all_input_nodes):
                changed.add(node)
        known = {node: value for node, value in before.items() if node not in changed}
        self.runner.run(initial_env=known, enable_io_processing=False)
        for grid in grids:
            grid.active = not on
        return dict(self.runner.env)


class _Keeping(fx.Interpreter):
    """Keeps all tensors of a run."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.end = next(node for node in module.graph.nodes if node.op == "output")

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n is self.end:
            self.env[n] = value
        return value


def _add(found: Noise, runs: _Runs, batch: Fed) -> None:
    """One batch more: first each layer alone in the float network, then each in float in the quantized one."""
    end = runs.runner.end
    exact = runs.all_of(batch, weights=False, points=False)
    answers = main_answer(exact[end])

    def error(values: Values) -> float:
        return energy(main_answer(values[end]) - answers)

    signal = energy(answers)
    found.signal += signal
    for group in found.groups:
        group.signal += signal
        _add_alone(group, runs, exact, error)
    found.weights += error(runs.all_of(batch, weights=True, points=False))
    found.activations += error(runs.all_of(batch, weights=False, points=True))
    quantized = runs.all_of(batch, weights=True, points=True)
    found.whole += error(quantized)
    for group in found.groups:
        group.others += error(runs.switched([*group.grids, *group.points], quantized, on=False))
        if group.points:
            last = group.points[-1]
            group.drift = _plus(group.drift, exact[last], quantized[last])


def _add_alone(group: Group, runs: _Runs, exact: Values, error: Any) -> None:
    if group.grids:
        group.weights = (group.weights or 0.0) + error(runs.switched(group.grids, exact, on=True))
    if group.points:
        last = group.points[-1]
        if group.grids:
            group.activations = (group.activations or 0.0) + error(runs.switched(group.points, exact, on=True))
        both = runs.switched([*group.grids, *group.points], exact, on=True)
        group.both += error(both)
        if not group.grids:
            group.activations = group.both
        group.own = _plus(group.own, exact[last], both[last])
        widths = _widths(exact[last], 1 if exact[last].ndim == 4 else exact[last].ndim - 1)
        group.channels = widths if group.channels is None else np.maximum(group.channels, widths)
    else:
        group.both = group.weights or 0.0


def _tensor_of(module: fx.GraphModule, node: Any) -> str:
    """The layer whose output arrives at a node, through operators that only move it; "" where there are several."""
    while isinstance(node, fx.Node) and node.all_input_nodes:
        called = _called(module, node)
        if isinstance(called, Point):
            return called.layer
        if len(node.all_input_nodes) > 1:
            return ""
        node = node.all_input_nodes[0]
    return ""


def _called(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def energy(values: Tensor) -> float:
    return float(values.double().square().sum())


def _plus(before: Energies | None, exact: Tensor, other: Tensor) -> Energies:
    signal, noise = before or (0.0, 0.0)
    return signal + energy(exact), noise + energy(other - exact)


def _widths(values: Tensor, dim: int) -> NDArray[np.float32]:
    others = [d for d in range(values.ndim) if d != dim]
    found: NDArray[np.float32] = (values.abs().amax(others) if others else values.abs()).numpy()
    return found
