"""After the correction the mean error of rounded weights is gone, from samples or from batch-norm statistics."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.nn import functional as F

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid
from pocketfit.core.plan.quantize import CorrectBias
from pocketfit.core.samples import Samples
from pocketfit.passes.quantize import bias_correction
from pocketfit.passes.quantize.batch_norm_moments import clipped
from pocketfit.passes.quantize.simulate.fake_quantize import fake_weight, widest_scale
from tests.passes import small_networks as nets

FOUR, EIGHT = Grid(4, 8), Grid(8, 8)


def samples_of(model: Model, count: int = 64, offset: float = 3.0) -> Samples:
    shape = model.signature.inputs[0].with_batch(count)
    array = np.random.default_rng(0).normal(offset, size=shape).astype(np.float32)
    names = [str(i) for i in range(count)]
    return Samples(
        array=array,
        labels=np.full(count, -1, np.int64),
        names=names,
        split="calibration",
        sha256="",
        preprocess=model.preprocess,
    )


def rounded(network: nn.Module, grid: Grid) -> nn.Module:
    """In place: the weights as a runtime's quantizer leaves them."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bits = grid.bits(name, depthwise=isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1)
            if bits is not None:
                layer.weight.data = fake_weight(layer.weight, widest_scale(layer.weight, bits), bits).detach()
    return network


class One(nn.Module):
    """A layer alone, without a bias."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x).mean((2, 3))


@pytest.mark.parametrize(
    ("layer", "bits"),
    [
        (nn.Conv2d(3, 16, 3, bias=False), 4),
        (nn.Conv2d(3, 16, 5, padding=2, stride=2, bias=False), 4),
        (nn.Conv2d(3, 16, 3, padding="same", padding_mode="zeros", bias=True), 4),
        (nn.Conv2d(3, 12, 3, padding=1, groups=3, bias=False), 8),
        (nn.Conv2d(3, 16, 1, bias=False), 4),
    ],
)
def test_mean_error_of_a_layer_is_gone(layer, bits):
    model = nets.model_of(One(layer))
    samples = samples_of(model)
    x = torch.from_numpy(samples.array)
    corrected = bias_correction.apply(model, CorrectBias(), samples, FOUR)
    assert torch.equal(corrected.network.layer.weight, model.network.layer.weight)
    with torch.no_grad():
        wanted = model.network(x)
        plain = rounded(nets.copy.deepcopy(model.network), FOUR)(x)
        after = rounded(nets.copy.deepcopy(corrected.network), FOUR)(x)
    before_error, error = ((y - wanted).mean(0).abs().max() for y in (plain, after))
    assert before_error > (0.05 if bits == 4 else 1e-3)
    assert error < 1e-5


def test_layers_behind_one_another():
    torch.manual_seed(0)
    model = nets.model_of(nets.Residual())
    samples = samples_of(model)
    x = torch.from_numpy(samples.array)
    corrected = bias_correction.apply(model, CorrectBias(), samples, FOUR)
    folded = bias_correction.apply(
        model, CorrectBias(), samples, Grid(4, 8, keep_float=("stem.0", "enter.0", "a.0", "b.0", "fc"))
    )
    with torch.no_grad():
        wanted = model.network(x)
        torch.testing.assert_close(folded.network(x), wanted, rtol=1e-4, atol=1e-4)
        plain, after = (rounded(nets.copy.deepcopy(m.network), FOUR)(x) for m in (folded, corrected))
    assert (after - wanted).mean(0).abs().max() < 0.5 * (plain - wanted).mean(0).abs().max()


def test_layers_in_float_and_the_given_model_are_left_alone():
    model = nets.model_of(nets.Flatten())
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    samples = samples_of(model)
    grid = Grid(4, 8, keep_float=("classifier.0",), keep_int8=("classifier.2",))
    corrected = bias_correction.apply(model, CorrectBias(), samples, grid)
    coarse = bias_correction.apply(model, CorrectBias(), samples, FOUR)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.network.state_dict().items())
    own = model.network.classifier
    assert torch.equal(corrected.network.classifier[0].bias, own[0].bias)
    small, large = ((one.network.classifier[2].bias - own[2].bias).abs().max() for one in (corrected, coarse))
    assert 0 < small < large / 4
    assert corrected.sha256 != model.sha256
    assert corrected.sha256 == bias_correction.apply(model, CorrectBias(), samples, grid).sha256


def test_a_layer_that_is_called_twice_gets_one_correction():
    model = nets.model_of(nets.Twice())
    samples = samples_of(model)
    corrected = bias_correction.apply(model, CorrectBias(), samples, FOUR).network
    change = fake_weight(corrected.twice.weight, widest_scale(corrected.twice.weight, 4), 4) - corrected.twice.weight
    with torch.no_grad():
        x = corrected.enter(corrected.stem(torch.from_numpy(samples.array)))
        folded = bias_correction.apply(
            model, CorrectBias(), samples, Grid(4, 8, keep_float=("stem.0", "enter.0", "twice", "fc"))
        )
        x = folded.network.enter(folded.network.stem(torch.from_numpy(samples.array)))
        y = F.relu(folded.network.twice(x))
        errors = [F.conv2d(one, change, padding=1).mean((0, 2, 3)) for one in (x, y)]
    expected = model.network.twice.bias - (errors[0] + errors[1]) / 2
    torch.testing.assert_close(corrected.twice.bias, expected, rtol=1e-4, atol=1e-5)


class Clipped(nn.Module):
    """Inputs that are normal, in channels, behind a batch norm that knows their moments."""

    def __init__(self, activation):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.activation, self.second = activation, nn.Conv2d(32, 8, 1)
        variance = self.first.weight.flatten(1).square().sum(1)
        with torch.no_grad():
            self.norm.running_mean.zero_()
            self.norm.running_var.copy_(variance)
            self.norm.weight.uniform_(0.5, 3)
            self.norm.bias.uniform_(-2, 5)

    def forward(self, x):
        return self.second(self.activation(self.norm(self.first(x)))).mean((2, 3))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Identity(), nn.SiLU()])
def test_analytic_is_empirical_on_normal_inputs(activation):
    network = Clipped(activation).eval()
    model = nets.model_from_module(network, preprocess=nets.Preprocess(height=16, width=16))
    samples = samples_of(model, 400, offset=0.0)
    data = bias_correction.apply(model, CorrectBias(samples=400), samples, FOUR)
    analytic = bias_correction.apply(model, CorrectBias("batch-norm"), None, FOUR)
    own = network.second.bias.detach()
    found, known = (one.network.second.bias.detach() - own for one in (data, analytic))
    assert float(found.abs().max()) > 0.05
    torch.testing.assert_close(known, found, rtol=0, atol=0.03 * float(found.abs().max()))
    assert any("no data seen" in finding for finding in analytic.findings)
    assert not data.findings


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (0.0, math.inf), (-1.0, 1.0)])
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (3.0, 4.0), (-5.0, 2.0), (8.0, 0.5), (2.0, 1e-6)])
def test_moments_of_a_clipped_normal(low, high, mean, deviation):
    normal = stats.norm(mean, deviation)
    ends = np.clip([mean - 12 * deviation, mean + 12 * deviation], low, high)

    def moment(power):
        inside, _ = integrate.quad(lambda x: x**power * normal.pdf(x), *ends, limit=400, points=[np.clip(mean, *ends)])
        outside = low**power * normal.cdf(low) + (high**power * normal.sf(high) if high < math.inf else 0)
        return inside + outside

    got = clipped(torch.tensor(mean), torch.tensor(deviation**2), low, high)
    assert float(got[0]) == pytest.approx(moment(1), rel=1e-4, abs=1e-4)
    assert float(got[1]) == pytest.approx(moment(2) - moment(1) ** 2, rel=1e-3, abs=1e-3)


def test_refusals_are_sentences():
    model = nets.model_of(nets.Flatten())
    with pytest.raises(UserError, match="needs calibration samples: give data"):
        bias_correction.apply(model, CorrectBias(), None, EIGHT)
    plain = nets.model_of(One(nn.Conv2d(3, 4, 1)))
    with pytest.raises(UserError, match="has no batch norm behind a convolution"):
        bias_correction.apply(plain, CorrectBias("batch-norm"), None, EIGHT)
