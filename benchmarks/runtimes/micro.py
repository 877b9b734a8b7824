"""The networks of MLPerf Tiny as files for microcontrollers: flash and arena, beside the sizes that are published.

    python -m benchmarks.runtimes.micro

Random weights, calibrated on noise: sizes do not depend on either. Published sizes are those of the int8 .tflite files
of MLPerf Tiny's repository (Banbury et al. 2021, https://arxiv.org/abs/2106.07597).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from pocketfit import zoo
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.runtimes import get
from pocketfit.runtimes.micro.arena import parts_bytes
from pocketfit.sources.models.open_model import model_from_module
from pocketfit.zoo.ds_cnn import ds_cnn_s


class Stack(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


def resnet_8() -> nn.Module:
    """The image classifier of MLPerf Tiny, [N, 3, 32, 32] -> [N, 10]."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU()),
        Stack(16, 16, 1),
        Stack(16, 32, 2),
        Stack(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Case(NamedTuple):
    title: str
    network: nn.Module
    shape: tuple[int, ...]  # of one input, channels first
    published_kb: float


def cases() -> list[Case]:
    torch.manual_seed(0)
    return [
        Case("ResNet-8, 32 px", resnet_8(), (3, 32, 32), 98.5),
        Case("DS-CNN-S, keywords", ds_cnn_s(), (1, 49, 10), 53.9),
        Case("MobileNetV1 0.25, 96 px", zoo.build("mobilenet_v1", width=0.25, classes=2), (3, 96, 96), 333.0),
    ]


def model_of(case: Case) -> Model:
    channels, height, width = case.shape
    means = (0.5,) * channels
    preprocess = Preprocess(
        height=height,
        width=width,
        resize="exact",
        mean=means,
        std=means,
        colour="GRAY" if channels == 1 else "RGB",
    )
    return model_from_module(case.network.eval(), preprocess=preprocess)


def measured(case: Case) -> Mapping[str, Any]:
    model = model_of(case)
    values = np.random.default_rng(0).standard_normal((32, *case.shape)).astype(np.float32)
    noise = Samples(
        array=values,
        labels=np.zeros(32, np.int64),
        names=[str(i) for i in range(32)],
        split="calibration",
        sha256="noise",
        preprocess=model.preprocess,
    )
    with TemporaryDirectory() as folder:
        path = Path(folder, "network.tflite")
        plan = Plan((), ExportSettings("micro", "int8", io="int8"))
        made = get("micro").export(model, plan, noise, path, work=Path(folder))
        return {"flash": made.bytes, **parts_bytes(path)}


def main() -> int:
    print("| network | flash, kB | published, kB | arena, kB | of it tensors | and tables |")
    print("|---|---|---|---|---|---|")
    for case in cases():
        found = measured(case)
        kilobytes = {name: f"{count / 1e3:.1f}" for name, count in found.items()}
        print(
            f"| {case.title} | {kilobytes['flash']} | {case.published_kb} | {kilobytes['total']} |"
            f" {kilobytes['head']} | {kilobytes['tail']} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
