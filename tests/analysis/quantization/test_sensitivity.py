import math

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.analysis.quantization.calibration_stability import stability
from pocketfit.analysis.quantization.sensitivity import Channels, channels, neighbours, sensitivity, split_rows
from pocketfit.core.errors import UserError
from pocketfit.core.plan.export import Grid
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.numerics.sqnr import sqnr_db
from pocketfit.passes.quantize.simulate.simulation import simulate
from pocketfit.sources.models.open_model import model_from_module

PREPROCESS = Preprocess(height=8, width=8, resize="exact", mean=(0.5,) * 3, std=(0.25,) * 3)


class Net(nn.Module):
    """A linear bottleneck between two layers with an activation, and a shortcut around the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.narrow, self.wide, self.back = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 12, 1), nn.Conv2d(12, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.narrow(torch.relu(self.deep(torch.relu(self.stem(x)))))
        x = x + self.back(torch.relu(self.wide(x)))
        return self.fc(x.mean((2, 3)))


def model_of(network: nn.Module):
    return model_from_module(network.eval(), preprocess=PREPROCESS, labels=tuple("abcd"))


@pytest.fixture
def network() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def samples() -> Samples:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (24, 8, 8, 3)).astype(np.uint8)
    return Samples(
        array=array,
        labels=np.full(24, -1),
        names=[str(i) for i in range(24)],
        split="calibration",
        sha256="x",
        preprocess=PREPROCESS,
    )


def test_the_rows_say_what_runs_with_only_that_switched_give(network, samples) -> None:
    model, grid = model_of(network), Grid(8, 8)
    found = sensitivity(model, grid, samples, most=6)
    judged, observed = split_rows(24, 6)
    simulation = simulate(model, grid)
    with torch.inference_mode(), simulation.observing():
        simulation.network(torch.from_numpy(samples.inputs(observed)))
    inputs = torch.from_numpy(samples.inputs(judged))

    def run(weights, points) -> np.ndarray:
        simulation.activate(weights=weights, points=points)
        with torch.inference_mode():
            return simulation.network(inputs).numpy()

    exact = run(False, False)
    assert found.whole_db == pytest.approx(sqnr_db(exact, run(True, True)), abs=1e-3)
    assert found.weights_db == pytest.approx(sqnr_db(exact, run(True, False)), abs=1e-3)
    assert found.activations_db == pytest.approx(sqnr_db(exact, run(False, True)), abs=1e-3)
    row = next(row for row in found.layers if row.layer == "wide")
    own = [name for name, point in simulation.points.items() if point.layer == "wide"]
    others = [name for name in simulation.points if name not in own]
    weights = [name for name in simulation.weights if name != "wide"]
    assert own and row.weight_bits == 8
    assert row.weights_db == pytest.approx(sqnr_db(exact, run(["wide"], False)), abs=0.05)
    assert row.activations_db == pytest.approx(sqnr_db(exact, run(False, own)), abs=0.05)  # 93 dB is float32 itself
    assert row.only_db == pytest.approx(sqnr_db(exact, run(["wide"], own)), abs=1e-3)
    assert row.all_but_db == pytest.approx(sqnr_db(exact, run(weights, others)), abs=1e-3)
    assert row.gain_db == pytest.approx(row.all_but_db - found.whole_db)


def test_shares_add_up_and_rows_stand_in_order(network, samples) -> None:
    found = sensitivity(model_of(network), Grid(8, 8), samples)
    names = [row.layer for row in found.layers]
    assert [name for name in names if name in dict(network.named_children())] == [
        *("stem", "deep", "narrow", "wide", "back", "fc")
    ]
    assert len(names) > 6, "the input and the sum have rows of their own"
    assert sum(row.share for row in found.layers) == pytest.approx(1)
    assert abs(found.added_db - found.whole_db) < 3
    assert found.how == "estimated"


def test_layers_in_float_cost_nothing(network, samples) -> None:
    found = sensitivity(model_of(network), Grid(4, 8, keep_float=("narrow",), keep_int8=("wide",)), samples)
    by_name = {row.layer: row for row in found.layers}
    assert by_name["wide"].weight_bits == 8 and by_name["back"].weight_bits == 4
    assert "narrow" not in by_name or by_name["narrow"].weight_bits is None


def test_weights_only_has_no_tensors(network, samples) -> None:
    found = sensitivity(model_of(network), Grid(4, None), samples)
    assert found.activations_db == math.inf and found.whole_db == found.weights_db
    assert all(row.activations_db is None and row.outputs is None for row in found.layers)
    assert found.to_json()["activations_db"] is None


@pytest.mark.parametrize("factor", [100.0, 1 / 100])
@pytest.mark.parametrize("channel", [0, 4])
def test_a_channel_scaled_and_undone_is_found(network, samples, factor, channel) -> None:
    before = sensitivity(model_of(network), Grid(8, 8), samples)
    straight = nn.Sequential(network.stem, nn.ReLU(), network.deep, nn.ReLU(), network.narrow, network.wide)
    straight.append(nn.ReLU()).append(nn.Conv2d(12, 4, 1)).append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    with torch.no_grad():
        network.narrow.weight[channel] *= factor
        network.narrow.bias[channel] *= factor
        network.wide.weight[:, channel] /= factor
    found = sensitivity(model_of(straight), Grid(8, 8), samples)
    first = found.guilty[0]
    assert first.layer in ("4", "5")
    by_name = {row.layer: row for row in found.layers}
    assert by_name["5"].reads == "4"
    tell = by_name["4"].outputs if factor > 1 else by_name["5"].inputs
    assert tell is not None and tell.which == (channel,) and tell.times > 20
    assert found.whole_db < before.whole_db - 5


@pytest.mark.parametrize("method", ["min-max", "moving-average", "percentile", "mse", "kl"])
def test_every_method_of_ranges_is_judged(network, samples, method) -> None:
    found = sensitivity(model_of(network), Grid(8, 8), samples, ranges=method)
    assert found.ranges == method and 5 < found.whole_db < 80


def test_progress_ends_at_its_total(network, samples) -> None:
    ticks: list[tuple[int, int]] = []
    sensitivity(model_of(network), Grid(8, 8), samples, progress=lambda done, total: ticks.append((done, total)))
    assert ticks and ticks[-1][0] == ticks[-1][1]


def test_rows_are_disjoint_and_one_sample_is_refused(network, samples) -> None:
    for count in (2, 3, 7, 200, 1000):
        judged, observed = split_rows(count, 16)
        assert judged and observed and not set(judged) & set(observed)
        assert max(*judged, *observed) < count and len(judged) <= 16 and len(observed) <= 100
    with pytest.raises(UserError, match="at least two samples, and 1"):
        sensitivity(model_of(network), Grid(8, 8), samples.take([0]))


def test_dead_channels_do_not_set_the_median() -> None:
    assert channels([0, 0, 0, 2, 4, 2]) == Channels(6, 2.0, 0, ())
    assert channels([0.0, 0.0]) == Channels(2, 1.0, 0, ())
    assert channels([1] * 20 + [30] * 12).which == tuple(range(20, 28))
    assert neighbours([1.0], 0) is None


def test_methods_are_judged_over_seeds_and_differ_where_samples_do(network, samples) -> None:
    found = {one.method: one for one in stability(model_of(network), Grid(8, 8), samples)}
    assert list(found) == ["min-max", "moving-average", "percentile", "mse", "kl"]
    assert len(set(found["min-max"].sqnr_db)) > 1, "three seeds draw three subsets"
    told = found["mse"].to_json()
    assert told["lowest_db"] <= told["median_db"] <= told["highest_db"]
    assert sorted(told["sqnr_db"])[1] == told["median_db"]
