"""Hard-swish as a product: the same answers, and operators that have int8 kernels."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit import runtimes, zoo
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.passes.graph import aten
from pocketfit.passes.rewrite import hardswish
from pocketfit.sources.models.open_model import model_from_module


def test_mobilenet_v3_answers_the_same() -> None:
    torch.manual_seed(0)
    model = model_from_module(
        zoo.build("mobilenet_v3_small", width=1.0, classes=5).eval(), preprocess=Preprocess(height=32, width=32)
    )
    found = hardswish.apply(model)
    values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(found.network(values), model.network(values), rtol=1e-4, atol=1e-5)
    assert len(hardswish.replaceable(model.network, model.signature)) == 19
    assert not hardswish.replaceable(found.network, found.signature)
    assert found.sha256 != model.sha256


class ByFunction(nn.Module):
    def __init__(self, *, again: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.again = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 4), again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardswish(self.a(x))
        y = self.b(x)
        z = nn.functional.hardswish(input=y, inplace=True)
        return self.fc((y if self.again else z).mean((2, 3)))


def test_a_hard_swish_that_a_forward_calls_is_replaced_too() -> None:
    torch.manual_seed(0)
    model = model_from_module(ByFunction(), preprocess=Preprocess(height=8, width=8))
    assert hardswish.replaceable(model.network, model.signature) == ("",)
    found = hardswish.apply(model)
    assert found.sha256 != model.sha256 and not hardswish.replaceable(found.network, found.signature)
    operators = {aten.operation(node) for node in aten.export(found.network, found.signature).graph.nodes}
    assert "hardswish" not in operators and "mul" in operators
    values = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(found.network(values), model.network(values))
        copied = copy.deepcopy(found.network)
        assert torch.equal(copied(values), found.network(values))
    assert found.network.state_dict().keys() == model.network.state_dict().keys()
    assert type(model.network) is ByFunction, "the given network stays as it is"


def test_one_module_under_many_names_is_replaced_under_all() -> None:
    act = nn.Hardswish()
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), act, nn.Sequential(nn.Conv2d(8, 8, 1), act), nn.Flatten())
    network = nn.Sequential(*layers, nn.Linear(8 * 36, 4))
    found = hardswish.apply(model_from_module(network, preprocess=Preprocess(height=8, width=8)))
    assert not any(isinstance(module, nn.Hardswish) for module in found.network.modules())


def test_answers_that_would_change_are_refused() -> None:
    model = model_from_module(ByFunction(again=True), preprocess=Preprocess(height=8, width=8))
    with pytest.raises(UserError, match="without inplace=True"):
        hardswish.apply(model)


def small() -> Model:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Conv2d(8, 8, 1), nn.Hardswish(), nn.Flatten())
    return model_from_module(
        nn.Sequential(*network, nn.Linear(8 * 36, 4)).eval(), preprocess=Preprocess(height=8, width=8)
    )


@pytest.mark.slow
def test_litert_finds_kernels_for_it(tmp_path: Path) -> None:
    runtime = runtimes.get("litert")
    plan = Plan((), ExportSettings("litert", "int8"))
    array = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    samples = Samples(
        array=array,
        labels=np.full(16, -1),
        names=[""] * 16,
        split="calibration",
        sha256="noise",
        preprocess=Preprocess(height=8, width=8),
    )
    types = []
    for model in (small(), hardswish.apply(small())):
        path = tmp_path / f"{model.key[:8]}.tflite"
        runtime.export(model, plan, samples, path, work=tmp_path)
        types.append([op.type for op in runtime.inspect(path).ops])
    assert types[0].count("HARD_SWISH") == 2
    assert types[1].count("HARD_SWISH") == 0
    assert set(types[1]) <= {
        "CONV_2D",
        "MUL",
        "ADD",
        "RESHAPE",
        "TRANSPOSE",
        "FULLY_CONNECTED",
        "QUANTIZE",
        "DEQUANTIZE",
    }


def test_a_network_without_one_is_refused() -> None:
    model = model_from_module(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval(), preprocess=Preprocess(height=2, width=2)
    )
    with pytest.raises(UserError, match="no hard-swish to replace"):
        hardswish.apply(model)
