"""Drawn discs, squares and triangles on noise, with COCO's annotations: any number of pictures from a seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64
NAMES = ("disc", "square", "triangle")
MOST = 4  # shapes a picture
SIZES = (12, 30)  # pixels of a shape's sides
APART = 0.25  # of a shape that may be hidden by another


def drawn(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(pictures uint8 [count, SIDE, SIDE, 3], boxes float32 [count, MOST, 6] as tasks/detection.py has targets)."""
    rng = np.random.default_rng(seed)
    pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
    boxes = np.full((count, MOST, 6), -1, np.float32)
    for row in range(count):
        pictures[row], found = _picture(rng)
        boxes[row, : len(found)] = found
    return pictures, boxes


def _picture(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    ground = rng.integers(40, 216, 3)
    canvas = ground + rng.normal(0, 12, (SIDE, SIDE, 3)) + 30 * np.linspace(-1, 1, SIDE)[:, None, None] * rng.normal()
    found: list[list[float]] = []
    for _ in range(int(rng.integers(1, MOST + 1))):
        width, height = rng.integers(*SIZES, 2, endpoint=True)
        left, top = rng.integers(0, SIDE - width + 1), rng.integers(0, SIDE - height + 1)
        box = [left, top, left + width, top + height]
        if any(_hidden(box, other) > APART for other in found):
            continue
        label = int(rng.integers(len(NAMES)))
        colour = ground + np.where(rng.random(3) < 0.5, -1, 1) * rng.integers(30, 90, 3)
        canvas[_mask(label, *box)] = colour + rng.normal(0, 8, 3)
        found.append([*box, label, 0])
    canvas += rng.normal(0, 6, canvas.shape)
    return canvas.clip(0, 255).astype(np.uint8), np.array(found, np.float32)


def _hidden(one: list[float], other: list[float]) -> float:
    """The share of the smaller box that both cover."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return max(width, 0) * max(height, 0) / min(areas)


def _mask(label: int, left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    across, down = (x - left) / (right - left), (y - top) / (bottom - top)  # 0..1 inside
    inside = (across >= 0) & (across <= 1) & (down >= 0) & (down <= 1)
    if label == 0:
        return inside & (np.hypot(across - 0.5, down - 0.5) <= 0.5)
    return inside if label == 1 else inside & (np.abs(across - 0.5) <= down / 2)


def write(folder: Path, count: int, seed: int) -> Path:
    """Pictures as PNG with annotations.json beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures, boxes = drawn(count, seed)
    images, annotations = [], []
    for row, (picture, found) in enumerate(zip(pictures, boxes, strict=True)):
        Image.fromarray(picture).save(folder / f"{row:05d}.png")
        images.append({"id": row, "file_name": f"{row:05d}.png", "width": SIDE, "height": SIDE})
        for x1, y1, x2, y2, label, _ in found[found[:, 4] >= 0].tolist():
            place = {"id": len(annotations) + 1, "image_id": row, "category_id": int(label) + 1}
            annotations.append({**place, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(data))
    return folder / "annotations.json"
