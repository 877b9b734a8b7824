"""What a converted file must answer: everything that torch answers, at the batch at which it is scored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pocketfit.core.errors import ExportFailed
from pocketfit.core.runtime import ROWS
from pocketfit.core.signature import TensorSpec
from pocketfit.runtimes.common import agreement

SPECS = [TensorSpec("image", (None, 3, 8, 8), "float32", "NCHW")]
OUTPUTS = ["logits", "features"]
Arrays = list[NDArray[np.generic]]


class TwoEnds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3, 2), nn.Linear(36, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(x).relu()
        return self.fc(y.flatten(1)), y


NETWORK = TwoEnds().eval()


def run(arrays: Arrays) -> Arrays:
    """A file that answers as the network does."""
    with torch.no_grad():
        return [value.numpy() for value in NETWORK(torch.from_numpy(np.array(arrays[0])))]


def judged(file: Callable[[Arrays], Arrays], network: nn.Module = NETWORK) -> bool:
    return agreement.any_batch(network, file, SPECS, OUTPUTS, "The file")


def test_samples_differ_in_scale_and_offset_from_one_another() -> None:
    (values,) = agreement.samples(SPECS)
    assert values.shape == (ROWS, 3, 8, 8)
    assert values.dtype == np.float32
    deviations, means = values.std((1, 2, 3)), values.mean((1, 2, 3))
    assert deviations.max() > 5 * deviations.min()
    assert np.ptp(means) > 1
    np.testing.assert_array_equal(values, agreement.samples(SPECS)[0])
    (tokens,) = agreement.samples([TensorSpec("tokens", (None, 4), "int64")])
    assert set(tokens.ravel().tolist()) == {0, 1}


def test_a_right_file_is_right_for_any_batch() -> None:
    assert judged(run)


@pytest.mark.parametrize("place", [0, 1])
def test_each_output_is_looked_at_and_named(place: int) -> None:
    def wrong(arrays: Arrays) -> Arrays:
        found = run(arrays)
        found[place] = found[place] * 1.01
        return found

    with pytest.raises(ExportFailed, match=f"^The file has other outputs .* '{OUTPUTS[place]}' is off by 0.01 of"):
        judged(wrong)


def test_a_missing_output_a_nan_and_another_shape_are_refused() -> None:
    def poisoned(arrays: Arrays) -> Arrays:
        first, second = run(arrays)
        first[0, 0] = np.nan
        return [first, second]

    for file in (lambda a: run(a)[:1], poisoned, lambda a: [run(a)[0][:, :4], run(a)[1]]):
        with pytest.raises(ExportFailed, match="has other outputs"):
            judged(file)


def test_a_file_that_is_right_for_one_row_only_is_told() -> None:
    """As a normalization does whose batch size is written into the file: right alone, wrong beside others."""

    def mixed(arrays: Arrays) -> Arrays:
        values = np.asarray(arrays[0])
        return run([(values - values.mean(0, keepdims=True) * (len(values) > 1)).astype(np.float32)])

    assert not judged(mixed)


def test_a_network_that_mixes_samples_is_told() -> None:
    class Mixing(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            first, second = NETWORK(x)
            return first - first.mean(0, keepdim=True) * (len(x) > 1), second

    def file(arrays: Arrays) -> Arrays:
        with torch.no_grad():
            return [value.numpy() for value in Mixing()(torch.from_numpy(np.array(arrays[0])))]

    assert not judged(file, Mixing())


def test_what_a_network_makes_of_a_last_bit_is_allowed() -> None:
    """sin(1e4 x) moves by 1 % of its range where x is changed by 1e-6: no file can be nearer than that."""

    class Wild(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(1e4 * x)

    def file(arrays: Arrays) -> Arrays:
        values = np.asarray(arrays[0], np.float64) * (1 + 3e-7)
        return [np.sin(1e4 * values).astype(np.float32)]

    assert agreement.any_batch(Wild(), file, SPECS, ["y"], "The file")
    with pytest.raises(ExportFailed):
        agreement.any_batch(Wild(), lambda a: [file(a)[0] + 0.2], SPECS, ["y"], "The file")


def test_a_fixed_batch_is_checked_at_that_batch() -> None:
    fixed = [TensorSpec("image", (4, 3, 8, 8))]
    seen = []

    def file(arrays: Arrays) -> Arrays:
        seen.append(len(arrays[0]))
        return run(arrays)

    assert agreement.any_batch(NETWORK, file, fixed, OUTPUTS, "The file")
    assert seen == [4]


def test_rows_alone_and_together() -> None:
    assert agreement.same_rows(run, SPECS, 1e-5)

    def ranged(arrays: Arrays) -> Arrays:
        """Rounded to 256 steps of the batch's own range."""
        found = run(arrays)
        step = np.ptp(found[0]) / 255
        return [np.rint(found[0] / step) * step, found[1]]

    assert not agreement.same_rows(ranged, SPECS, 1e-4)


@pytest.mark.parametrize(("off", "right"), [(2e-7, True), (1e-6, False)])
def test_outputs_near_zero_may_differ_by_the_last_bits_of_one(off: float, right: bool) -> None:
    network = nn.Sequential(NETWORK.conv, nn.Flatten(), nn.Linear(36, 5)).eval()
    with torch.no_grad():
        network[2].weight *= 1e-5
        network[2].bias *= 1e-5

    def file(arrays: Arrays) -> Arrays:
        with torch.no_grad():
            return [network(torch.from_numpy(np.array(arrays[0]))).numpy() + np.float32(off)]

    if right:
        assert judged(file, network)
        return
    with pytest.raises(ExportFailed, match="'logits' is off"):
        judged(file, network)


class Tokens(nn.Module):
    """The mean of an embedding of so many rows; `seen` is the largest number of the last call."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Embedding(rows, 16)
        self.seen = 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.seen = int(tokens.max())
        return self.rows(tokens).mean(1)


@pytest.mark.parametrize(("rows", "highest"), [(256, 126), (20, 9), (2, 1)])
def test_whole_numbers_are_as_many_as_the_network_has_rows(rows: int, highest: int) -> None:
    network, file, specs = Tokens(rows).eval(), Tokens(rows).eval(), [TensorSpec("tokens", (None, 40), "int64")]

    def answers(arrays: Arrays) -> Arrays:
        with torch.no_grad():
            return [file(torch.from_numpy(np.array(arrays[0]))).numpy()]

    assert agreement.any_batch(network, answers, specs, ["mean"], "The file")
    assert file.seen == highest
    with torch.no_grad():
        file.rows.weight[highest] += 1
    with pytest.raises(ExportFailed, match="'mean' is off by"):
        agreement.any_batch(network, answers, specs, ["mean"], "The file")
