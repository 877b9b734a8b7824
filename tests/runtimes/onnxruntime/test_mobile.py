"""The .ort form: written, listed, and equal to the .onnx file in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pocketfit.api.inspect import mobile_forms, taken_by
from pocketfit.core.artifact import Artifact
from pocketfit.core.errors import ExportFailed, UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.runtimes.onnxruntime import mobile

Exported = Callable[[ExportSettings], Artifact]
FLOAT = ExportSettings("onnxruntime")
INT8 = ExportSettings("onnxruntime", "int8")


def test_a_float_and_an_int8_file_answer_as_before(exported: Exported, tmp_path: Path) -> None:
    for settings, operator in ((FLOAT, "Gemm{"), (INT8, "QLinearConv")):
        source = Path(exported(settings).path)
        found = mobile_forms(source, tmp_path / settings.precision)
        assert Path(found["ort"]).read_bytes()[4:8] == b"ORTM" and found["ort_bytes"] > 1000
        assert found["largest_difference"] <= mobile.TOLERANCE and found["largest_difference_here"] < 0.1
        assert any(operator in line for line in found["required"]), found["required"]
        assert Path(found["config"]).name == f"{source.stem}.required_operators_and_types.config"
        assert list(found["providers"]) == ["nnapi", "xnnpack", "coreml"]
        taken = {name: one["listed"] / one["operators"] for name, one in found["providers"].items()}
        if settings is INT8:
            assert taken["nnapi"] == 1 and taken["coreml"] < 0.5 and taken["xnnpack"] < 0.5
            assert any("hand this provider the float file" in note for note in found["providers"]["coreml"]["notes"])
        else:
            assert taken["nnapi"] == taken["coreml"] == 1


def test_nothing_is_written_over(exported: Exported, tmp_path: Path) -> None:
    source = Path(exported(FLOAT).path)
    (tmp_path / f"{source.stem}.ort").write_bytes(b"mine")
    with pytest.raises(UserError, match="is there already"):
        mobile.write(source, tmp_path)
    assert (tmp_path / f"{source.stem}.ort").read_bytes() == b"mine"


def test_a_file_that_answers_otherwise_is_refused(exported: Exported, tmp_path: Path, monkeypatch) -> None:
    ours, theirs = Path(exported(FLOAT).path), Path(exported(INT8).path)
    assert mobile.difference(ours, theirs, for_arm=True) > mobile.TOLERANCE
    assert mobile.difference(ours, ours, for_arm=True) <= mobile.TOLERANCE
    monkeypatch.setattr(mobile, "TOLERANCE", -1.0)
    with pytest.raises(ExportFailed, match="answers otherwise"):
        mobile.write(ours, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_onnx_files_have_the_form(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "net.tflite").write_bytes(b"")
    with pytest.raises(UserError, match=r"is no \.onnx file"):
        mobile_forms(tmp_path / "net.tflite", tmp_path)


def test_a_network_is_looked_at_by_its_float_export(exported: Exported, model: Model) -> None:
    exported(FLOAT)  # the converter has been loaded then
    found = taken_by(model, "tensorrt")
    assert found["float_export"] and found["listed"] == found["operators"] > 5 and found["breaches"] == []
    assert {line["dtype"] for line in found["lines"]} == {"float32"}
