"""A converter that fails says which layer it failed at, in one sentence; its own pages stay in the log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pocketfit.core.errors import ExportFailed
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.processes import child_process
from pocketfit.runtimes.litert import blame, runtime
from pocketfit.testing.tiny_network import tiny_model

pytest.importorskip("litert_torch")


class Around(nn.Module):
    """A network around a function that is a layer of it."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.odd, self.head = nn.Conv2d(3, 8, 3, 2), Odd(function), nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.odd(self.conv(image).mean((2, 3))))


class Odd(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def failed(function: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path) -> ExportFailed:
    model = tiny_model(Around(function).eval(), sha256="odd")
    with pytest.raises(ExportFailed) as caught:
        runtime.export(model, Plan((), ExportSettings("litert")), None, tmp_path / "x.tflite", work=tmp_path)
    assert not (tmp_path / "x.tflite").exists()
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    return caught.value


def test_an_operator_without_a_form_is_named_with_its_layer(tmp_path: Path) -> None:
    error = failed(lambda x: torch.linalg.qr(x.unsqueeze(1).repeat(1, 8, 1))[0].sum(1), tmp_path)
    assert "operator linalg_qr of layer 'odd'" in str(error)
    assert "onnxruntime" in str(error)
    assert error.log_tail


def test_a_ranking_is_no_operator_that_is_lacking(tmp_path: Path) -> None:
    model = tiny_model(Around(lambda x: torch.topk(x, 8)[0]).eval(), sha256="topk")
    path = tmp_path / "x.tflite"
    runtime.export(model, Plan((), ExportSettings("litert")), None, path, work=tmp_path)
    assert "TOPK_V2" in runtime.inspect(path).op_counts()


def test_a_network_that_draws_random_numbers_is_told_so(tmp_path: Path) -> None:
    error = failed(lambda x: nn.functional.dropout(x, 0.3, training=True), tmp_path)
    assert "draws random numbers" in str(error)
    assert "layer 'odd'" in str(error)
    assert "training=self.training" in str(error)


def test_a_converter_that_dies_leaves_a_note_of_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(target: str, payload: dict[str, str], **where: object) -> object:
        Path(payload["note"]).write_text(json.dumps({"operator": "conv3d", "layer": "features.0"}))
        raise ExportFailed("The step first_that_fails died with exit status -11", "")

    monkeypatch.setattr(child_process, "call", dies)
    first = ExportFailed("The step convert died with exit status -11", "the log's tail")
    assert blame.unexplained(first)
    error = blame.explained(first, tmp_path / "x.pt2", "NHWC", {})
    assert "operator conv3d of layer 'features.0': the converter crashes" in str(error)
    assert error.log_tail == "the log's tail"


def test_where_every_operator_converts_alone_the_first_error_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "call", lambda *_, **__: None)
    first = ExportFailed(f"{blame.NOT_CONVERTED}: something of the whole")
    assert blame.explained(first, tmp_path / "x.pt2", "NHWC", {}) is first
    assert not blame.unexplained(ExportFailed("The .tflite has other outputs than the torch network"))
