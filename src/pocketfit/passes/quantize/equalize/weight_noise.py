"""Factors of channels where weights are rounded so coarsely that they make most of the noise.

The weights of output i are rounded to steps of d_i. A weight w_ic then adds noise of d_i² / 12 times the variance v_c
of its input, and whatever of it exceeds the end of the grid is lost. With channel c divided by s_c, and its column
multiplied by s_c, a layer's weights add

    e = sum_ic (d_i² / 12 + max(|w_ic| s_c - end d_i, 0)²) v_c / s_c²

So columns that matter get more of the grid, and others no longer set the step (Lin et al. 2023, AWQ, section 3.2, where
one exponent is searched for each layer). The layer's input tensor, rounded to steps of t, adds
sum_c t² / 12 s_c² |w_c|². Both are divided by the variance of the layer's output and summed over all layers; the sum is
minimised by gradients. The channels' moments are all that it needs: no network is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from pocketfit.core.plan.export import Grid
from pocketfit.passes.graph.interpret import Channels
from pocketfit.passes.graph.scale_graph import ONE, Streams
from pocketfit.passes.quantize.simulate.fake_quantize import largest_integer

STEPS = 100
RATE = 0.1  # Adam's learning rate for logarithms, falling to 0: a factor may reach e**5 or its inverse
TINY = 1e-30


def factors(found: Streams, network: nn.Module, seen: Mapping[fx.Node, Channels], grid: Grid, least: Tensor) -> Tensor:
    """The number that each label's channel is divided by; float32 [found.count], 1 for label 0.

    least  float32 [found.count]: the lower bounds of these numbers; a label whose bound is 1 or more keeps its scale
    """
    held = least >= 1
    held[ONE] = True
    layers = [layer for layer in _layers(found, network, seen, grid) if layer.log_step is not None or layer.levels]
    logs = torch.zeros(found.count, requires_grad=True)
    optimizer = torch.optim.Adam([logs, *(layer.log_step for layer in layers if layer.log_step is not None)], lr=RATE)
    with torch.enable_grad():
        for taken in range(STEPS if layers else 0):
            optimizer.param_groups[0]["lr"] = RATE * (1 - taken / STEPS)
            scale = logs.exp()
            noise = torch.stack([layer.noise(scale[layer.labels]) for layer in layers]).sum()
            optimizer.zero_grad()
            torch.autograd.backward(noise.clamp(min=TINY).log())
            optimizer.step()
            with torch.no_grad():
                logs.clamp_(min=least.clamp(min=TINY).log())
                logs[held] = 0.0
    return logs.detach().exp()


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A layer's weights, and statistics of the channels that it reads.

    labels     int64 [groups, in / groups], the label of each channel that it reads
    variance   float32 [groups, in / groups], of these channels
    low, high  float32 [groups, in / groups], the ends of their ranges
    weight     absolute values, [groups, out / groups, in / groups, taps]
    log_step   logarithms of the weights' steps, [groups, out / groups, 1, 1]; None where each input channel has a step
               of its own (depthwise), or the weights stay in float
    end        end of the weights' grid, in steps
    levels     how many steps the range of the layer's input tensor has; 0 where that stays in float
    power      variance of the layer's outputs, summed over them
    """

    labels: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor
    weight: Tensor
    log_step: Tensor | None
    end: float
    levels: int
    power: Tensor

    def noise(self, scale: Tensor) -> Tensor:
        """The layer's noise over the variance of its outputs, for factors [groups, in / groups]."""
        found = torch.zeros(())
        if self.log_step is not None:
            by, step = scale[:, None, :, None], self.log_step.exp()
            beyond = (self.weight * by - self.end * step).clamp(min=0)
            found = found + ((step.square() / 12 + beyond.square()) * (self.variance[:, None, :, None] / by**2)).sum()
        if self.levels:
            step = ((self.high / scale).amax() - (self.low / scale).amin()) / self.levels
            found = found + step.square() / 12 * (scale.square() * self.weight.square().sum((1, 3))).sum()
        return found / self.power


def _layers(found: Streams, network: nn.Module, seen: Mapping[fx.Node, Channels], grid: Grid) -> list[_Layer]:
    parameters, layers = dict(network.named_parameters()), []
    for layer in found.layers:
        if layer.norm or layer.source not in seen or len(seen[layer.source].power) != len(layer.inputs):
            continue  # the channels that it reads have one factor in common, or none
        weight = parameters[layer.weight].detach().abs()
        weight = weight.reshape(layer.groups, len(weight) // layer.groups, len(layer.inputs) // layer.groups, -1)
        source, made = seen[layer.source], seen[layer.node]
        bits = grid.bits(layer.name, depthwise=layer.depthwise)
        log_step = None
        if bits is not None and not layer.depthwise:  # a depthwise channel has a step of its own
            widest = weight.amax((2, 3), keepdim=True).clamp(min=TINY) / largest_integer(bits)
            log_step = widest.log().requires_grad_()
        low, high, variance = (
            part.view(layer.groups, -1) for part in (source.low, source.high, source.power - source.mean.square())
        )
        layers.append(
            _Layer(
                labels=layer.inputs.view(layer.groups, -1),
                variance=variance.clamp(min=0),
                low=low.clamp(max=0),
                high=high.clamp(min=0),
                weight=weight,
                log_step=log_step,
                end=largest_integer(bits or 8) + 0.5,
                levels=2**grid.activation_bits - 1 if grid.activation_bits else 0,
                power=(made.power - made.mean.square()).clamp(min=0).sum().clamp(min=TINY),
            )
        )
    return layers
