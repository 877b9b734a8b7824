"""Times of operators, and which kernel ran them."""

from pathlib import Path

import numpy as np
import pytest

from pocketfit.core.errors import CannotRunHere
from pocketfit.runtimes.litert import profile, runtime
from tests.runtimes.litert.network import SIZE, export


def test_profile_names_kernels_and_adds_up() -> None:
    for precision, kernel in (("float32", "F32"), ("int8", "QC8")):
        path = Path(export(precision).path)
        ops = runtime.inspect(path).ops
        costs = runtime.profile(path, {"image": np.zeros((1, SIZE, SIZE, 3), np.float32)}, runs=20)
        assert [(c.index, c.name, c.type) for c in costs] == [(op.index, op.name, op.type) for op in ops]
        ran_on = {c.index: c.ran_on for c in costs}
        weighted = [ran_on[op.index] for op in ops if op.layer]
        assert all(name.startswith("XNNPACK: ") and kernel in name for name in weighted)
        assert 0 < sum(c.time_us for c in costs) < 1e6


def test_profile_says_which_operators_no_delegate_took() -> None:
    """XNNPACK has no depthwise kernel for float activations with int8 weights."""
    path = Path(export("dynamic-int8").path)
    costs = runtime.profile(path, {"image": np.zeros((1, SIZE, SIZE, 3), np.float32)}, runs=5)
    assert [c.type for c in costs if c.ran_on == "builtin"] == ["DEPTHWISE_CONV_2D"]


def test_profile_refuses_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "version", lambda _: "9.9.9")
    with pytest.raises(CannotRunHere, match=r"checked with 2\.3\.0 only; ai-edge-litert 9\.9\.9 is installed"):
        runtime.profile(Path(export().path), {"image": np.zeros((1, SIZE, SIZE, 3), np.float32)})


def test_times_go_to_the_nodes_that_they_belong_to() -> None:
    contents = runtime.inspect(Path(export().path))
    kinds = [op.type for op in contents.ops]
    assert kinds == ["PAD", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED"]
    timed = profile.Timed
    events = [
        timed("Convert (NC, F32, QD8)", True, 0),  # made for the convolution behind it
        timed("Convolution (NHWC, F32) IGEMM", True, 1),
        timed("Convolution (NHWC, F32) DWConv", False, 2),
        timed("Fully Connected (NC, F32) GEMM", True, 0),
        timed("Add (ND)", True, 1),
        timed("Mean (ND)", True, 2),
        timed("Fully Connected (NC, F32) GEMM", True, 3),
        timed("Copy (NC)", True, 4),  # left by the classifier before it
    ]
    costs = profile.costs(contents, events, [[2**i] * 3 for i in range(8)])
    assert [c.time_us for c in costs] == [0, 1 + 2, 4, 8, 16, 32, 64 + 128]
    assert [c.ran_on for c in costs][:3] == ["XNNPACK: fused", "XNNPACK: Convolution (NHWC, F32) IGEMM", "builtin"]
    with pytest.raises(CannotRunHere, match="node 3"):
        profile.costs(contents, events[2:], [[1]] * 6)
