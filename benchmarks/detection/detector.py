"""An anchor-free detector as YOLOv8 is built, small: two maps, distances to four sides, and class probabilities apart.

    python -m benchmarks.detection.detector -o .downloads/detector.safetensors

Its output is [n, 4 + classes, boxes]: centre x, centre y, width, height in pixels, probabilities.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, softplus

from benchmarks.detection import shapes
from pocketfit import tasks
from pocketfit.core.preprocess import Preprocess

PREPROCESS = Preprocess(
    height=shapes.SIDE,
    width=shapes.SIDE,
    resize="longer",
    resize_px=shapes.SIDE,
    background=(114, 114, 114),
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)
STRIDES = (4, 8)
PRIOR = -4.0  # logit of a class at the start (Lin et al. 2017, RetinaNet: 1 %)
TRAINED = 3000  # pictures


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Head(nn.Module):
    """One map [n, inputs, H, W] -> [n, 4 + classes, H * W]."""

    places: Tensor

    def __init__(self, inputs: int, stride: int) -> None:
        super().__init__()
        side = shapes.SIDE // stride
        self.stride = float(stride)
        self.box = nn.Sequential(_layer(inputs, 48), nn.Conv2d(48, 4, 1))
        self.score = nn.Sequential(_layer(inputs, 48), nn.Conv2d(48, len(shapes.NAMES), 1))
        nn.init.constant_(self.score[1].bias, PRIOR)
        row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        self.register_buffer("places", (torch.stack([column, row]).flatten(1).float() + 0.5) * stride, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        sides = 2 * self.stride * softplus(self.box(features).flatten(2))
        before, behind = sides[:, :2], sides[:, 2:]
        scores = self.score(features).flatten(2).sigmoid()
        return torch.cat([self.places + (behind - before) / 2, before + behind, scores], 1)


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_layer(3, 16, 2), _layer(16, 32, 2), _layer(32, 48))
        self.middle = nn.Sequential(_layer(48, 64, 2), _layer(64, 64))
        self.deep = nn.Sequential(_layer(64, 128, 2), _layer(128, 128))
        self.join_8, self.join_4 = _layer(128 + 64, 64), _layer(64 + 48, 48)
        self.heads = nn.ModuleList([Head(48, STRIDES[0]), Head(64, STRIDES[1])])

    def forward(self, image: Tensor) -> Tensor:
        at_4 = self.stem(image)
        at_8 = self.middle(at_4)
        at_8 = self.join_8(torch.cat([interpolate(self.deep(at_8), scale_factor=2.0), at_8], 1))
        at_4 = self.join_4(torch.cat([interpolate(at_8, scale_factor=2.0), at_4], 1))
        return torch.cat([self.heads[0](at_4), self.heads[1](at_8)], 2)


def trained(steps: int = 700, batch: int = 32, seed: int = 0) -> nn.Module:
    """A Detector after so many steps of AdamW with the labelled loss of the task."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    network, task = Detector(), tasks.get("detection")
    pictures, boxes = shapes.drawn(TRAINED, seed + 1)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    began = time.perf_counter()
    for step in range(steps):
        rows = torch.randint(TRAINED, (batch,)).numpy()
        inputs = torch.from_numpy(pictures[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1
        loss = task.loss(network(inputs), torch.from_numpy(boxes[rows])).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {float(loss.detach()):.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    return network.eval()


def main() -> None:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path(".downloads/detector.safetensors"))
    parser.add_argument("--steps", type=int, default=700)
    given = parser.parse_args()
    save_file(trained(given.steps).state_dict(), given.out)
    print(given.out)


if __name__ == "__main__":
    main()
