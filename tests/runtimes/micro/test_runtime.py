"""What is the microcontroller runtime's own; its contract is tested in tests/runtimes/test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pocketfit
from pocketfit.core.artifact import Artifact
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.formats import tflite_read
from pocketfit.measurement import latency
from pocketfit.runtimes import for_file, get
from pocketfit.runtimes.micro import arena, c_sources
from pocketfit.runtimes.micro.session import ample_bytes, require
from pocketfit.testing.tiny_network import tiny_model

INT8 = ExportSettings("micro", "int8", io="int8")
Exported = Callable[[ExportSettings], Artifact]


def test_its_integers_are_litert_s(exported: Exported) -> None:
    """Two implementations of the same kernels."""
    path = Path(exported(INT8).path)
    values = np.random.default_rng(0).integers(-128, 128, (16, 32, 32, 3), np.int8)
    ours, theirs = (get(name).load(path).run({"image": values})["logits"] for name in ("micro", "litert"))
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_the_arena_is_the_smallest_that_works(exported: Exported) -> None:
    path = Path(exported(INT8).path)
    bytes_ = arena.arena_bytes(path)
    runtime = require("tflite_micro.python.tflite_micro.runtime", "micro")
    file = tflite_read.read(path)
    runtime.Interpreter.from_bytes(file.data, arena_size=bytes_ + 16)
    with pytest.raises(RuntimeError):
        runtime.Interpreter.from_bytes(file.data, arena_size=bytes_ - 64)
    largest = max(np.prod(op.output_shape) for op in tflite_read.inspect(path).ops)
    assert largest <= bytes_ < ample_bytes(file)


def test_what_is_compiled_in_is_the_file(exported: Exported) -> None:
    path = Path(exported(INT8).path)
    made = c_sources.sources(path)
    told = bytes(int(byte, 16) for byte in re.findall(r"0x([0-9a-f]{2}),", made["network.cc"]))
    assert told == path.read_bytes()
    methods = re.findall(r"resolver\.(Add\w+)\(\)", made["network.h"])
    assert "AddConv2D" in methods and "AddFullyConnected" in methods
    assert f"MicroMutableOpResolver<{len(methods)}>" in made["network.h"]
    arena_bytes = -(-arena.arena_bytes(path) // 16) * 16
    assert f"kNetworkArenaBytes = {arena_bytes};" in made["network.h"]


def test_a_file_of_two_runtimes_goes_to_the_one_that_is_named() -> None:
    assert for_file("net.tflite").NAME == "litert"
    assert for_file("net.tflite", "micro").NAME == "micro"
    with pytest.raises(UserError, match=r"no file of micro, whose files end in \.tflite"):
        for_file("net.onnx", "micro")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (ExportSettings("micro", "float16"), "no kernels for float16"),
        (ExportSettings("micro", "int8", keep_float=("head",)), "end to end"),
        (ExportSettings("micro", "int8", weights="int4"), "int8 weights"),
    ],
)
def test_what_it_cannot_make_is_a_sentence(settings: ExportSettings, word: str, model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=word):
        get("micro").export(model, Plan((), settings), None, tmp_path / "x.tflite", work=tmp_path)
    assert not list(tmp_path.iterdir())


def test_limits_of_a_microcontroller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for effort in ("QUICK", "CAREFUL"):
        monkeypatch.setattr(latency, effort, latency.Effort(sessions=2, seconds=0.02, min_rounds=2, max_rounds=3))
    data = (np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), np.uint8), np.arange(120) % 5)
    budget = pocketfit.Budget.parse(max_ram="12kB", max_flash="64kB", max_trials=2)
    with pytest.raises(UserError, match="--max-ram is about microcontrollers"):
        pocketfit.fit(tiny_model(), data, budget, out=tmp_path / "litert")
    result = pocketfit.fit(tiny_model(), data, budget, out=tmp_path / "micro", runtimes=("micro",))
    assert result.status == "met"
    names = {path.name for path in (tmp_path / "micro" / "bundle").iterdir()}
    assert {"network.h", "network.cc", "run.py"} <= names
