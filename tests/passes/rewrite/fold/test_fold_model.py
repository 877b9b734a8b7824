"""Fold as a pass: the same answers with fewer operators, names kept, training as before; else the network as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pocketfit
from pocketfit import runtimes
from pocketfit.core.learned import Learned
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Prune
from pocketfit.core.plan.rewrite import Fold
from pocketfit.core.plan.train import Train
from pocketfit.core.preprocess import Preprocess
from pocketfit.passes.rewrite import hardswish
from pocketfit.passes.rewrite.fold import fold_model
from pocketfit.sources.data.dataset import from_arrays
from pocketfit.sources.models.fingerprint import fingerprint
from pocketfit.sources.models.open_model import model_from_module

SIDE, CLASSES = 16, 3
PREPROCESS = Preprocess(height=SIDE, width=SIDE, resize="exact")


class InPieces(nn.Module):
    """A network as exporters leave it: hard-swish in pieces, a scale behind it, dropout, batch norms."""

    def __init__(self, *, inside: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.wide, self.drop, self.head = nn.Conv2d(8, 16, 1), nn.Dropout(0.5), nn.Linear(16, CLASSES)
        self.scale = nn.Parameter(torch.tensor([1.5]))
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x))
        y = y * F.relu6(y + 3) / 6 * self.scale + 0.25
        return self.head(self.drop(self.inside(self.wide(y)).mean((2, 3))))  # type: ignore[no-any-return]


def opened(network: nn.Module) -> Model:
    torch.manual_seed(0)
    for tensor in network.parameters():
        nn.init.normal_(tensor, std=0.3)
    return model_from_module(network.eval(), preprocess=PREPROCESS, labels=("a", "b", "c"))


def noise(count: int = 4) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_layers_keep_their_names_and_what_is_known_of_them() -> None:
    model = replace(
        opened(InPieces()),
        findings=("before",),
        learned=Learned(sparse=("wide",), normal={"stem": ((0.0,), (1.0,)), "wide": ((0.0,), (1.0,))}),
    )
    folded = fold_model.apply(model)
    layers = {name: type(layer).__name__ for name, layer in folded.network.named_modules() if name}
    assert layers.items() >= {"stem": "Conv2d", "norm": "BatchNorm2d", "wide": "Conv2d", "drop": "Dropout"}.items()
    assert "Hardswish" in layers.values() and "scale" not in folded.network.state_dict()
    torch.testing.assert_close(folded.network(noise()), model.network(noise()), rtol=1e-5, atol=1e-5)
    assert folded.sha256 == fingerprint(folded.network) != model.sha256 and folded.origin == model.origin
    assert folded.findings == ("before",) and folded.learned.sparse == ("wide",)
    assert set(folded.learned.normal) == {"stem"}, "the scale has moved into 'wide', so its outputs are others"
    again = fold_model.apply(folded)
    assert again.network is folded.network and not fold_model.finds_something(folded)


def test_training_goes_on_as_before() -> None:
    folded = fold_model.apply(opened(InPieces())).network
    folded.train()
    torch.manual_seed(0)
    assert not torch.equal(folded(noise()), folded(noise())), "dropout and batch norms are at work"
    frozen = opened(InPieces())
    frozen.network.requires_grad_(False)
    assert not any(p.requires_grad for p in fold_model.apply(frozen).network.parameters())


def test_what_torch_fx_cannot_follow_stays_as_it_is_and_is_said() -> None:
    model = opened(InPieces(inside=lambda x: x if x.sum() > 0 else -x))
    folded = fold_model.apply(model)
    assert folded.network is model.network and folded.sha256 == model.sha256
    assert len(folded.findings) == len(model.findings) + 1
    assert "torch.fx can't follow the network's own forward" in folded.findings[-1]


class TrainedOtherwise(InPieces):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2 + 1) if self.training else super().forward(x)


def test_a_forward_that_trains_otherwise_stays_as_it_is() -> None:
    model = opened(TrainedOtherwise())
    folded = fold_model.apply(model)
    assert folded.network is model.network and "something else in training" in folded.findings[-1]


def test_hardswish_that_is_called_becomes_a_product_in_a_folded_network_too() -> None:
    folded = fold_model.apply(opened(InPieces(inside=F.hardswish)))
    products = hardswish.apply(folded)
    assert not hardswish.replaceable(products.network, products.signature)
    torch.testing.assert_close(products.network(noise()), folded.network(noise()), rtol=1e-5, atol=1e-5)


def test_plans_that_begin_with_it_are_applied_and_reproduce(tmp_path: Path) -> None:
    model = opened(InPieces())
    pixels = np.random.default_rng(0).integers(0, 255, (90, SIDE, SIDE, 3)).astype(np.uint8)
    data = from_arrays(pixels, np.arange(90) % CLASSES)
    plan = Plan((Fold(), Prune(0.5, "l2", multiple=4), Train(2, batch_size=8)), ExportSettings("onnxruntime"))
    assert plan.code == "fold-prune50.2-fp32" and Plan.from_json(plan.to_json()) == plan
    files = [Path(pocketfit.apply(plan, model, data, tmp_path / str(i)).artifact.path) for i in (0, 1)]
    assert files[0].read_bytes() == files[1].read_bytes()
    contents = runtimes.get("onnxruntime").inspect(files[0])
    assert {"stem", "wide", "head"} <= {op.layer for op in contents.ops}
    assert not {"Clip", "Div"} & {op.type for op in contents.ops}, "hard-swish is whole"


PIECES: dict[str, Callable[[Tensor, Tensor, list[float]], Tensor]] = {
    "scale": lambda x, n, f: x * n,
    "offset": lambda x, n, f: x + n,
    "number": lambda x, n, f: x * f[0],
    "minus": lambda x, n, f: f[1] - x,
    "quotient": lambda x, n, f: x / (n.abs() + 0.5),
    "hardswish": lambda x, n, f: x * F.relu6(x + 3) / 6,
    "silu": lambda x, n, f: x * torch.sigmoid(x),
    "gelu": lambda x, n, f: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "relu": lambda x, n, f: F.relu(x),
    "hardsigmoid": lambda x, n, f: F.relu6(x + 3) / 6,
    "again": lambda x, n, f: x + x * f[2],
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "pointwise": lambda: nn.Conv2d(4, 4, 1),
    "padded": lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "circular": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    "grouped": lambda: nn.Conv2d(4, 4, (1, 3), groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 2, groups=2),
    "norm": lambda: nn.BatchNorm2d(4),
}


class Chain(nn.Module):
    """Layers and pieces one after the other; "+" keeps a tensor, and adds it again at the next "+"."""

    def __init__(self, parts: list[str], seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.parts = parts
        self.layers = nn.ModuleList([LAYERS[part]() if part in LAYERS else nn.Identity() for part in parts])
        self.numbers = nn.ParameterList([torch.randn(4, 1, 1, generator=generator) for _ in parts])
        self.floats = [numbers.flatten().tolist() for numbers in self.numbers]
        with torch.no_grad():
            for tensor in (*self.layers.parameters(), *self.layers.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        kept: Tensor | None = None
        for index, part in enumerate(self.parts):
            if part == "+":
                x, kept = (x, x) if kept is None else (x + kept, None)
            else:
                kept = None if part in ("grouped", "transposed") else kept  # x is going to have another shape
                x = (
                    self.layers[index](x)
                    if part in LAYERS
                    else PIECES[part](x, self.numbers[index], self.floats[index])
                )
        return x


@given(parts=st.lists(st.sampled_from([*PIECES, *LAYERS, "+"]), min_size=2, max_size=9), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_whatever_is_folded_the_answers_stay(parts: list[str], seed: int) -> None:
    chain = Chain(parts, seed).eval().double()
    generator = torch.Generator().manual_seed(seed)
    seen, other = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 4, 7, 9), (3, 4, 12, 8))
    )
    done = fold_model.fold(chain, [seen], rules=fold_model.KEPT)
    assert done.findings == (), "no rule has to be caught"
    with torch.no_grad():
        wanted = chain(other)
        torch.testing.assert_close(done.network(other), wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))
