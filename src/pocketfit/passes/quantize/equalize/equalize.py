"""Rescale channels so that those that share a range use it alike; what the network computes stays the same.

Runtimes give the weights of each output channel a step of their own, and a tensor one step for all its channels. So the
widest channel of a tensor sets the step for all: its neighbours with a hundredth of its range keep two or three values.
Let r_c be the range of channel c. The layer that makes the channel divides it by s_c, the layers that read it multiply
their column for it by s_c. The tensor's step is then d = max_c (r_c / s_c) / 255. Rounding adds noise of d² / 12 to
each channel, and the next layer multiplies that by s_c²:

    (max_c r_c / s_c)² * sum_c s_c² |w_c|²     is least for s_c = r_c, whatever the weights

That is SmoothQuant's formula (Xiao et al. 2023, equation 4) with exponent 1. Cross-layer equalization (Nagel et al.
2019, section 4.1) balances the weights of two layers instead, for runtimes that give a weight one step as a whole.
Columns that shrink are rounded more coarsely; with 8-bit weights that costs less than the tensors gain, with 4-bit
weights more, so that weight_noise.py weighs both. Figures: docs/results/notes.md, "Equalization".

relu6 lets a factor pass as long as the channel stays below its bound. Most of MobileNetV2's channels stay far below it,
and can be made wider: a channel whose highest value is r is widened by sqrt(6 / (1.5 r k)), where k is r over the
median, over the samples, of the highest value in a sample. Where k is large, few samples make the channel large, and an
unseen sample may make it larger by the same factor. The square root leaves as much room again, and shrinks the columns
behind less.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid
from pocketfit.core.plan.quantize import Equalize
from pocketfit.core.samples import Samples
from pocketfit.core.support.text import some
from pocketfit.passes.graph import aten, interpret, scale_graph
from pocketfit.passes.graph.fold_batch_norm import fold_batch_norm
from pocketfit.passes.graph.interpret import Channels
from pocketfit.passes.graph.scale_graph import ONE, Streams, Weighted
from pocketfit.passes.quantize import batch_norm_moments
from pocketfit.passes.quantize.equalize import bias_absorption, weight_noise
from pocketfit.sources.models.fingerprint import fingerprint

DEAD = 1e-6  # of the widest channel's range: a channel that is narrower keeps its scale
SPARE = 1.5  # how much higher than r k (see above) unseen samples may make a channel
LEAST = 1 / 8  # the smallest factor of a channel below a bound, because r k is a guess
SAME = 1e-4  # of the largest output: float32's rounding over a deep network stays below it
CHECKED = 32  # samples on which the outputs are compared


def apply(model: Model, settings: Equalize, samples: Samples | None, grid: Grid | None = None) -> Model:
    """A Model with batch norms folded and channels rescaled; the given one is left as it is.

    samples  of the calibration split; with statistics "batch-norm" they are not looked at and may be None
    grid     the grid of the plan's export settings: with coarse weights the factors weigh their noise, too; None: not
    Raises UserError without samples where they are needed, without any batch norm where these are, and where
    torch.export can't follow the network. Where the outputs would change by more than rounding, the network comes back
    with its batch norms folded only, and a finding says so.
    """
    folded = fold_batch_norm(model.network, model.signature)
    found = scale_graph.find(folded, model.signature)
    if settings.statistics == "batch-norm":
        seen, findings = (
            batch_norm_moments.channels(batch_norm_moments.trace(model, found.program), found),
            [batch_norm_moments.FINDING],
        )
    elif samples is None or not len(samples):
        raise UserError(
            "Equalization needs calibration samples: give data, or equalize by what batch norms remember"
            " (statistics 'batch-norm')"
        )
    else:
        rows = range(min(settings.samples, len(samples)))
        seen, findings = interpret.observe(found, interpret.batches(samples, rows)), []
    remembered = batch_norm_moments.remembered(model)
    coarse = grid if grid is not None and grid.coarse else None
    for before_relu in (True, False):
        network, normals, sentences = _equalized(
            folded, found, seen, settings, remembered, before_relu=before_relu, coarse=coarse
        )
        if _change(folded, network, model, samples) <= SAME:
            break
    else:
        network, normals = folded, remembered
        sentences = ["Channels were not equalized, as it would have changed what the network computes."]
    return replace(
        model,
        network=network,
        sha256=fingerprint(network),
        learned=replace(model.learned, ranges={}, normal=batch_norm_moments.stored(normals)),
        findings=tuple(dict.fromkeys((*model.findings, *findings, *sentences))),
    )


Normals = Mapping[str, tuple[Tensor, Tensor]]


def _equalized(
    folded: nn.Module,
    found: Streams,
    seen: Mapping[fx.Node, Channels],
    settings: Equalize,
    normals: Normals,
    *,
    before_relu: bool,
    coarse: Grid | None,
) -> tuple[nn.Module, Normals, list[str]]:
    """The network, means and deviations of its layers' outputs, and what there is to say about it."""
    network, shifts, sentences = folded, {}, []
    if settings.absorb:
        centred = bias_absorption.centre(folded, found, seen, before_relu=before_relu)
        network, seen, shifts = centred.network, centred.seen, centred.shifts
        if centred.absorbed:
            sentences.append(
                f"Channels of {some(centred.absorbed)} never come near zero, so that relu passes them as"
                " they are: their constant part was moved into the next layers' biases."
            )
    bounded = settings.statistics == "data"
    if coarse is None:
        scale = factors(found, seen, bounded=bounded)
    else:
        scale = weight_noise.factors(found, network, seen, coarse, least(found, seen, bounded=bounded))
    if bounded and (widened := sum(int((scale[b.labels] < 1).sum()) for b in found.bounds)):
        sentences.append(
            f"{widened} channels that stay far below the upper bound of their relu6 were made wider; inputs that"
            " drive one of them several times as high as any calibration sample does are clipped earlier than before."
        )
    outputs = {layer.name: scale[layer.outputs] for layer in found.layers}
    after = {
        name: ((mean - shifts.get(name, 0.0)) / outputs.get(name, 1.0), deviation / outputs.get(name, 1.0))
        for name, (mean, deviation) in normals.items()
    }
    return rescaled(network, found, scale), after, sentences


def _change(before: nn.Module, after: nn.Module, model: Model, samples: Samples | None) -> float:
    """The largest change of an output over the largest output: on samples, or on noise where there are none."""
    if samples is not None and len(samples):
        given = list(interpret.batches(samples, range(min(CHECKED, len(samples)))))
    else:
        given = [aten.noise(model.signature, aten.BATCH)]
    largest = difference = 0.0
    with torch.no_grad():
        for batch in given:
            for one, other in zip(_outputs(before(*batch)), _outputs(after(*batch)), strict=True):
                largest = max(largest, float(one.abs().max()))
                difference = max(difference, float((one - other).abs().max()))
    return difference / largest if largest else difference


def _outputs(given: Tensor | list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    return [given] if isinstance(given, Tensor) else list(given)


def factors(found: Streams, seen: Mapping[fx.Node, Channels], *, bounded: bool) -> Tensor:
    """The number that each label's channel is divided by; float32 [found.count], 1 for label 0.

    bounded  also rescale channels that stay below the bound of their relu6
    """
    widths = _widths(found, seen)
    scale = torch.where(widths > 0, widths, 1.0)
    for bound in found.bounds:
        scale[bound.labels] = 1.0
    shares = least(found, seen, bounded=bounded)
    scale = torch.where(shares > 0, shares, scale)
    scale[ONE] = 1.0
    return scale


def least(found: Streams, seen: Mapping[fx.Node, Channels], *, bounded: bool) -> Tensor:
    """For each label, the smallest number that its channel may be divided by without reaching its bound: at most 1; 0
    without a bound.

    bounded  False: none may be rescaled that has a bound
    """
    shares = torch.zeros(found.count)
    for bound in found.bounds:
        share = torch.ones(len(bound.labels))
        if bounded:
            channels = seen[bound.node]
            coming = SPARE * channels.high.square() / channels.usual_high.clamp(min=1e-30)
            share = torch.where(channels.high > 0, coming / bound.high, 1.0)
        shares.scatter_reduce_(0, bound.labels, share, "amax")
    return torch.where(shares > 0, shares.sqrt().clamp(LEAST, 1.0), 0.0)


def _widths(found: Streams, seen: Mapping[fx.Node, Channels]) -> Tensor:
    """For each label, the width of its channel in the tensor where it is widest beside the others; 0: nothing is known.

    To compare them, each channel's widths are first divided by their geometric mean over the tensors that it is in. So
    a channel that is wider in all of its tensors by one factor has a result that is larger by this factor.
    """
    tensors = []
    for tensor in found.tensors:
        if tensor.new_grid and tensor.node in seen:
            width = torch.maximum(-seen[tensor.node].low, seen[tensor.node].high)
            tensors.append((tensor.labels, torch.where(width > DEAD * width.max(), width, 0.0)))
    logs, places = torch.zeros(found.count), torch.zeros(found.count)
    for labels, width in tensors:
        logs.index_add_(0, labels, torch.where(width > 0, width.log(), 0.0))
        places.index_add_(0, labels, (width > 0).float())
    mean = torch.where(places > 0, (logs / places.clamp(min=1)).exp(), 1.0)
    widest = torch.zeros(found.count)
    for labels, width in tensors:
        beside = width / mean[labels]
        widest.scatter_reduce_(0, labels, beside / beside.max().clamp(min=1e-30), "amax")
    return mean * widest


def rescaled(network: nn.Module, found: Streams, scale: Tensor) -> nn.Module:
    """A copy in which the channels of each label are divided by its entry of `scale`, float32 [found.count]."""
    copied = copy.deepcopy(network)
    stored = {**dict(copied.named_parameters()), **dict(copied.named_buffers())}
    with torch.no_grad():
        for layer in found.layers:
            weight, made = stored[layer.weight], scale[layer.outputs]
            if layer.norm:
                read = scale[layer.inputs]
                weight.mul_(read / made)
                stored[f"{layer.name}.running_mean"].div_(read)
            else:
                by = scale[columns(layer)] / made[:, None]
                weight.mul_(by.view(*by.shape, *(1,) * (weight.ndim - 2)))
            if layer.bias:
                stored[layer.bias].div_(made)
    return copied


def columns(layer: Weighted) -> Tensor:
    """The label that each input column of a layer's weight reads: int64 [out, in / groups]."""
    out, groups = len(layer.outputs), layer.groups
    return layer.inputs.view(groups, 1, -1).expand(groups, out // groups, -1).reshape(out, -1)
