"""Networks as .onnx files: the zoo, and the networks that people bring, written by torch's exporter."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import nn

from pocketfit import zoo


def zoo_network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A narrow network of the zoo with random weights, and the shape of a sample."""
    torch.manual_seed(0)
    narrow = {} if name.startswith("resnet") else {"width": 0.5}
    network = zoo.build(name, classes=7, **narrow).eval()
    for layer in network.modules():  # as after a training
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.running_mean, 0, 0.1)
    return network, (3, 32, 32)


def write(network: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """Export with a dynamic batch, by torch's exporter on top of torch.export."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (torch.randn(2, *shape),),
                path,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["x"],
                external_data=False,
                verbose=False,
            )
    finally:
        logging.disable(previous)
