import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pocketfit.core.errors import UserError
from pocketfit.measurement import memory

FLOAT = onnx.TensorProto.FLOAT
LINUX = memory.STATUS.exists()
QUIET = {"seconds": 1.0, "others_cores": 0.0, "own_cores": 0.0}


def test_footprint_of_a_file(conv_file):
    found = memory.footprint("onnxruntime", conv_file())
    assert set(found) == {"cold_start_ms", *memory.MEMORIES}
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


@pytest.mark.skipif(not LINUX, reason="peak memory is read from Linux's /proc")
def test_the_parts_say_what_is_weights_and_what_activations(tmp_path):
    side = 1500
    weights = side * side * 4
    light = linear(tmp_path / "light.onnx", np.ones((side, 1), np.float32))
    heavy = linear(tmp_path / "heavy.onnx", np.ones((side, side), np.float32))
    found = [memory.footprint("onnxruntime", path, processes=1) for path in (light, heavy)]
    more = {name: found[1][name].value - found[0][name].value for name in memory.MEMORIES}
    assert more["memory_weights_bytes"] > 0.8 * weights
    assert abs(more["memory_activations_bytes"]) < 0.3 * weights
    assert abs(more["memory_runtime_bytes"]) < 0.3 * weights
    whole, parts = found[1]["memory_gross_bytes"].value, ("runtime", "weights", "activations")
    assert sum(found[1][f"memory_{part}_bytes"].value for part in parts) <= whole + side * 4


@pytest.mark.skipif(not LINUX, reason="peak memory is read from Linux's /proc")
def test_activations_grow_with_the_size_of_the_input(tmp_path):
    path = dynamic(tmp_path)
    rows = memory.over_sizes("onnxruntime", path, [(3, 32, 32), (3, 512, 512)], processes=1)
    assert [size for size, _ in rows] == [(3, 32, 32), (3, 512, 512)]
    small, big = (found["memory_activations_bytes"].value for _, found in rows)
    assert big - small > 8 * 512 * 512 * 4  # one layer's output


def test_a_size_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"The input of 'dynamic\.onnx' is 3 x any x any, and 1 x 32 x 32 does not fit"):
        memory.footprint("onnxruntime", dynamic(tmp_path), processes=1, size=(1, 32, 32))


def linear(path, weight):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return saved(path, node, [1, weight.shape[0]], [1, weight.shape[1]], weight)


def dynamic(folder):
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    weight = np.ones((8, 3, 3, 3), np.float32)
    return saved(folder / "dynamic.onnx", node, [1, 3, "h", "w_"], [1, 8, "h", "w_"], weight)


def saved(path, node, taken, given, weight):
    infos = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in (("x", taken), ("y", given))]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_memory_that_cannot_be_read_is_said_not_guessed(conv_file, monkeypatch):
    unknown = {"cold_start_ms": 1.0, **dict.fromkeys(memory.MEMORIES), "load": QUIET}
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
        lambda *_: {"cold_start_ms": 1.0, **dict.fromkeys(memory.MEMORIES, 5.0), "load": next(loads)},
    )
    monkeypatch.setattr(memory.quiet.Machine, "here", lambda: memory.quiet.Machine(2))
    found = memory.footprint("onnxruntime", conv_file())
    assert found["cold_start_ms"].disturbed == ("other processes used up to 0.90 of 2 cores (in 1 of 3 sessions)",)
    assert found["memory_bytes"].disturbed == ()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.onnx"):
        memory.footprint("onnxruntime", tmp_path / "gone.onnx")
