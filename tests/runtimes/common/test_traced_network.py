from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pocketfit.core.errors import ExportFailed
from pocketfit.core.model import Model
from pocketfit.runtimes.common.traced_network import flush_denormals, program_of, traced
from tests.runtimes.tiny_network import SIDE, pictures, tiny_model


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_the_file_holds_the_network_with_batch_norms_folded(model: Model, tmp_path: Path) -> None:
    path = traced(model, tmp_path)
    assert path == tmp_path / f"{model.key}.pt2"
    program = torch.export.load(path)
    assert not [node for node in program.graph.nodes if "norm" in str(node.target)]
    assert {"stem.0.weight", "project.0.weight", "head.bias"} <= set(program.state_dict)
    values = torch.from_numpy(pictures(5))
    torch.testing.assert_close(program.module()(values), model.network(values), rtol=1e-4, atol=1e-5)


def test_it_is_written_once(model: Model, tmp_path: Path) -> None:
    before = traced(model, tmp_path).stat().st_mtime_ns
    assert traced(replace(model, network=None), tmp_path).stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [f"{model.key}.pt2"]


def test_what_somebody_else_has_left_there_is_not_taken(model: Model, tmp_path: Path) -> None:
    """An output folder may come from anybody, and a .pt2 file hold code."""
    path = tmp_path / f"{model.key}.pt2"
    path.write_bytes(b"theirs")
    assert traced(model, tmp_path) == path and path.read_bytes() != b"theirs"


def test_the_network_is_left_as_it_was(model: Model, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    traced(model, tmp_path)
    after = model.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_network_in_training_mode_is_traced_in_eval_mode(tmp_path: Path) -> None:
    model = tiny_model(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * SIDE * SIDE, 5)))
    model.network.train()
    module = program_of(model).module()
    values = torch.from_numpy(pictures(3))
    torch.testing.assert_close(module(values), model.network.eval()(values))


class FixedBatch(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.view(2, -1)


class WrongShape(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + torch.zeros(5)


@pytest.mark.parametrize(("layer", "message"), [(FixedBatch, "fixes the size of the batch"), (WrongShape, "5")])
def test_failures_are_short_and_leave_nothing(
    model: Model, layer: type[nn.Module], message: str, tmp_path: Path
) -> None:
    broken = replace(model, network=nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(layer())), sha256="broken")
    with pytest.raises(Exception, match=message) as caught:  # UserError where the folding meets it first
        traced(broken, tmp_path)
    assert len(str(caught.value)) < 600
    assert not list(tmp_path.iterdir())


def test_failures_name_the_layer_and_the_line(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketfit.passes.graph.fold_batch_norm.fold_batch_norm", lambda network, signature: network)
    broken = replace(model, network=nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(WrongShape())), sha256="broken")
    with pytest.raises(ExportFailed, match=r"in layer '1\.0' \(test_traced_network\.py, line \d+\)"):
        program_of(broken)


def test_an_onnx_level_network_is_refused(model: Model) -> None:
    with pytest.raises(ExportFailed, match="level 'onnx'"):
        program_of(replace(model, level="onnx"))


def test_weights_too_small_to_count_are_flushed_and_no_others() -> None:
    """Denormals always; below 1e-30 where the tensor's largest is 1e10 times as large; else the network's own scale."""
    layers = nn.ModuleDict({"wide": nn.Linear(4, 1), "small": nn.Linear(4, 1), "plain": nn.Linear(4, 1)})
    wide = torch.tensor([[1.0, 1e-31, -1e-39, 1e-29]])
    small = torch.tensor([[2e-31, 1e-32, 1e-39, 0.0]])
    with torch.no_grad():
        layers["wide"].weight.copy_(wide)
        layers["small"].weight.copy_(small)
    said = flush_denormals(layers)
    assert layers["wide"].weight.tolist() == torch.tensor([[1.0, 0, 0, 1e-29]]).tolist()
    assert layers["small"].weight.tolist() == torch.tensor([[2e-31, 1e-32, 0, 0]]).tolist()
    assert said.startswith("3 weights in 2 tensors")
    assert flush_denormals(layers) == ""


def test_weights_lie_in_one_piece(model: Model, tmp_path: Path) -> None:
    """A checkpoint in channels-last memory: LiteRT's converter took one such weight for another."""
    strided = replace(model, network=model.network.to(memory_format=torch.channels_last), sha256="strided")
    assert any(not p.is_contiguous() for p in strided.network.parameters())
    program = program_of(strided)
    assert all(tensor.is_contiguous() for tensor in program.state_dict.values())
    assert any(not p.is_contiguous() for p in strided.network.parameters()), "the user's network is left as it was"
    model.network.to(memory_format=torch.contiguous_format)
