"""Smaller pictures: signature and preprocess follow, the weights stay."""

import pytest
import torch

from pocketfit.core.errors import UserError
from pocketfit.core.plan.rewrite import Resolution
from pocketfit.passes.rewrite import resolution
from tests.passes import small_networks as nets


def test_signature_and_preprocess_follow():
    model = nets.model_of(nets.Residual(), 32)
    smaller = resolution.apply(model, Resolution(24, 16))
    assert smaller.signature.inputs[0].shape == (None, 3, 24, 16)
    assert smaller.signature.outputs == model.signature.outputs
    assert (smaller.preprocess.height, smaller.preprocess.width) == (24, 16)
    assert smaller.network is model.network and smaller.sha256 == model.sha256
    assert model.signature.inputs[0].shape == (None, 3, 32, 32)


def test_a_size_at_which_the_network_fails_is_a_sentence():
    with pytest.raises(UserError, match=r"does not run at 8 x 8 pixels .*keep its resolution"):
        resolution.apply(nets.model_of(nets.Flatten(), 16), Resolution(8, 8))


def test_answers_of_another_shape_are_a_sentence():
    class Dense(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)

    with pytest.raises(UserError, match=r"At 8 x 8 pixels the network has outputs of the shape \(2, 192\)"):
        resolution.apply(nets.model_of(Dense(), 16), Resolution(8, 8))
