"""Arrays under the names of a network's inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.signature import TensorSpec
from pocketfit.sources.data.dataset import from_arrays, open_data

IDS, MASK = TensorSpec("input_ids", (None, 6), "int64"), TensorSpec("attention_mask", (None, 6), "int32")
RNG = np.random.default_rng(0)
X = {"input_ids": RNG.integers(0, 900, (40, 6)), "attention_mask": RNG.integers(0, 2, (40, 6))}
Y = np.arange(40) % 2


def test_arrays_come_in_the_networks_order_and_dtypes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", attention_mask=X["attention_mask"], y=Y, input_ids=X["input_ids"])
    data = open_data(tmp_path / "a.npz")
    data.check_fits([IDS, MASK], Preprocess())
    samples = data.split("train", Preprocess(), split_seed=0, inputs=[IDS, MASK])
    ids, mask = samples.feeds(slice(None))
    assert (ids.dtype, mask.dtype) == (np.int64, np.int32)
    rows = [int(name.partition("[")[2][:-1]) for name in samples.names]
    assert np.array_equal(ids, X["input_ids"][rows])
    assert np.array_equal(mask, X["attention_mask"][rows])
    part = samples.take([3, 1]).first(1)
    assert np.array_equal(part.feeds(slice(None))[1], mask[3:4])
    assert [array.shape for array in samples.by_name(["attention_mask", "input_ids"])] == [(len(rows), 6)] * 2
    assert samples.by_name(["attention_mask", "input_ids"])[0] is samples.more["attention_mask"]


def test_one_array_may_be_called_x_and_parts_stay_parts() -> None:
    x = {"x": X["input_ids"][:30], "attention_mask": X["attention_mask"][:30]}
    test = {"x": X["input_ids"][30:], "attention_mask": X["attention_mask"][30:]}
    data = from_arrays(x, Y[:30], x_test=test, y_test=Y[30:])
    held = data.split("verdict", Preprocess(), split_seed=0, inputs=[IDS, MASK])
    assert len(held) == 10
    assert sorted(map(tuple, held.feeds(slice(None))[0].tolist())) == sorted(map(tuple, X["input_ids"][30:].tolist()))


@pytest.mark.parametrize(
    ("change", "inputs", "words"),
    [
        ({"attention_mask": None}, [IDS, MASK], r"takes 2 inputs \(input_ids, attention_mask\), and the data give x"),
        ({"extra": Y[:, None]}, [IDS, MASK], "and the data give input_ids, attention_mask, extra"),
        ({"attention_mask": X["attention_mask"][:9]}, [IDS, MASK], "attention_mask is .9, 6., .* 40 rows"),
        ({"input_ids": X["input_ids"] / 2}, [IDS, MASK], "'input_ids' are float.*takes whole numbers"),
        ({"attention_mask": X["attention_mask"][:, :3]}, [IDS, MASK], r"have \[3\] a sample, .* for 'attention_mask'"),
        ({"attention_mask": np.array(["a"] * 40)}, [IDS, MASK], "further inputs are float32, or whole numbers"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change: dict[str, Any], inputs: list[TensorSpec], words: str) -> None:
    given = {name: array for name, array in (X | change).items() if array is not None}
    with pytest.raises(UserError, match=words):
        from_arrays(given, Y).check_fits(inputs, Preprocess())


def test_samples_that_differ_in_a_further_input_only_are_no_copies() -> None:
    same = np.zeros_like(X["input_ids"])
    data = from_arrays({"input_ids": same, "attention_mask": np.arange(240).reshape(40, 6)}, Y)
    assert len(set(data.listing.contents)) == 40
