"""Folded networks answer as before, without batch norms where these can go."""

import pytest
import torch
from torch import nn

from pocketfit import zoo
from pocketfit.passes.graph.fold_batch_norm import fold_batch_norm, foldable
from tests.passes import small_networks as nets


def norms(network):
    return sum(isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d) for layer in network.modules())


def assert_same(model, folded):
    images = nets.pictures(model)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), model.network(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "shufflenet_v2"])
def test_all_norms_of_the_zoo_fold(name):
    model = nets.model_of(zoo.build(name, classes=10), 32)
    before = norms(model.network)
    folded = fold_batch_norm(model.network, model.signature)
    assert before > 0 and norms(model.network) == before and norms(folded) == 0
    images = nets.pictures(model)
    with torch.no_grad():
        wanted, got = model.network(images), folded(images)
    torch.testing.assert_close(got / wanted.abs().max(), wanted / wanted.abs().max(), rtol=0, atol=1e-5)


def test_norm_behind_a_concatenation_stays():
    model = nets.model_of(nets.Concat())
    folded = fold_batch_norm(model.network, model.signature)
    assert norms(folded) == 1 and isinstance(folded.norm, nn.BatchNorm2d)
    assert_same(model, folded)


class Odd(nn.Module):
    """Layers that must not be folded: read twice, called twice; and one linear layer that may be."""

    def __init__(self):
        super().__init__()
        self.read_twice, self.norm1 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.called_twice, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.fc, self.norm3 = nn.Linear(4, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        x = self.read_twice(x)
        x = x + self.norm1(x)
        x = self.called_twice(self.norm2(self.called_twice(x)))
        return self.norm3(self.fc(x.mean((2, 3))))


def test_only_what_may_be_folded_is():
    network = Odd()
    with torch.no_grad():
        network.norm3.running_mean.copy_(torch.arange(5.0))
    model = nets.model_of(network)
    assert foldable(model.network, model.signature) == (("fc", "norm3"),)
    folded = fold_batch_norm(model.network, model.signature)
    assert isinstance(folded.norm3, nn.Identity) and norms(folded) == 2
    assert_same(model, folded)
