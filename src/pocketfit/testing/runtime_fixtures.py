"""The files that were made of the tiny network, each exported once a session; and those of a harder one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.core.artifact import Artifact
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec
from pocketfit.runtimes import get
from pocketfit.testing.tiny_network import CLASSES, pictures, tiny_model


@pytest.fixture(scope="session")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="session")
def calibration(model: Model) -> Samples:
    labels = np.zeros(32, np.int64)
    return Samples(
        array=pictures(32, seed=1),
        labels=labels,
        names=[f"{i}" for i in range(32)],
        split="calibration",
        sha256="cal",
        preprocess=model.preprocess,
    )


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def exported(model: Model, calibration: Samples, work: Path) -> Callable[[ExportSettings], Artifact]:
    """The artifact of these settings, made when it is first asked for."""
    made: dict[ExportSettings, Artifact] = {}

    def artifact(settings: ExportSettings) -> Artifact:
        if settings not in made:
            runtime, plan = get(settings.runtime), Plan((), settings)
            path = work / "out" / f"{plan.file_stem}{runtime.EXTENSION}"
            made[settings] = runtime.export(model, plan, calibration, path, work=work)
        return made[settings]

    return artifact


class Apart(nn.Module):
    """What has gone wrong in converted files: statistics of every sample on its own, no convolution first, two heads;
    and weights too small to count."""

    def __init__(self) -> None:
        super().__init__()
        self.unshuffle, self.conv = nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3, 2, 1)
        self.norm, self.head, self.side = nn.InstanceNorm2d(8, affine=True), nn.Linear(8, CLASSES), nn.Linear(8, 2)
        with torch.no_grad():
            self.conv.weight[:, ::2] *= 1e-38
            self.conv.weight[1, 1, 0, 0] = 1e-33

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.norm(self.conv(self.unshuffle(image))).relu().mean((2, 3))
        return self.head(x), self.side(x)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Model, Artifact]]:
    """By runtime: the network above and its float32 file."""
    made: dict[str, tuple[Model, Artifact]] = {}
    folder, model = tmp_path_factory.mktemp("apart"), tiny_model(Apart(), sha256="apart")
    outputs = (TensorSpec("logits", (None, CLASSES)), TensorSpec("side", (None, 2)))
    model = replace(model, signature=replace(model.signature, outputs=outputs))

    def of(name: str) -> tuple[Model, Artifact]:
        if name not in made:
            runtime = get(name)
            path = folder / f"apart{runtime.EXTENSION}"
            made[name] = model, runtime.export(model, Plan((), ExportSettings(name)), None, path, work=folder)
        return made[name]

    return of
