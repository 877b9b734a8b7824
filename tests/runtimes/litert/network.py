"""A network for the tests of LiteRT, its samples, and its files: each made once."""

from __future__ import annotations

import atexit
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pocketfit.core.artifact import Artifact, OpInfo
from pocketfit.core.model import Model, Origin
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.runtime import answer
from pocketfit.core.samples import Samples
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.runtimes.litert import runtime

pytest.importorskip("ai_edge_litert")
pytest.importorskip("litert_torch")

SIZE, CLASSES = 48, 5
PREPROCESS = Preprocess(height=SIZE, width=SIZE, resize="none")
LAYERS = ("stem.0", "depthwise.0", "project", "classifier")


class Net(nn.Module):
    """A stem, a depthwise block with a residual, a pooling and a classifier, with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.ReLU6())
        self.project = nn.Conv2d(16, 16, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(x))
        return self.classifier(torch.flatten(self.pool(x), 1))


def model_of(network: nn.Module, sha256: str) -> Model:
    """A network [n, 3, SIZE, SIZE] -> [n, CLASSES] with its contract."""
    signature = Signature(
        (TensorSpec("image", (None, 3, SIZE, SIZE), "float32", "NCHW"),), (TensorSpec("scores", (None, CLASSES)),)
    )
    origin = Origin("object", type(network).__name__)
    return Model(
        network=network.eval(),
        signature=signature,
        preprocess=PREPROCESS,
        labels=tuple("abcde"),
        origin=origin,
        sha256=sha256,
    )


def _samples() -> Samples:
    pixels = np.random.default_rng(0).integers(0, 256, (32, SIZE, SIZE, 3), np.uint8)
    return Samples(
        array=pixels,
        labels=np.zeros(32, np.int64),
        names=[str(i) for i in range(32)],
        split="calibration",
        sha256="0",
        preprocess=PREPROCESS,
    )


def _model() -> Model:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    network = Net().train()
    with torch.no_grad():  # running statistics as training leaves them
        for _ in range(20):
            network(torch.from_numpy(SAMPLES.inputs(slice(None))))
    return model_of(network, "net")


SAMPLES = _samples()
MODEL = _model()


@cache
def folder() -> Path:
    """A folder that is removed when the tests end."""
    made = tempfile.TemporaryDirectory(prefix="litert-")
    atexit.register(made.cleanup)
    return Path(made.name)


@cache
def _export(settings: ExportSettings) -> Artifact:
    plan = Plan((), settings)
    path = folder() / f"{plan.file_stem}.tflite"
    return runtime.export(MODEL, plan, SAMPLES, path, work=folder() / "work")


def export(precision: str = "float32", **settings: Any) -> Artifact:
    """The file of Net with these settings."""
    return _export(ExportSettings("litert", precision, **settings))  # type: ignore[arg-type]


def expected(model: Model = MODEL) -> NDArray[np.float32]:
    """What torch answers to all samples."""
    with torch.no_grad():
        return np.asarray(model.network(torch.from_numpy(SAMPLES.inputs(slice(None)))))


def answers(artifact: Artifact) -> NDArray[np.float32]:
    """What the file answers to all samples."""
    session = runtime.load(Path(artifact.path))
    return answer(session, SAMPLES.inputs(slice(None), layout=session.signature.inputs[0].layout))


def sqnr_db(reference: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    return float(10 * np.log10((reference**2).sum() / ((reference - got) ** 2).sum()))


def by_layer(artifact: Artifact) -> dict[str, OpInfo]:
    return {op.layer: op for op in runtime.inspect(Path(artifact.path)).ops if op.layer}
