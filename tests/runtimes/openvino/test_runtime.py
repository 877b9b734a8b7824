"""What is OpenVINO's own; its contract is tested in tests/runtimes/test_contract.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pocketfit.core.artifact import Artifact
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.runtime_list import files_of
from pocketfit.core.runtime import answer
from pocketfit.core.support.files import whole_or_not
from pocketfit.core.support.loading import called
from pocketfit.numerics.sqnr import sqnr_db
from pocketfit.runtimes import get
from pocketfit.testing.tiny_network import pictures

NAME = "openvino"
INT8 = ExportSettings(NAME, "int8", activations="uint8")
Exported = Callable[[ExportSettings], Artifact]


def test_every_layer_computes_in_integers(exported: Exported) -> None:
    path = Path(exported(INT8).path)
    given = {"image": pictures(1)}
    ran = {cost.name: cost.ran_on for cost in get(NAME).profile(path, given, runs=2)}
    layers = [op for op in get(NAME).inspect(path).ops if op.macs]
    assert len(layers) == 4
    for op in layers:
        assert ran[op.name].endswith(("_I8", "_U8", "_i8", "_u8")), f"{op.layer} ran on {ran[op.name]}"


def test_its_integers_are_those_of_the_onnx_file(exported: Exported) -> None:
    """Ranges and weights are ours in both; what differs is the rounding inside kernels."""
    theirs = ExportSettings("onnxruntime", "int8", activations="uint8")
    values = pictures(32)
    outputs = [answer(get(s.runtime).load(Path(exported(s).path)), values) for s in (INT8, theirs)]
    assert sqnr_db(outputs[1], outputs[0]) > 30


def test_inner_tensors_are_those_of_the_float_file(exported: Exported) -> None:
    found = []
    for settings in (ExportSettings(NAME), ExportSettings("onnxruntime")):
        runtime, path = get(settings.runtime), Path(exported(settings).path)
        operators = [op for op in runtime.inspect(path).ops if op.macs]
        found.append(called(runtime.LAYER_OUTPUTS)(path, operators, 1).run({"image": pictures(2)}))
    assert set(found[0]) == set(found[1])
    for layer in found[0]:
        np.testing.assert_allclose(found[0][layer], found[1][layer], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (ExportSettings(NAME, "int8"), "ask for uint8"),
        (ExportSettings(NAME, "dynamic-int8"), "float32"),
        (ExportSettings(NAME, "int8", activations="uint8", io="uint8"), "leave io at float32"),
        (ExportSettings(NAME, "int8", activations="uint8", weights="int4"), "weights of int8"),
    ],
)
def test_what_it_cannot_make_is_a_sentence(settings: ExportSettings, word: str, model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=word):
        get(NAME).export(model, Plan((), settings), None, tmp_path / "x.xml", work=tmp_path)
    assert not list(tmp_path.iterdir())


def test_both_files_come_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "net.xml"
    with whole_or_not(path, (".bin",)) as partial:
        partial.write_text("first")
        partial.with_suffix(".bin").write_text("weights")
    assert [file.read_text() for file in files_of(path)] == ["first", "weights"]

    def interrupted() -> None:
        with whole_or_not(path, (".bin",)) as partial:
            partial.with_suffix(".bin").write_text("others")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [file.read_text() for file in files_of(path)] == ["first", "weights"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.bin", "net.xml"]
