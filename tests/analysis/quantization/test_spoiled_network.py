"""The bar of `explain`: a layer that was spoiled without a change of the float function is named first, and mended."""

from __future__ import annotations

import pytest
import torch

from pocketfit.analysis.quantization.culprits import culprits
from pocketfit.analysis.quantization.sensitivity import sensitivity
from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid
from pocketfit.core.plan.quantize import Equalize
from pocketfit.core.samples import Samples
from pocketfit.passes.quantize.equalize import equalize
from tests.analysis.quantization.spoiled_network import BOTTLENECKS, mobilenet_v2, pictures, sabotaged

GRID = Grid(8, 8)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> Model:
    return mobilenet_v2()


@pytest.fixture(scope="module")
def samples(model: Model) -> Samples:
    return pictures(40, model.preprocess, seed=1)


def whole_db(model: Model, samples: Samples) -> float:
    return sensitivity(model, GRID, samples, most=8, ranges="mse", layers=()).whole_db


@pytest.fixture(scope="module")
def mended_db(model: Model, samples: Samples) -> float:
    """Of the unspoiled network after the same ladder."""
    return whole_db(equalize.apply(model, Equalize(), samples), samples)


@pytest.mark.parametrize(
    ("block", "channel", "factor"), [(1, 0, 100.0), (1, 3, 100.0), (1, 2, 0.01), (17, 0, 100.0), (17, 3, -300.0)]
)
def test_one_of_the_two_layers_is_named_first_and_the_ladder_mends_it(
    model: Model, samples: Samples, mended_db: float, block: int, channel: int, factor: float
) -> None:
    spoiled = sabotaged(model, block, channel, factor)
    given = torch.from_numpy(samples.inputs(slice(0, 4)))
    with torch.no_grad():
        assert torch.allclose(spoiled.network(given), model.network(given), rtol=1e-4, atol=1e-5)
    bottleneck, _, reader = BOTTLENECKS[block]
    found = sensitivity(spoiled, GRID, samples, most=2)
    (first,) = culprits(found.layers, 1)
    assert first.layer in (bottleneck, reader)
    assert " times the median " in first.cause
    rows = {row.layer: row for row in found.layers}
    tell = rows[bottleneck].outputs if abs(factor) > 1 else rows[reader].inputs
    assert tell is not None and tell.which[0] == channel and tell.times > 30
    assert whole_db(equalize.apply(spoiled, Equalize(), samples), samples) > mended_db - 1
