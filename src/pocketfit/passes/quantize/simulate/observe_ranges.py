"""Ranges for the points of a simulation, by the same methods as for files (numerics/quantization_ranges.py)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from torch import Tensor, nn

from pocketfit.core.plan.export import RangeMethod
from pocketfit.core.samples import Samples
from pocketfit.numerics import quantization_ranges as numerics
from pocketfit.passes.graph.feed import Fed, call, fed
from pocketfit.passes.quantize.simulate.simulation import Point, Simulation

BATCH = 4  # samples


def observe(
    simulation: Simulation, samples: Samples, rows: Sequence[int], *, histograms: bool
) -> dict[str, numerics.Summary]:
    """The Summary of each point of the float network over these rows, by the point's name."""
    simulation.activate(weights=False, points=False)
    observers = {name: numerics.Observer() for name in simulation.points}
    for look in (False, True)[: 1 + histograms]:

        def note(point: nn.Module, given: tuple[Tensor, ...], look: bool = look) -> None:
            assert isinstance(point, Point)
            observer, values = observers[point.name], given[0].numpy()
            if look:
                observer.count(values)
            else:
                observer.look(values)

        hooks = [point.register_forward_pre_hook(note) for point in simulation.points.values()]
        for batch in batches(samples, rows):
            call(simulation.network, batch)
        for hook in hooks:
            hook.remove()
    return {name: observer.summary() for name, observer in observers.items()}


def set_ranges(
    simulation: Simulation,
    seen: Mapping[str, numerics.Summary],
    method: RangeMethod,
    ends: Collection[str] | None = None,
) -> None:
    """Set the ranges of all points by a method; those of the network's input and outputs by min-max, as in files."""
    if ends is None:
        ends = ends_of(simulation)
    for name, point in simulation.points.items():
        low, high = numerics.range_of(seen[name], "min-max" if name in ends else method)
        point.low.data.fill_(low)
        point.high.data.fill_(high)


def ends_of(simulation: Simulation) -> set[str]:
    """Names of the points at the inputs and outputs of the network."""
    module, found = simulation.network, set()
    for node in module.graph.nodes:
        point = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(point, Point):
            source = node.args[0]
            if source.op == "placeholder" or any(user.op == "output" for user in node.users):
                found.add(point.name)
    return found


def batches(samples: Samples, rows: Sequence[int]) -> Iterator[Fed]:
    """The inputs [BATCH, ...] of these rows, in order; the last may be shorter."""
    for start in range(0, len(rows), BATCH):
        yield fed(samples, list(rows[start : start + BATCH]))
