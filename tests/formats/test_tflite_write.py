"""Deployed files: smaller, and not a bit of their answers differs."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.formats import tflite_read, tflite_write
from pocketfit.runtimes.litert import quantize, runtime
from tests.runtimes.litert.network import CLASSES, MODEL, SAMPLES, SIZE, by_layer, export, folder, model_of


def run(path: Path, *, xnnpack: bool) -> NDArray[np.generic]:
    """All answers, with LiteRT's default delegate or with its builtin kernels only."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kinds = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    session = Interpreter(model_path=str(path), experimental_op_resolver_type=kinds)
    session.allocate_tensors()
    (given,), (taken,) = session.get_input_details(), session.get_output_details()
    answers = []
    for row in SAMPLES.inputs(slice(0, 16), layout="NHWC"):
        session.set_tensor(given["index"], row[None])
        session.invoke()
        answers.append(session.get_tensor(taken["index"])[0])
    return np.array(answers)


def ran_on(path: Path) -> list[tuple[str, str]]:
    costs = runtime.profile(path, {"image": np.zeros((1, SIZE, SIZE, 3), np.float32)}, runs=3)
    return [(cost.type, cost.ran_on) for cost in costs]


@pytest.fixture(scope="module", params=["int8", "int4"])
def as_quantized(request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    """(the file as ai-edge-quantizer writes it, the deployed one)."""
    settings = ExportSettings("litert", "int8", weights=request.param)
    deployed = export("int8", weights=request.param)
    plain = folder() / f"plain-{request.param}.tflite"
    base = runtime._float_file(MODEL, "NHWC", folder() / "work")[0]
    ranges = runtime._ranges(MODEL, base, settings, SAMPLES, folder() / "work")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the quantizer's own interpreter keeps all tensors
        patch.setattr(tflite_write, "compact", lambda file: file.data)
        patch.setattr(runtime, "child_process", _Here)
        runtime._quantize(base, plain, settings, ranges)
    yield plain, Path(deployed.path)


class _Here:
    """Runs in this process what else runs in a child."""

    @staticmethod
    def call(target: str, payload: dict[str, object], **_: object) -> object:
        return getattr(quantize, target.split(":")[1])(**payload)


def test_a_deployed_file_answers_bit_for_bit_what_the_quantizer_made(as_quantized: tuple[Path, Path]) -> None:
    plain, _ = as_quantized
    compact = folder() / f"compact-{plain.name}"
    compact.write_bytes(tflite_write.compact(tflite_read.read(plain)))
    for xnnpack in (True, False):
        np.testing.assert_array_equal(run(plain, xnnpack=xnnpack), run(compact, xnnpack=xnnpack))
    assert ran_on(plain) == ran_on(compact)
    zeros = 16 * 8 * 2 * 3  # zero points of weights and biases of three layers with 16 channels
    assert compact.stat().st_size < plain.stat().st_size - zeros
    before, after = runtime.inspect(plain), runtime.inspect(compact)
    assert before == after, "what the operators are, and which layers they came from, is still known"


def test_one_by_one_convolutions_compute_the_same_as_fully_connected(as_quantized: tuple[Path, Path]) -> None:
    plain, deployed = as_quantized
    np.testing.assert_array_equal(run(plain, xnnpack=False), run(deployed, xnnpack=False))
    kinds = {layer: op.type for layer, op in by_layer(export("int8")).items()}
    if "int4" in deployed.name or "wi4" in deployed.name:
        kinds["project"] = "FULLY_CONNECTED"
        on = dict(zip([op.layer for op in runtime.inspect(deployed).ops], ran_on(deployed), strict=True))
        assert "QC4W" in on["project"][1]
        assert "QC4W" in on["classifier"][1]
        assert on["stem.0"] == ("CONV_2D", "builtin")
    assert {op.layer: op.type for op in runtime.inspect(deployed).ops if op.layer} == kinds


class Odd(nn.Module):
    """1x1 convolutions from and to odd numbers of channels: two 4-bit weights of different outputs share a byte."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 7, 3, 4), nn.Conv2d(7, 13, 1), nn.Conv2d(13, 9, 1)
        self.head = nn.Linear(9, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(torch.relu(self.stem(x))))
        return self.head(self.second(x).mean((2, 3)))


@pytest.mark.slow
def test_odd_numbers_of_channels_with_four_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plan = Plan((), ExportSettings("litert", "int8", weights="int4"))
    artifact = runtime.export(model_of(Odd(), "odd"), plan, SAMPLES, tmp_path / "odd.tflite", work=tmp_path)
    path = Path(artifact.path)
    types = {op.layer: (op.type, op.weight_shape) for op in runtime.inspect(path).ops if op.layer}
    assert types["first"] == ("FULLY_CONNECTED", (13, 7))
    step = tflite_read.read(path)
    scale = step.quantization(int(step.graph.operators[-1].inputs[0])).scales[0]
    np.testing.assert_allclose(run(path, xnnpack=True), run(path, xnnpack=False), atol=3.01 * scale)
    with torch.no_grad():
        wanted = Odd.forward(model_of(_seeded(), "odd").network, torch.from_numpy(SAMPLES.inputs(slice(0, 16)))).numpy()
    assert np.abs(run(path, xnnpack=True) - wanted).max() < 0.35 * np.ptp(wanted)


def _seeded() -> nn.Module:
    torch.manual_seed(0)
    return Odd()


def test_vectors_with_the_same_content_are_written_once() -> None:
    from ai_edge_litert import schema_py_generated as schema

    file = tflite_read.read(Path(export("int8").path))
    shared, apart = (tflite_write.serialize(file.model, share=share) for share in (True, False))
    assert len(shared) < len(apart)
    one, other = (schema.ModelT.InitFromPackedBuf(data, 0) for data in (shared, apart))
    assert _plain(one) == _plain(other)


def _plain(value: object) -> object:
    """A schema object as nested dictionaries and lists."""
    if hasattr(value, "__dict__"):
        return {name: _plain(item) for name, item in vars(value).items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list) else value
