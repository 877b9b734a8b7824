"""Run a network's graph on samples, and sum up each channel of its tensors: range, mean and mean square."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from pocketfit.core.samples import Samples
from pocketfit.passes.graph import aten
from pocketfit.passes.graph.feed import Fed, all_of, fed
from pocketfit.passes.graph.scale_graph import Streams


class Run(fx.Interpreter):
    """Runs the graph on real inputs and shows each of its values to `see(node, value)`, which may replace it."""

    def __init__(self, program: ExportedProgram, see: Callable[[fx.Node, Any], Any]) -> None:
        super().__init__(program.graph_module)
        self.program, self.see = program, see

    def on(self, *inputs: Tensor) -> Any:
        """The outputs for one batch of aten.BATCH samples."""
        constants = {**self.program.state_dict, **self.program.constants}
        signature = self.program.graph_signature
        names = {**aten.parameter_names(self.program), **signature.inputs_to_lifted_tensor_constants}
        given = iter(inputs)
        places = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        return self.run(*(constants[names[node.name]] if node.name in names else next(given) for node in places))

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        return self.see(n, value) if n.op in ("call_function", "placeholder") else value


@dataclass(frozen=True)
class Channels:
    """Statistics of one tensor for each of its channels: float32 [C] each.

    low, high   the lowest and the highest value over all samples
    power       mean square
    usual_high  median over the samples of the highest value in a sample
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    power: Tensor
    usual_high: Tensor

    def shifted(self, by: Tensor) -> Channels:
        """The statistics of the tensor minus `by`, one number for each channel."""
        power = self.power - 2 * by * self.mean + by**2
        return Channels(self.low - by, self.high - by, self.mean - by, power, self.usual_high - by)


def observe(streams: Streams, batches: Iterable[Fed]) -> dict[fx.Node, Channels]:
    """The statistics of the tensors that carry free labels, and of layers' outputs before their activation."""
    dims = {tensor.node: tensor.dim for tensor in streams.tensors}
    dims |= {layer.node: layer.dim for layer in streams.layers}
    seen: dict[fx.Node, list[tuple[Tensor, ...]]] = {node: [] for node in dims}

    def see(node: fx.Node, value: Any) -> Any:
        if node in dims:
            values = value.detach().movedim(dims[node], 1)
            values = values.flatten(2) if values.ndim > 2 else values[:, :, None]  # [batch, C, places]
            seen[node].append((values.amin(2), values.amax(2), values.mean(2), values.square().mean(2)))
        return value

    run = Run(streams.program, see)
    with torch.no_grad():
        for batch in batches:
            run.on(*all_of(batch))
    return {node: _summary(*(torch.cat(part) for part in zip(*parts, strict=True))) for node, parts in seen.items()}


def _summary(low: Tensor, high: Tensor, mean: Tensor, power: Tensor) -> Channels:
    """The statistics over all samples, from those of each sample, [samples, C]."""
    return Channels(low.amin(0), high.amax(0), mean.mean(0), power.mean(0), high.median(0).values)


def batches(samples: Samples, rows: Collection[int]) -> Iterator[tuple[Tensor, ...]]:
    """These rows of the samples, as many at a time as the graph takes; a short last batch repeats its last sample."""
    index = list(rows)
    for start in range(0, len(index), aten.BATCH):
        part = index[start : start + aten.BATCH]
        yield all_of(fed(samples, part + part[-1:] * (aten.BATCH - len(part))))
