"""Folding: fewer operators, the same answers; at padded borders, too; what would not be exact is left."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketfit.core.errors import UserError
from pocketfit.passes.rewrite.fold import fold as folding
from pocketfit.passes.rewrite.fold.fold import fold


class Calls(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def operators(network: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    for node in network.graph.nodes:
        if node.op == "call_module":
            found[type(network.get_submodule(node.target)).__name__] += 1
        elif node.op in ("call_function", "call_method"):
            found[getattr(node.target, "__name__", str(node.target))] += 1
    return found


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize(("function", "kind"), [
    (lambda x: x * F.relu6(x + 3) / 6, "Hardswish"), (lambda x: x * (F.relu6(3 + x) / 6), "Hardswish"),
    (lambda x: x * torch.clamp(x + 3.0, 0, 6) * (1 / 6), "Hardswish"), (lambda x: F.hardsigmoid(x) * x, "Hardswish"),
    (lambda x: F.hardtanh(x + 3, 0.0, 6.0) / 6, "Hardsigmoid"),
    (lambda x: torch.clamp(x * (1 / 6) + 0.5, min=0, max=1), "Hardsigmoid"),
    (lambda x: x * torch.sigmoid(x), "SiLU"), (lambda x: torch.sigmoid(1.0 * x) * x, "SiLU"),
    (lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), "GELU"),
    (lambda x: x * (torch.erf(x * 0.7071067811865476) + 1) * 0.5, "GELU"),
    (lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3)))), "GELU"),
    (lambda x: x * (0.5 * (1 + torch.tanh(0.7978845608 * (x + x * (x * (0.044715 * x)))))), "GELU"),
    (layer_norm, "LayerNorm"),
    (lambda x: (x - x.mean(-1, True)) * torch.rsqrt(((x - 0 - x.mean(-1, True)) ** 2).mean(-1, True) + 1e-5), None),
    (lambda x: x * F.relu6(x + 2) / 6, None), (lambda x: x * F.relu6(x + 3) / 5, None),
    (lambda x: (x + 1) * F.relu6(x + 3) / 6, None), (lambda x: x * (1 + torch.erf(x)) * 0.5, None),
])  # fmt: skip
def test_pieces_become_one_layer_and_look_alikes_do_not(function: Callable[[Tensor], Tensor], kind: str | None) -> None:
    x = torch.linspace(-8, 8, 96).view(4, 24)
    done = fold(Calls(function), [x])
    found = operators(done.network)
    assert (found == {kind: 1}) if kind else not found.keys() & {"Hardswish", "GELU", "LayerNorm", "Hardsigmoid"}
    assert done.difference < 1e-5
    torch.testing.assert_close(done.network(x), function(x), rtol=1e-5, atol=1e-6)


class Net(nn.Module):
    """Scales and offsets in front of and behind convolutions, padded and not; a batch norm after an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 6, 1)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2, groups=2)
        self.norm, self.late = nn.BatchNorm2d(8), nn.BatchNorm2d(6)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.head = nn.Linear(4, 5)
        for norm in (self.norm, self.late):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)) * self.scale + 0.25
        y = F.relu(y) * 1.5 - 0.75  # the offset can't pass the padding that follows
        y = F.relu(self.depthwise(y)) * self.scale + 0.5  # here both can pass
        y = self.late(F.relu(self.pointwise(y)))
        y = (2 * self.up(y) - 1).mean((2, 3))
        return 3 * self.head(y / 4 + 1)


def test_affines_go_into_layers_exactly_at_borders_too() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    x = torch.randn(2, 3, 6, 6)
    done = fold(net, [x])
    assert done.findings == () and done.difference < 1e-5
    found = operators(done.network)
    assert found["mul"] == found["truediv"] == found["sub"] == 0
    # Left: the offset before the padded convolution, and the scale and offset that no layer stands beside.
    assert found["add"] == 1 and found["BatchNorm2d"] == 1 and found["Conv2d"] == 3
    for size in (5, 12):  # other borders than those that were looked at
        other = torch.randn(3, 3, size, size)
        torch.testing.assert_close(done.network(other), net(other), rtol=1e-4, atol=1e-4)
    assert net.first.bias is None, "the network itself stays as it is"


def test_batch_norms_stay_where_training_wants_them() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Identity(), nn.Dropout(0.5)).eval()
    rules = [name for name in folding.RULES if name not in folding.FOR_TRAINING]
    done = fold(net, [torch.randn(1, 3, 4, 4)], rules=rules)
    assert operators(done.network).keys() == {"Conv2d", "BatchNorm2d", "Identity", "Dropout"} and done.applied == {}
    done = fold(net, [torch.randn(1, 3, 4, 4)])
    assert operators(done.network) == {"Conv2d": 1} and done.applied == {"dropouts": 2, "batch norms": 1}


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return 2 * self.conv(2 * y), y


def test_a_layer_that_is_used_twice_takes_nothing_in() -> None:
    done = fold(Shared(), [torch.randn(1, 4, 3, 3)])
    assert done.applied == {} and operators(done.network)["Conv2d"] == 2


def test_layouts_and_numbers_that_cancel() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1).permute(0, 3, 1, 2).unsqueeze(1).squeeze(1)
        return ((((y + 0) * 1) / 1 + 1) + 2) * 2 / 4

    done = fold(Calls(function), [torch.randn(2, 3, 4, 5)])
    assert operators(done.network) == {"add": 1, "mul": 1}


def test_a_rule_that_changes_answers_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(view: Any) -> int:
        with torch.no_grad():
            next(view.network.parameters()).mul_(1.001)
        return 1

    monkeypatch.setitem(folding.RULES, "identities", wrong)
    done = fold(nn.Sequential(nn.Linear(4, 4)), [torch.randn(2, 4)])
    assert "identities" not in done.applied
    assert done.findings[0].startswith("Folding identities would have changed the outputs by 0.0")


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_torch_fx_cannot_follow_stays_whole_or_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Branches()).eval()
    done = fold(net, [torch.randn(1, 3, 4, 4)])
    assert operators(done.network) == {"Conv2d": 1, "Branches": 1}
    with pytest.raises(UserError, match=r"torch\.fx can't follow the network's own forward"):
        fold(Branches(), [torch.randn(2)])
