"""Learned rounding: the weights of a layer go to those points of the grid that change its outputs least.

For one layer the mean squared change of its outputs, E |W x - Q x|² over its inputs x in the float network, is a
quadratic form of the integers (Nagel et al. 2020, AdaRound, equation 13). Of the samples it needs the means and
covariances of x only. It is minimised by cyclic coordinate descent (Behdin et al. 2023, QuantEase, section 3): each
integer in turn takes its best value while the others stand, over several sweeps. That needs no learning rate, never
makes the sum worse, and reaches all integers; AdaRound's relaxation reaches the two neighbours of a weight. x is taken
from the float network: with inputs from the quantized one, weights shrink to make up for the noise in them
(docs/results/notes.md, "Learned rounding").

The rounded weights are written back as floats that lie on the grid of the runtime's own quantizer, so that it rounds
them to themselves. The largest weight of each channel stays at the end of the grid: max / 127 is then our scale. Zeros
of layers that were made sparse (`learned.sparse`) stay zero too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid
from pocketfit.core.plan.quantize import Round
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Tick
from pocketfit.passes.graph.aten import argument, module_of, off_grid, operation
from pocketfit.passes.graph.feed import all_of, fed
from pocketfit.passes.graph.fold_batch_norm import fold_batch_norm
from pocketfit.passes.graph.parameters import add_to_bias, attribute, put
from pocketfit.passes.quantize.simulate.fake_quantize import largest_integer, widest_scale
from pocketfit.passes.quantize.simulate.simulation import WeightGrid, simulate
from pocketfit.sources.models.fingerprint import fingerprint

BATCH = 8
ROWS = 20_000  # outputs that a layer's statistics are taken from
BLOCK = 64  # integers set one after another before the gradients of all others are updated, by one matrix product
SCALES = tuple(1 - 0.02 * i for i in range(31))  # the scales that are tried, as shares of max / 127
RIDGE = 1e-3  # of the mean variance, added to every variance
TINY = 1e-8
SMALLEST = torch.finfo(torch.float32).tiny  # of a scale
LEARNED = ("conv2d", "linear")  # other layers are rounded to the nearest


def apply(model: Model, settings: Round, samples: Samples, grid: Grid, *, progress: Tick | None = None) -> Model:
    """A copy of the model, batch norms folded, its weights on the grid and its biases set for them."""
    simulation = simulate(model, grid)
    simulation.activate(weights=False, points=False)
    network = fold_batch_norm(model.network, model.signature)
    with torch.inference_mode():
        gathered = layer_inputs(simulation.network, samples, settings.samples, settings.seed)
        for done, (name, sums) in enumerate(gathered.items()):
            grid_of_layer = simulation.weights[name]
            parameter, sparse = grid_of_layer.layer.parameter, name in model.learned.sparse
            wanted = attribute(network, parameter).clone()
            weight = solve(wanted, sums, grid_of_layer.bits, settings.sweeps, keep_zeros=sparse)
            put(network, parameter, weight)
            for (layer, bias), seen in sums.uses.items():
                add_to_bias(network, layer, bias, shift(wanted - weight, seen.mean))
            if progress:
                progress(done + 1, len(gathered))
    findings = tuple(dict.fromkeys((*model.findings, *off_grid(simulation.network.graph))))
    return replace(model, network=network, sha256=fingerprint(network), findings=findings)


def layer_inputs(network: fx.GraphModule, samples: Samples, count: int, seed: int) -> dict[str, Sums]:
    """Layer -> the Sums over its inputs for `count` of the samples; layers on the grid of a simulation's network."""
    rows = np.random.default_rng(seed).permutation(len(samples))[:count]
    gathering = _Gathering(network, max(1, ROWS // len(rows)))
    for start in range(0, len(rows), BATCH):
        gathering.run(*all_of(fed(samples, np.sort(rows[start : start + BATCH]))))
    return gathering.sums


@dataclass
class Use:
    """The inputs of one call of a layer, summed up; one output reads k of them.

    first  the sum of x, [groups, k]
    rows   how many x that were
    """

    first: Tensor
    rows: int

    @property
    def mean(self) -> Tensor:
        return self.first / self.rows


@dataclass
class Sums:
    """The inputs of a layer, summed up over all its calls; one output reads k of them.

    first   the sum of x, [groups, k]
    second  the sum of x xᵀ, [groups, k, k]
    rows    how many x that were
    uses    the same for each (layer, bias), as a weight may serve several layers; bias "" without one
    """

    first: Tensor
    second: Tensor
    rows: int
    uses: dict[tuple[str, str], Use] = field(default_factory=dict)

    def moments(self) -> tuple[Tensor, Tensor]:
        """(mean [groups, k], covariance [groups, k, k]). With few rows for many inputs the covariances of pairs are
        uncertain, so they are shrunk towards zero (Ledoit and Wolf 2004)."""
        mean = self.first / self.rows
        covariance = self.second / self.rows - mean[:, :, None] * mean[:, None]
        k = covariance.shape[1]
        variance = covariance.diagonal(dim1=1, dim2=2).clamp(min=0)
        shrink = k / (k + self.rows)
        ridge = RIDGE * variance.mean(1, keepdim=True).clamp(min=TINY)  # a dead channel's inputs never vary
        diagonal = torch.diag_embed(shrink * variance + ridge)
        return mean, (1 - shrink) * covariance + diagonal


class _Gathering(fx.Interpreter):
    """Runs a simulation's network and sums up the inputs of its layers on the grid, at positions all over the image."""

    def __init__(self, module: fx.GraphModule, per_sample: int) -> None:
        super().__init__(module)
        self.sums: dict[str, Sums] = {}
        self._per_sample = per_sample

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function" and operation(n) in LEARNED and isinstance(n.args[1], fx.Node):
            weighed = n.args[1].op == "call_module"
            grid = self.module.get_submodule(str(n.args[1].target)) if weighed else None
            if isinstance(grid, WeightGrid) and isinstance(n.args[0], fx.Node):
                values, weight = self.env[n.args[0]], self.env[n.args[1]]
                bias = n.args[2] if len(n.args) > 2 else None
                rows = patches(n, values, weight.shape, self._per_sample)
                called = module_of(n), str(bias.target) if isinstance(bias, fx.Node) else ""
                self._add(grid.layer.name, called, rows.float())
        return super().run_node(n)

    def _add(self, name: str, called: tuple[str, str], rows: Tensor) -> None:
        first, second, count = rows.sum(1), rows.mT @ rows, rows.shape[1]
        sums = self.sums.setdefault(name, Sums(torch.zeros_like(first), torch.zeros_like(second), 0))
        use = sums.uses.setdefault(called, Use(torch.zeros_like(first), 0))
        sums.second += second
        for part in (sums, use):
            part.first += first
            part.rows += count


def patches(node: fx.Node, values: Tensor, weight_shape: torch.Size, per_sample: int) -> Tensor:
    """[groups, rows, k]: the inputs of single outputs of a convolution or linear layer, up to `per_sample` a sample."""
    if operation(node) == "linear":
        return values.reshape(1, -1, values.shape[-1])
    stride, dilation = (_pair(argument(node, name, 1)) for name in ("stride", "dilation"))
    spans = [(weight_shape[2 + axis] - 1) * dilation[axis] + 1 for axis in (0, 1)]
    values = nn.functional.pad(values, _padding(node, spans))
    for axis in (0, 1):
        values = values.unfold(2 + axis, spans[axis], stride[axis])[..., :: dilation[axis]]
    height, width = values.shape[2:4]  # [n, C, height, width, kh, kw]
    at = torch.randperm(height * width, generator=torch.Generator().manual_seed(0))[:per_sample]
    chosen: Tensor = values[:, :, at // width, at % width]
    chosen = torch.unflatten(chosen, 1, (argument(node, "groups", 1), -1))  # [n, groups, C / groups, rows, kh, kw]
    return chosen.permute(1, 0, 3, 2, 4, 5).flatten(3).flatten(1, 2)


def _pair(value: Any) -> list[int]:
    """[vertical, horizontal] of an ATen argument that may stand for both."""
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


def _padding(node: fx.Node, spans: list[int]) -> list[int]:
    """[left, right, top, bottom] of a convolution whose window spans this many rows and columns; "same" puts the odd
    one behind."""
    given = argument(node, "padding", 0)
    if given == "same":
        before = [(span - 1) // 2 for span in spans]
        after = [span - 1 - first for span, first in zip(spans, before, strict=True)]
    else:
        before = after = [0, 0] if given == "valid" else _pair(given)
    return [before[1], after[1], before[0], after[0]]


def shift(change: Tensor, mean: Tensor) -> Tensor:
    """float32 [outputs]: by how much a layer's outputs fall on average when `change` [outputs, …] is subtracted from
    its weight; `mean` [groups, k] is that of its inputs."""
    return (change.reshape(len(mean), -1, mean.shape[1]) @ mean[..., None]).flatten()


def solve(weight: Tensor, sums: Sums, bits: int, sweeps: int, *, keep_zeros: bool = False) -> Tensor:
    """The weight [outputs, …] on the grid.

    keep_zeros  weights that are zero stay zero; else they move as all others do
    """
    mean, covariance = sums.moments()
    groups, k = mean.shape
    wanted = weight.reshape(groups, -1, k)
    largest = largest_integer(bits)
    widest = widest_scale(wanted.flatten(0, 1), bits).view(groups, -1, 1)
    # Weights too small for a scale get the scale 1: the largest of them is 0, and not the end of that grid.
    wanted = wanted.masked_fill(wanted.abs().amax(2, keepdim=True) < SMALLEST * largest, 0.0)
    importance = covariance.diagonal(dim1=1, dim2=2)[:, None]
    scale = best_scale(wanted, widest, importance, largest)
    on_grid = descended(wanted, scale, covariance, largest, sweeps, keep_zeros=keep_zeros) * scale
    nearest = (wanted / widest).round_().clamp_(-largest, largest) * widest
    worse = error(on_grid - wanted, covariance) > error(nearest - wanted, covariance)
    if worse.any():  # a scale that looks best one weight at a time need not be: these start from the nearest
        outputs = worse.any(0)
        some, scale = wanted[:, outputs], widest[:, outputs]
        again = descended(some, scale, covariance, largest, sweeps, keep_zeros=keep_zeros) * scale
        on_grid[:, outputs] = torch.where(worse[:, outputs, None], again, on_grid[:, outputs])
    return on_grid.reshape(weight.shape)


def error(change: Tensor, covariance: Tensor) -> Tensor:
    """The mean squared change of each output, [groups, outputs], for changed weights [groups, outputs, k]."""
    return ((change @ covariance) * change).sum(2)


def best_scale(wanted: Tensor, widest: Tensor, importance: Tensor, largest: int) -> Tensor:
    """The scale with the least squared error, [groups, outputs, 1]: `widest` times one of SCALES.

    wanted  [groups, outputs, k]; `importance` of each weight's error, broadcast to it
    """
    least, best = torch.full_like(widest, torch.inf), widest
    for share in SCALES:
        scale = share * widest
        coarse = (wanted / scale).round_().clamp_(-largest, largest).mul_(scale)
        squared = coarse.sub_(wanted).square_().mul_(importance).sum(2, keepdim=True)
        best, least = torch.where(squared < least, scale, best), torch.minimum(squared, least)
    return best


def descended(
    wanted: Tensor, scale: Tensor, covariance: Tensor, largest: int, sweeps: int, *, keep_zeros: bool = False
) -> Tensor:
    """Integers q, [groups, outputs, k], with a small (q scale - wanted) covariance (q scale - wanted)ᵀ.

    The largest of each channel is pinned to the end of the grid, and with `keep_zeros` each zero to zero.
    """
    integers = (wanted / scale).round().clamp(-largest, largest)
    pinned = wanted == 0 if keep_zeros else torch.zeros_like(integers, dtype=torch.bool)
    pinned.scatter_(2, wanted.abs().argmax(2, keepdim=True), True)
    integers = torch.where(pinned, largest * wanted.sign(), integers)
    curvature = covariance.diagonal(dim1=1, dim2=2)
    for _ in range(sweeps):
        slope = (integers * scale - wanted) @ covariance
        changed = 0
        for start in range(0, integers.shape[2], BLOCK):
            stop = min(start + BLOCK, integers.shape[2])
            near, moved = slope[..., start:stop].clone(), torch.zeros_like(integers[..., start:stop])
            for i in range(start, stop):
                old = integers[..., i]
                best = (old - near[..., i - start] / (scale[..., 0] * curvature[:, None, i])).round()
                new = torch.where(pinned[..., i], old, best.clamp(-largest, largest))
                step = (new - old) * scale[..., 0]
                near += step[..., None] * covariance[:, None, i, start:stop]
                moved[..., i - start], integers[..., i] = step, new
            slope += moved @ covariance[:, start:stop]
            changed += int((moved != 0).sum())
        if changed == 0:
            break
    return integers
