"""A channel that training has switched off: weights near 0, so that 32 bits don't hold its bias in steps of (input
scale x weight scale). The weight's scale is raised until the bias fits; the weights become 0, which is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.runtime import answer
from pocketfit.core.samples import Samples
from pocketfit.runtimes import get
from tests.runtimes.tiny_network import pictures, tiny_model

pytest.importorskip("litert_torch")
LAYERS = ("conv", "depthwise", "up", "grouped", "fc")
BIAS = 5.0


class Switched(nn.Module):
    """Output 1 of every layer is its bias, whatever comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1, groups=8)
        self.up, self.grouped = nn.ConvTranspose2d(8, 8, 2, 2), nn.ConvTranspose2d(8, 8, 3, 2, 1, groups=2)
        self.fc = nn.Linear(8, 5)
        with torch.no_grad():
            for name in LAYERS:
                layer = self.get_submodule(name)
                own = layer.weight[:, 1] if isinstance(layer, nn.ConvTranspose2d) else layer.weight[1]
                own *= 1e-9
                layer.bias[1] = BIAS

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.grouped(self.up(self.depthwise(self.conv(image)).relu()).relu())
        return self.fc(x.mean((2, 3)))


SETTINGS = [
    ExportSettings("litert", "int8"),
    ExportSettings("litert", "int8", weights="int4"),
    ExportSettings("onnxruntime", "int8", "uint8"),
    ExportSettings("onnxruntime", "int8", "int8"),
    ExportSettings("onnxruntime", "int8", "uint8", weights="int7"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("switched")


@pytest.fixture(scope="module")
def given() -> tuple[Model, Samples]:
    model = tiny_model(Switched(), sha256="switched")
    names = [str(i) for i in range(32)]
    return model, Samples(
        array=pictures(32),
        labels=np.zeros(32, np.int64),
        names=names,
        split="calibration",
        sha256="switched",
        preprocess=model.preprocess,
    )


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.runtime}-{s.code}")
def test_the_bias_of_a_switched_off_channel_is_not_lost(
    settings: ExportSettings, work: Path, given: tuple[Model, Samples]
) -> None:
    (model, samples), runtime = given, get(settings.runtime)
    path = work / f"{settings.code}{runtime.EXTENSION}"
    runtime.export(model, Plan((), settings), samples, path, work=work)
    session, values = runtime.load(path), pictures(8, seed=3)
    nhwc = session.signature.inputs[0].layout == "NHWC"
    got = answer(session, np.ascontiguousarray(values.transpose(0, 2, 3, 1)) if nhwc else values)
    with torch.no_grad():
        wanted = model.network(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(wanted[:, 1], BIAS, atol=1e-3)
    np.testing.assert_allclose(got[:, 1], BIAS, atol=0.05)
    np.testing.assert_allclose(got, wanted, atol=0.6 if settings.weights == "int4" else 0.15)
