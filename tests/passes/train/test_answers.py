"""How a network that somebody brought is trained: its layout, its main answer, what of it learns."""

from __future__ import annotations

import copy
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pocketfit.core.errors import UserError
from pocketfit.core.plan.train import Train
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.passes.graph.main_answer import main_answer
from pocketfit.passes.train import answers, distillation, fine_tune
from pocketfit.passes.train.answers import in_order, manner, thawed
from pocketfit.passes.train.torch_accuracy import accuracy
from pocketfit.sources.models.open_model import model_from_module

PREPROCESS = Preprocess(height=12, width=12, resize_px=12)


class Viewed(nn.Module):
    """As in every tutorial; and batch norms, which would tell whether the trial left a trace."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.Linear(8 * 25, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.fc(x.view(x.size(0), -1))


class SideHead(nn.Module):
    """One tensor in eval, several in training, the side head's first where it is asked for so."""

    def __init__(self, wrap: object) -> None:
        super().__init__()
        self.body, self.wrap = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU()), wrap
        self.side, self.fc = nn.Linear(8, 7), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> object:
        x = self.body(x).mean((2, 3))
        return self.wrap(self.fc(x), self.side(x)) if self.training else self.fc(x)


Heads = namedtuple("Heads", ["main", "side"])


def samples(count: int = 64, channels: int = 3) -> Samples:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    pixels = rng.integers(0, 90, (count, 12, 12, channels)) + 60 * labels[:, None, None, None]
    contract = PREPROCESS if channels == 3 else Preprocess(height=12, width=12, colour="GRAY", mean=(0.5,), std=(0.5,))
    return Samples(
        array=pixels.astype(np.uint8),
        labels=labels,
        names=[""] * count,
        split="train",
        sha256="00",
        preprocess=contract,
    )


def inputs(channels: int = 3) -> torch.Tensor:
    return torch.from_numpy(samples(8, channels).inputs(slice(None)))


def test_pictures_lie_channels_last_where_the_network_stands_it() -> None:
    stands = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(800, 3)).eval()
    assert manner(stands, inputs()).memory is torch.channels_last
    network = Viewed().eval()
    before = copy.deepcopy(network.state_dict())
    assert manner(network, inputs()).memory is torch.contiguous_format
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the trial was made on a copy"
    assert all(p.grad is None for p in network.parameters()) and not network.training


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("views", [0, 2])
def test_a_network_with_views_of_its_own_is_trained_and_teaches(channels: int, views: int) -> None:
    torch.manual_seed(0)
    data = samples(channels=channels)
    model = model_from_module(Viewed(channels), preprocess=data.preprocess, labels=("a", "b", "c"))
    learned = fine_tune.apply(model, Train(20, batch_size=16, alpha=0.0), data, teacher=None)
    assert accuracy(learned, data) > accuracy(model, data)
    again = fine_tune.apply(learned, Train(4, batch_size=16, views=views), data, teacher=learned)
    assert all(p.isfinite().all() for p in again.network.parameters())
    assert distillation.teacher_of(learned, learned).in_order


def test_pictures_of_one_channel_are_told_by_their_strides() -> None:
    """They lie in both ways at once, and a convolution decides by the strides."""
    last = torch.rand(2, 4, 5, 1).permute(0, 3, 1, 2)
    assert last.is_contiguous() and in_order(last).stride() == (20, 20, 5, 1)
    assert torch.equal(in_order(last), last)
    usual = torch.rand(2, 3, 4, 5)
    assert in_order(usual) is usual
    assert samples(4, 1).inputs(slice(None)).strides == (4 * 144, 4 * 144, 4 * 12, 4)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda main, side: (main, side),
        lambda main, side: [side, main],
        lambda main, side: OrderedDict(aux=side, out=main),
        Heads,
        lambda main, side: (main, {"side": (side,)}),
    ],
)
def test_of_several_answers_the_one_like_that_of_eval_is_trained_and_it_is_said_once(wrap: object) -> None:
    torch.manual_seed(0)
    model = model_from_module(SideHead(wrap), preprocess=PREPROCESS, labels=("a", "b", "c"))
    data = samples()
    learned = fine_tune.apply(model, Train(40, batch_size=16, alpha=0.0, learning_rate=0.05), data, teacher=None)
    assert accuracy(learned, data) > 0.6
    assert torch.equal(learned.network.side.weight, model.network.side.weight)
    learned = fine_tune.apply(learned, Train(2, batch_size=16), data, teacher=model)
    assert sum("has 2 output tensors" in sentence for sentence in learned.findings) == 1


def test_the_main_answer_is_the_first_of_its_shape_else_the_first() -> None:
    small, large = torch.zeros(2, 3), torch.zeros(2, 7)
    assert main_answer(large) is large
    assert main_answer((large, small), (3,)) is small
    assert main_answer((large, small), (5,)) is large
    assert main_answer({"none": None, "aux": large, "out": small}) is large
    with pytest.raises(TypeError, match="output of the network is dict"):
        main_answer({"loss": 1.0})


class Demanding(Viewed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise KeyError("targets")
        return super().forward(x)


def test_a_network_that_fails_in_training_mode_is_refused_in_its_own_words() -> None:
    model = model_from_module(Demanding(), preprocess=PREPROCESS, labels=("a", "b", "c"))
    with pytest.raises(UserError, match=r"^The network cannot be trained: .* end with KeyError: 'targets'$"):
        fine_tune.apply(model, Train(1, alpha=0.0), samples(), teacher=None)


def test_frozen_parameters_are_thawed_where_most_are() -> None:
    network = Viewed().requires_grad_(False)
    with thawed(network) as said:
        assert all(p.requires_grad for p in network.parameters())
        assert said == [
            "All parameters were frozen (requires_grad=False): training thawed them in its copy of the network"
        ]
    assert not any(p.requires_grad for p in network.parameters())
    network.fc.bias.requires_grad_(True)
    with thawed(network) as said:
        assert said[0].startswith("100% of the parameters were frozen")


def test_a_table_that_is_frozen_stays_so() -> None:
    network = Viewed()
    network.conv.requires_grad_(False)
    with thawed(network) as said:
        assert said == [] and not network.conv.weight.requires_grad and network.fc.weight.requires_grad


def test_a_frozen_network_is_trained_and_comes_back_frozen() -> None:
    torch.manual_seed(0)
    model = model_from_module(Viewed().requires_grad_(False), preprocess=PREPROCESS, labels=("a", "b", "c"))
    learned = fine_tune.apply(model, Train(30, batch_size=16, alpha=0.0, learning_rate=0.05), samples(), teacher=None)
    assert accuracy(learned, samples()) > 0.6
    assert not any(p.requires_grad for p in learned.network.parameters())
    assert [s for s in learned.findings if "frozen" in s] == [s for s in learned.findings if s.startswith("All")]


def test_a_train_of_ones_own_that_returns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Viewed()
    whole = type(network).train
    monkeypatch.setattr(type(network), "train", lambda self, mode=True: whole(self, mode) and None)
    how = answers.Manner(torch.contiguous_format, (3,))
    how.begin(network, torch.device("cpu"))
    assert network.training
