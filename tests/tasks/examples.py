"""A small network and data for each task: a new task is missed here by name, and a row joins every test."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pocketfit import tasks
from pocketfit.core.model import Model
from pocketfit.core.preprocess import Preprocess
from pocketfit.sources.data.dataset import Dataset, for_form, from_arrays, open_data
from pocketfit.sources.models.open_model import model_from_module

SIDE = 16
SYMBOLS = ("blank", *"abcdef")
PREPROCESS = Preprocess(height=SIDE, width=SIDE, resize="exact", resize_px=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.body(self.stem(image))
        return found


class Classes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = Trunk(), nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.head(self.trunk(image).mean((2, 3)))
        return found


class Lines(nn.Module):
    """A step for every second column, in probabilities, as PaddleOCR's recognisers end."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = Trunk(), nn.Linear(16, len(SYMBOLS))

    def forward(self, image: Tensor) -> Tensor:
        steps = nn.functional.avg_pool2d(self.trunk(image), (SIDE, 2)).flatten(2).transpose(1, 2)
        found: Tensor = self.head(steps).softmax(-1)
        return found


class Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = Trunk(), nn.Conv2d(16, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(self.head(self.trunk(image)))


class Faces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head, self.norm = Trunk(), nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.norm(self.head(self.trunk(image).mean((2, 3))))
        return found


class Boxes(nn.Module):
    """Pixels and probabilities in one output [n, 4 + classes, boxes], as YOLOv8 ends, a box every 2 pixels."""

    grid: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = Trunk(), nn.Conv2d(16, 7, 3, stride=2, padding=1)
        row, column = torch.meshgrid(torch.arange(SIDE // 2), torch.arange(SIDE // 2), indexing="ij")
        self.register_buffer("grid", 2.0 * torch.stack([column, row]).flatten(1).float() + 1)

    def forward(self, image: Tensor) -> Tensor:
        found = self.head(self.trunk(image)).flatten(2)
        centre, size, scores = found[:, :2], found[:, 2:4], found[:, 4:]
        return torch.cat([centre.tanh() * 2 + self.grid, size.tanh().add(1.5) * 2, (4 * scores).sigmoid()], 1)


class Points(nn.Module):
    """Two outputs, the first one is the main one."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head, self.side = Trunk(), nn.Linear(16, 6), nn.Linear(16, 2)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        pooled = self.trunk(image).mean((2, 3))
        return {"points": self.head(pooled).view(-1, 3, 2), "side": self.side(pooled)}


class Numbers(nn.Module):
    """Some numbers a sample, spread over the pictures. `ends` says what is done to them."""

    def __init__(self, count: int, ends: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.trunk, self.head, self.ends = Trunk(), nn.Linear(16, count), ends

    def forward(self, image: Tensor) -> Tensor:
        return self.ends(self.head(self.trunk(image).flatten(2)[:, :, ::40].mean(2)))


class Steps(nn.Module):
    """Three steps between four classes, as CORAL has them: one weight, falling biases."""

    def __init__(self) -> None:
        super().__init__()
        self.rank = Numbers(1, lambda z: z)
        self.biases = nn.Parameter(torch.tensor([0.08, 0.0, -0.08]))

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = 10 * (self.rank(image) + self.biases)
        return found


class Sharper(nn.Module):
    """A picture of its own size, in the numbers in which it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = Trunk(), nn.Conv2d(16, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        return image + 0.1 * self.head(self.trunk(image))


@dataclass(frozen=True)
class Example:
    """network, its labels, and the data's targets for pictures uint8 [N, H, W, 3] (None: the task reads none).

    named   names of the data's classes or tags
    asked   whether the task has to be named: nothing in network and data tells it from another one
    """

    network: Callable[[], nn.Module]
    labels: tuple[str, ...]
    targets: Callable[[NDArray[np.uint8]], NDArray[np.generic]] | None
    named: tuple[str, ...] = ()
    asked: bool = False


def _texts(pixels: NDArray[np.uint8]) -> NDArray[np.generic]:
    return np.array(["".join(SYMBOLS[1 + int(v) % 6] for v in row) for row in pixels[:, 0, :3, 0]])


def _people(pixels: NDArray[np.uint8]) -> NDArray[np.generic]:
    """Four of them, by the mean of the first channel."""
    order = pixels[:, :, :, 0].mean((1, 2)).argsort().argsort()
    return order * 4 // max(len(pixels), 1)


def _objects(pixels: NDArray[np.uint8]) -> NDArray[np.generic]:
    """[N, 2, 5]: left, top, width, height, class."""
    found = np.stack([pixels[:, 0, i : i + 5, 0] for i in (0, 5)], 1).astype(np.int64)
    return found % (10, 10, 3, 3, 3) + (0, 0, 3, 3, 0)


def _said(task: str) -> Callable[[NDArray[np.uint8]], NDArray[np.generic]]:
    """The task's own outputs for pictures, as targets that an untrained network gets nearly right."""

    def outputs(pixels: NDArray[np.uint8]) -> NDArray[np.generic]:
        with torch.no_grad():
            inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
            found: NDArray[np.generic] = model_of(task).network(inputs).numpy()
        return found

    return outputs


def _above(task: str) -> Callable[[NDArray[np.uint8]], NDArray[np.generic]]:
    """Which of the outputs lie above a half of them."""

    def above(pixels: NDArray[np.uint8]) -> NDArray[np.generic]:
        found = np.asarray(_said(task)(pixels))
        return (found > np.median(found, axis=0)).astype(np.int64)

    return above


def _brighter(pixels: NDArray[np.uint8]) -> NDArray[np.generic]:
    return np.asarray(255 - (255 - pixels.astype(np.int64)) * 15 // 16).astype(np.uint8)


EXAMPLES: dict[str, Example] = {
    "classification": Example(
        Classes, tuple("wxyz"), lambda p: p[:, :, :, 0].mean((1, 2)).astype(int) % 4, tuple("wxyz")
    ),
    "binary": Example(
        lambda: Numbers(1, lambda z: torch.sigmoid(20 * z)),
        ("off", "on"),
        lambda p: _above("binary")(p)[:, 0],
        ("off", "on"),
    ),
    "multilabel": Example(
        lambda: Numbers(3, lambda z: 20 * z), tuple("abc"), _above("multilabel"), tuple("abc"), asked=True
    ),
    "regression": Example(lambda: Numbers(2, lambda z: 100 * z), (), _said("regression"), asked=True),
    "ordinal": Example(
        Steps, tuple("stuv"), lambda p: (np.asarray(_said("ordinal")(p)) > 0).sum(1), tuple("stuv"), asked=True
    ),
    "image_to_image": Example(Sharper, (), _brighter, asked=True),
    "text": Example(Lines, SYMBOLS, _texts),
    "segmentation": Example(Maps, (), lambda p: (p[:, :, :, 0] > 127).astype(np.int64)),
    "embedding": Example(Faces, (), _people, asked=True),
    "detection": Example(Boxes, ("disc", "ring", "star"), _objects),
    "fidelity": Example(Points, (), None),
}


def pictures(count: int = 240) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def model_of(task: str) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = EXAMPLES[task].network().eval()
    return model_from_module(network, preprocess=PREPROCESS, labels=EXAMPLES[task].labels)


def write_coco(folder: Path, pixels: NDArray[np.uint8], objects: NDArray[np.generic], names: tuple[str, ...]) -> Path:
    """Pictures with COCO's annotations beside them; objects [N, k, 5] as `_objects` gives them."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = dict(zip(("height", "width"), pixels.shape[1:3], strict=True))
    annotations = [
        {"id": 10 * row + n, "image_id": row, "category_id": 1 + int(box[4]), "bbox": box[:4].tolist(), "iscrowd": 0}
        for row, boxes in enumerate(objects)
        for n, box in enumerate(boxes)
    ]
    for row, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{row}.png")
    data = {
        "images": [{"id": row, "file_name": f"{row}.png", **sides} for row in range(len(pixels))],
        "annotations": annotations,
        "categories": [{"id": 1 + n, "name": name} for n, name in enumerate(names)],
    }
    (folder / "annotations.json").write_text(json.dumps(data))
    return folder / "annotations.json"


def data_of(task: str, folder: object, *, labelled: bool, count: int = 240) -> Dataset:
    """The data as an .npz file in `folder`."""
    pixels, targets = pictures(count), EXAMPLES[task].targets
    if task == "detection" and labelled:
        return open_data(write_coco(Path(str(folder)) / "coco", pixels, _objects(pixels), EXAMPLES[task].labels))
    path = Path(str(folder)) / f"{task}-{labelled}.npz"
    if labelled and targets is not None:
        if names := EXAMPLES[task].named:
            return from_arrays(pixels, targets(pixels).astype(np.int64), class_names=names)
        np.savez(path, x=pixels, y=targets(pixels))
    else:
        np.savez(path, x=pixels)
    return for_form(open_data(path), tasks.get(task).FORM)
