import numpy as np
import pytest

from pocketfit.core.errors import UserError
from pocketfit.measurement import memory

LINUX = memory.STATUS.exists()
QUIET = {"seconds": 1.0, "others_cores": 0.0, "own_cores": 0.0}


def test_footprint_of_a_file(conv_file):
    found = memory.footprint("onnxruntime", conv_file())
    assert set(found) == {"cold_start_ms", "memory_bytes", "memory_gross_bytes"}
    cold = found["cold_start_ms"]
    assert cold.n == len(cold.samples) == 3
    assert 0 < cold.low <= cold.value <= cold.high
    assert cold.value == np.median(cold.samples)
    assert cold.environment["threads"] == 1
    if LINUX:
        assert 0 < found["memory_bytes"].value < found["memory_gross_bytes"].value


@pytest.mark.skipif(not LINUX, reason="peak memory is read from Linux's /proc")
def test_bigger_activations_take_more_memory_net_of_the_import(conv_file):
    small = memory.footprint("onnxruntime", conv_file(channels=4, size=32), processes=1)["memory_bytes"].value
    big = memory.footprint("onnxruntime", conv_file(channels=32, size=256), processes=1)["memory_bytes"].value
    tensor_bytes = 32 * 256 * 256 * 4  # one layer's output
    assert tensor_bytes < big - small < 20 * tensor_bytes


def test_memory_that_cannot_be_read_is_said_not_guessed(conv_file, monkeypatch):
    unknown = {"cold_start_ms": 1.0, "memory_bytes": None, "memory_gross_bytes": None, "load": QUIET}
    monkeypatch.setattr(memory.child_process, "call", lambda *_: unknown)
    found = memory.footprint("onnxruntime", conv_file())
    assert found["memory_bytes"].how == "not_possible_here"
    assert found["memory_bytes"].value is None
    assert "/proc" in found["memory_gross_bytes"].reason
    assert found["cold_start_ms"].value == 1.0


def test_a_cold_start_beside_other_work_says_so_and_memory_is_believed(conv_file, monkeypatch):
    loads = iter([QUIET, {**QUIET, "others_cores": 0.9}, QUIET])
    monkeypatch.setattr(
        memory.child_process,
        "call",
        lambda *_: {"cold_start_ms": 1.0, "memory_bytes": 5.0, "memory_gross_bytes": 9.0, "load": next(loads)},
    )
    monkeypatch.setattr(memory.quiet.Machine, "here", lambda: memory.quiet.Machine(2))
    found = memory.footprint("onnxruntime", conv_file())
    assert found["cold_start_ms"].disturbed == ("other processes used up to 0.90 of 2 cores (in 1 of 3 sessions)",)
    assert found["memory_bytes"].disturbed == ()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.onnx"):
        memory.footprint("onnxruntime", tmp_path / "gone.onnx")
