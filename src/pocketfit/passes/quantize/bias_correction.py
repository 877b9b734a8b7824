"""Subtract from each bias the mean error that rounded weights cause at its output channel.

With Q for the rounded weights, E[Q x] - E[W x] = (Q - W) E[x] (Nagel et al. 2019, section 4.2). For a convolution that
is the mean image x, convolved with Q - W (zero padding included), and averaged over the positions. The mean inputs are
those of the float network, from one run over the samples. Inputs that have passed through rounded layers would need a
run for each layer, and have the same mean once the layers before are corrected. The statistics of batch norms serve in
place of samples. Figures: docs/results/notes.md, "Bias correction".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid
from pocketfit.core.plan.quantize import CorrectBias
from pocketfit.core.samples import Samples
from pocketfit.numerics.affine import fake_quantize, symmetric_scale
from pocketfit.passes.graph import aten, interpret
from pocketfit.passes.graph.aten import argument, call, operation
from pocketfit.passes.graph.fold_batch_norm import fold_batch_norm
from pocketfit.passes.graph.interpret import Run
from pocketfit.passes.graph.parameters import add_to_bias, attribute
from pocketfit.passes.quantize import batch_norm_moments
from pocketfit.sources.models.fingerprint import fingerprint

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def apply(model: Model, settings: CorrectBias, samples: Samples | None, grid: Grid) -> Model:
    """A Model with batch norms folded and other biases; its weights stay as they are, for the runtime to round.

    samples  of the calibration split; with statistics "batch-norm" they are not looked at and may be None. With
             statistics "file" nothing is corrected here: the runtime does that
    Raises UserError without samples where they are needed, without any batch norm where these are, and where
    torch.export can't follow the network.
    """
    network = fold_batch_norm(model.network, model.signature)
    if settings.statistics == "file":
        return replace(model, network=network, sha256=fingerprint(network))
    program = aten.export(network, model.signature)
    layers = _layers(program, network)
    sources = {node: argument(node, "input") for node in layers}
    findings: tuple[str, ...] = ()
    if settings.statistics == "batch-norm":
        known = batch_norm_moments.trace(model, program)
        means = {source: known[source].mean[:1] for source in sources.values() if source in known}
        findings = (batch_norm_moments.FINDING,)
    elif samples is None or not len(samples):
        raise UserError(
            "Bias correction needs calibration samples: give data, or correct by what batch norms remember"
            " (statistics 'batch-norm')"
        )
    else:
        means = _means(program, set(sources.values()), samples, settings.samples)
    # a layer that is called twice has an error for each call, and a weight may serve layers with biases of their own
    errors: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    for node, (weight, bias) in layers.items():
        owner = weight.rpartition(".")[0]
        layer = network.get_submodule(owner)
        bits = grid.bits(owner, depthwise=_is_depthwise(layer))
        if bits is not None and sources[node] in means:
            found = error(node, means[sources[node]], attribute(network, weight), bits)
            errors[aten.module_of(node), bias].append(found)
    for (called, bias), changes in errors.items():
        add_to_bias(network, called, bias, -torch.stack(changes).mean(0))
    return replace(
        model,
        network=network,
        sha256=fingerprint(network),
        learned=replace(model.learned, normal=batch_norm_moments.stored(batch_norm_moments.remembered(model))),
        findings=tuple(dict.fromkeys((*model.findings, *findings, *aten.off_grid(program.graph)))),
    )


def _layers(program: ExportedProgram, network: nn.Module) -> dict[fx.Node, tuple[str, str]]:
    """Operator -> dotted names of weight and bias ("" without one), of convolutions and linear layers."""
    names = aten.parameter_names(program)
    layers = {}
    for node in program.graph.nodes:
        if node.op != "call_function" or not operation(node).startswith(("conv", "linear")):
            continue
        weight, bias = (
            names.get(given.name, "") if isinstance(given, fx.Node) else ""
            for given in (argument(node, "weight"), argument(node, "bias"))
        )
        owner, _, last = weight.rpartition(".")
        if last == "weight" and isinstance(network.get_submodule(owner), _LAYERS):
            layers[node] = weight, bias
    return layers


def _is_depthwise(layer: nn.Module) -> bool:
    groups = getattr(layer, "groups", 1)
    return groups > 1 and groups == layer.in_channels


def _means(
    program: ExportedProgram, sources: Collection[fx.Node], samples: Samples, most: int
) -> dict[fx.Node, Tensor]:
    """The mean of each tensor over the samples, [1, ...]."""
    sums: dict[fx.Node, Tensor] = {}

    def see(node: fx.Node, value: Any) -> Any:
        if node in sources:
            mean = value.mean(0, keepdim=True)
            sums[node] = sums[node] + mean if node in sums else mean
        return value

    run = Run(program, see)
    batches = list(interpret.batches(samples, range(min(most, len(samples)))))
    with torch.no_grad():
        for batch in batches:
            run.on(*batch)
    return {node: total / len(batches) for node, total in sums.items()}


def error(node: fx.Node, mean: Tensor, weight: Tensor, bits: int) -> Tensor:
    """float32 [out]: the mean change of a layer's outputs when its weight is rounded, for a mean input [1, ...]."""
    kind = operation(node)
    axis = 1 if kind.startswith("conv_transpose") else 0
    others = tuple(dim for dim in range(weight.ndim) if dim != axis)
    values = weight.detach().numpy()
    rounded = fake_quantize(values, symmetric_scale(abs(values).max(others), bits), axis=axis)
    change = torch.from_numpy(rounded) - weight.detach()
    args = [mean if place == 0 else change if place == 1 else value for place, value in enumerate(node.args)]
    if len(args) > 2:
        args[2] = None  # the bias
    kwargs = {name: value for name, value in node.kwargs.items() if name != "bias"}
    answer = call(node, *args, **kwargs)
    out = answer.ndim - 1 if kind == "linear" else 1
    assert isinstance(answer, Tensor)
    return answer.movedim(out, 0).flatten(1).mean(1)
