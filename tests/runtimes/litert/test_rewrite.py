"""Operators said in others: the same answers from torch, before any converter sees them."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
import torch
from torch import nn

from pocketfit.runtimes.litert import rewrite

POOLS = [(2, 2, 0), (3, 2, 0), (3, 2, 1), (2, 3, 1), (3, 1, 1)]
TRANSPOSED = [
    *(
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": 2, "padding": 1},
        {"stride": 3, "output_padding": 2},
    ),
    *({"groups": 2}, {"groups": 4, "stride": 2, "padding": 1, "output_padding": 1}, {"dilation": 2, "padding": 1}),
    {"groups": 2, "dilation": 2, "stride": 2, "padding": 2, "output_padding": 1, "bias": False},
]


def rewritten(network: nn.Module, shape: tuple[int, ...]) -> tuple[torch.fx.GraphModule, list[str]]:
    batch = torch.export.Dim("batch")
    program = torch.export.export(network.eval(), (torch.zeros(2, *shape),), dynamic_shapes=({0: batch},))
    made = program.module()
    notes = rewrite.apply(made)
    for rows in (1, 3):
        values = 2 * torch.randn(rows, *shape) + 1
        with torch.no_grad():
            torch.testing.assert_close(made(values), network(values), rtol=1e-5, atol=1e-5)
    return made, notes


@pytest.mark.parametrize(("size", "stride", "padding"), POOLS)
def test_pools_that_round_up(size: int, stride: int, padding: int) -> None:
    for include in (True, False):
        mean = nn.AvgPool2d(size, stride, padding, ceil_mode=True, count_include_pad=include)
        rewritten(nn.Sequential(nn.MaxPool2d(size, stride, padding, ceil_mode=True), mean), (3, 31, 44))
    rewritten(nn.AvgPool2d(size, stride, padding, ceil_mode=True, divisor_override=5), (3, 8, 9))
    line = nn.MaxPool1d(size, stride, padding, 1, ceil_mode=True), nn.AvgPool1d(size, stride, padding, ceil_mode=True)
    rewritten(nn.Sequential(*line), (3, 30))
    rewritten(nn.MaxPool2d(size, stride, padding, dilation=2, ceil_mode=True), (3, 9, 14))


@pytest.mark.parametrize("settings", TRANSPOSED, ids=str)
def test_transposed_convolutions(settings: dict[str, int]) -> None:
    network = nn.Sequential(nn.Identity(), nn.ConvTranspose2d(4, 8, 3, **settings))
    made, notes = rewritten(network, (4, 5, 6))
    groups = settings.get("groups", 1)
    assert [note for note in notes if f"layer '1' became {groups} operators" in note] == notes
    assert bool(notes) == (groups > 1)
    rewritten(nn.ConvTranspose1d(4, 8, 3, **settings), (4, 7))
    assert not [node for node in made.graph.nodes if node.target in rewrite.REWRITES]


def test_what_litert_has_itself_stays_one_operator() -> None:
    for network in (nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.ConvTranspose2d(4, 4, 3, 2)):
        made, _ = rewritten(network, (4, 5, 6))
        again = torch.export.export(made, (torch.zeros(1, 4, 5, 6),))
        assert [str(n.target) for n in again.graph.nodes if n.op == "call_function"] == ["aten.conv_transpose2d.input"]


def test_instance_norms_of_every_sample_on_its_own() -> None:
    rewritten(nn.InstanceNorm2d(4), (4, 6, 5))
    rewritten(nn.InstanceNorm2d(4, affine=True, eps=0.1), (4, 6, 5))
    running = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
    running.running_mean.copy_(torch.arange(4.0))
    running.running_var.copy_(torch.arange(4.0) + 0.5)
    rewritten(running, (4, 9))


def test_convolutions_in_three_dimensions_are_padded_first() -> None:
    made, _ = rewritten(nn.Conv3d(2, 4, 3, 2, (0, 1, 2), groups=2), (2, 5, 6, 7))
    again = torch.export.export(made, (torch.zeros(1, 2, 5, 6, 7),))
    assert ["pad" in str(n.target) for n in again.graph.nodes if n.op == "call_function"] == [True, False]


@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
def test_recurrent_layers_are_said_to_be_written_out() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0]

    program = torch.export.export(Steps().eval(), (torch.zeros(2, 3, 4),))
    assert ["recurrent layer 'rnn'" in note for note in rewrite.apply(program.module())] == [True]


class Ranked(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        smallest, biggest = torch.topk(x, 3, 1, largest=False)[0], torch.topk(x, 2, -1)[0]
        places = torch.argsort(x, 1, descending=True).float()
        return torch.cat([smallest, biggest, torch.sort(x)[0], torch.sort(x, descending=True)[1].float(), places], 1)


def test_what_is_sorted_is_what_is_gathered_by_topk() -> None:
    made, _ = rewritten(Ranked(), (7,))
    again = torch.export.export(made, (torch.zeros(1, 7),))
    assert not [node for node in again.graph.nodes if "sort" in str(node.target)]
