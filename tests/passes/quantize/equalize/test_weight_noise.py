"""Factors of channels for coarse weights: where the least noise is known, they are there, and torch's own quantizer
loses less by them."""

import math

import pytest
import torch
from torch import Tensor, nn

from pocketfit.core.plan.export import Grid
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.passes.graph import interpret, scale_graph
from pocketfit.passes.graph.fold_batch_norm import fold_batch_norm
from pocketfit.passes.graph.interpret import Channels
from pocketfit.passes.quantize.equalize import weight_noise
from tests.passes import small_networks as nets

WEIGHTS_ONLY, TENSORS_ONLY = Grid(4, None), Grid(4, 8, keep_float=("0", "2"))
CHANNELS = 12
PICTURES = Signature((TensorSpec("image", (None, 3, 16, 16), "float32", "NCHW"),), ())


class Two(nn.Sequential):
    """Two layers whose inner channels can be rescaled, of many sizes where they are made and where they are read."""

    def __init__(self, outputs: int) -> None:
        generator = torch.Generator().manual_seed(3)
        layers = nn.Conv2d(3, CHANNELS, 1), nn.Conv2d(CHANNELS, outputs, 1)
        super().__init__(layers[0], nn.ReLU(), layers[1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with torch.no_grad():
            for layer, axis in zip(layers, (0, 1), strict=True):
                sizes = torch.randn(CHANNELS, generator=generator).exp()
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
                layer.weight.mul_(sizes.view(*(-1 if dim == axis else 1 for dim in range(4))))


def inner(network: nn.Module, grid: Grid, least: float = 0.0) -> tuple[Tensor, Tensor, Channels]:
    """The factors of a Two's inner channels, the weight that reads them [outputs, channels], and what it sees."""
    found = scale_graph.find(network.eval(), PICTURES)
    pictures = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    seen = interpret.observe(found, pictures.split(2))
    (reader,) = (layer for layer in found.layers if layer.name == "2")
    factors = weight_noise.factors(found, network, seen, grid, torch.full((found.count,), least))
    assert float(factors[scale_graph.ONE]) == 1.0
    return factors[reader.inputs], network[2].weight.detach().flatten(1), seen[reader.source]


def test_a_single_output_has_all_its_weights_at_the_end_of_the_grid():
    """max_c (|w_c| s_c)² sum_c v_c / s_c² is least where the |w_c| s_c are alike, whatever the variances v_c."""
    factors, weight, seen = inner(Two(1), WEIGHTS_ONLY)
    sizes, variance = weight.abs()[0], seen.power - seen.mean.square()

    def noise(by: Tensor) -> float:
        return float((sizes * by).max().square() * (variance / by.square()).sum())

    assert noise(factors) < 1.05 * noise(1 / sizes) < 0.3 * noise(torch.ones(CHANNELS))


def test_tensors_alone_have_all_channels_equally_wide():
    """max_c (r_c / s_c)² sum_c s_c² |w_c|² is least for s_c = r_c, whatever the weights
    (passes/quantize/equalize/equalize.py)."""
    factors, weight, seen = inner(Two(5), TENSORS_ONLY)
    widths = seen.high.clamp(min=1e-3)

    def noise(by: Tensor) -> float:
        return float((widths / by).max().square() * (by * weight).square().sum())

    assert noise(factors) < 1.05 * noise(widths) < 0.3 * noise(torch.ones(CHANNELS))


def test_no_factor_is_below_the_least():
    free, _, _ = inner(Two(5), WEIGHTS_ONLY)
    bounded, _, _ = inner(Two(5), WEIGHTS_ONLY, least=0.8)
    held, _, _ = inner(Two(5), WEIGHTS_ONLY, least=1.0)
    assert float(free.min()) < 0.7 < 0.8 - 1e-6 < float(bounded.min())
    assert bool((held == 1).all())


@pytest.mark.parametrize("outputs", [1, 5, 40])
def test_torchs_own_quantizer_loses_less(outputs):
    network = Two(outputs)
    factors, weight, seen = inner(network, WEIGHTS_ONLY)

    def noise_db(by: Tensor) -> float:
        """Of 4-bit weights per output, in what the layer gives of independent channels."""
        scaled = weight * by
        scale, zero = scaled.abs().amax(1) / 7, torch.zeros(outputs, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(scaled, scale, zero, 0, -7, 7) / by
        variance = seen.power - seen.mean.square()
        return 10 * math.log10(
            float(((rounded - weight).square() * variance).sum() / (weight.square() * variance).sum())
        )

    assert noise_db(factors) < noise_db(torch.ones(CHANNELS)) - 1.5


def test_layers_in_float_have_no_say():
    model = nets.model_of(nets.Residual())
    network = fold_batch_norm(model.network, model.signature)
    found = scale_graph.find(network, model.signature)
    seen = interpret.observe(found, torch.randn(8, 3, 16, 16).split(2))
    names = tuple(layer.name for layer in found.layers)
    factors = weight_noise.factors(found, network, seen, Grid(4, None, keep_float=names), torch.zeros(found.count))
    assert bool((factors == 1).all())
