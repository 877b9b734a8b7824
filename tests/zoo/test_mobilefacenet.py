"""MobileFaceNet against the figures of its paper, and whether what comes behind can work with it."""

from __future__ import annotations

import torch

from pocketfit.core.preprocess import Preprocess
from pocketfit.passes.graph.fold_batch_norm import fold_batch_norm
from pocketfit.sources.models.open_model import open_model
from pocketfit.zoo.mobilefacenet import mobilefacenet

FACE = Preprocess(height=112, width=112, resize="exact", resize_px=112, mean=(0.5,) * 3, std=(128 / 255,) * 3)


def test_it_has_the_names_that_were_published_and_takes_other_widths() -> None:
    network = mobilefacenet()
    names = network.state_dict().keys()
    known = {"conv1.conv.weight", "conv_23.conv_dw.prelu.weight", "conv_4.model.5.project.bn.weight", "linear.weight"}
    assert known <= names
    with torch.no_grad():
        assert network.eval()(torch.zeros(2, 3, 112, 112)).shape == (2, 128)
        assert mobilefacenet(size=64, width=0.5).eval()(torch.zeros(1, 3, 112, 112)).shape == (1, 64)


def test_it_opens_as_a_factory_and_with_its_norms_folded_has_the_published_parameters() -> None:
    """Chen et al. 2018, table 2: 0.99 M; before its norms are folded it has 1,003,136 numbers that learn."""
    model = open_model("pocketfit.zoo.mobilefacenet:mobilefacenet", preprocess=FACE)
    assert model.signature.outputs[0].shape == (None, 128)
    folded = fold_batch_norm(model.network, model.signature)
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)]
    assert sum(p.numel() for p in model.network.parameters()) == 1_003_136
    assert sum(p.numel() for p in folded.parameters()) == 993_344
    faces = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        assert torch.allclose(folded(faces), model.network(faces), atol=1e-4)
