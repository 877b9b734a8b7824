"""DS-CNN against the figures of "Hello Edge"."""

import pytest
import torch
from torch import nn

from pocketfit.zoo import ds_cnn

# Table 4 of the paper: memory with 8 bits for each weight (batch norms folded) and activation, in kB of 1000 bytes.
# Activations are those of the layer whose input and output take most.
PAPER = {"ds_cnn_s": 38.6, "ds_cnn_m": 189.2, "ds_cnn_l": 497.6}


@pytest.mark.parametrize("name", PAPER)
def test_memory_is_the_published_one(name: str) -> None:
    network = getattr(ds_cnn, name)().eval()
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    weights = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    both: list[int] = []
    for layer in network.modules():
        if isinstance(layer, ds_cnn.Same):
            layer.register_forward_hook(lambda _, given, made: both.append(given[0].numel() + made.numel()))
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 49, 10)).shape == (1, 12)
    assert round((weights + max(both)) / 1000, 1) == PAPER[name]
    if name == "ds_cnn_s":
        assert weights == 22_604
