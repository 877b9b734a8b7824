"""A network spoiled for integers without a change of what it computes in float."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch

from pocketfit import zoo
from pocketfit.core.model import Model
from pocketfit.core.plan.rewrite import Resolution
from pocketfit.core.samples import Samples
from pocketfit.passes.rewrite import resolution
from pocketfit.sources.models.fingerprint import fingerprint
from pocketfit.sources.models.open_model import model_from_module, open_model

# Bottlenecks without a shortcut around them or behind them: (the layer, its batch norm, the only layer that reads it).
BOTTLENECKS = {
    1: ("features.1.conv.1", "features.1.conv.2", "features.2.conv.0.0"),
    17: ("features.17.conv.2", "features.17.conv.3", "features.18.0"),
}


def mobilenet_v2(*, width: float = 0.5, size: int = 64, seed: int = 0) -> Model:
    """Random weights, and batch norms that know what they see."""
    torch.manual_seed(seed)
    network = zoo.build("mobilenet_v2", width=width, classes=10)
    published = open_model("mobilenet_v2", classes=10)
    preprocess = resolution.apply(published, Resolution(size, size)).preprocess
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.uniform_(module.bias, 0.0, 0.5)
    network.train()
    with torch.no_grad():
        network(torch.from_numpy(pictures(48, preprocess, seed=9).inputs(slice(None))))
    return model_from_module(network.eval(), preprocess=preprocess, labels=tuple("abcdefghij"))


def pictures(count: int, preprocess, *, seed: int) -> Samples:
    """Coarse coloured noise, as smooth as pictures are."""
    rng = np.random.default_rng(seed)
    cells = -(-preprocess.height // 8)
    small = rng.integers(0, 256, (count, cells, cells, 3)).astype(np.uint8)
    array = small.repeat(8, 1).repeat(8, 2)[:, : preprocess.height, : preprocess.width]
    names = [str(i) for i in range(count)]
    return Samples(
        array=array,
        labels=np.full(count, -1),
        names=names,
        split="calibration",
        sha256=f"pictures {seed}",
        preprocess=preprocess,
    )


def sabotaged(model: Model, block: int, channel: int, factor: float) -> Model:
    """One channel of a linear bottleneck times `factor`, undone in the weights that read it."""
    _, norm, reader = BOTTLENECKS[block]
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        network.get_submodule(norm).weight[channel] *= factor
        network.get_submodule(norm).bias[channel] *= factor
        network.get_submodule(reader).weight[:, channel] /= factor
    return replace(model, network=network, sha256=fingerprint(network))
