"""The 75 photos that `stamps_imagenet.json` labels, as samples: one half to calibrate with, the other to judge by.

The photos come from a Debian package (`tools/fetch.py stamps`) and are no part of pocketfit; the map is ours: path ->
the ImageNet-1k classes that count as right. No other photo of the package is used.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.sources.preprocess import decode, geometry

MAP = Path(__file__).with_name("stamps_imagenet.json")
PREPROCESS = Preprocess(resize="longer", resize_px=200, height=224, width=224, filter="bicubic")
# The same photo again: (longer side in px, mirrored, moved right and down by px). 250 px: its ends are cut off.
VARIANTS = ((200, False, 0), (200, True, 0), (200, False, 12), (250, True, 0), (160, False, -12))


@dataclass(frozen=True)
class Photos:
    """Samples of some photos in all variants, variant by variant.

    accepted  for each sample the classes that count as right
    photo     int64 [n], which photo each sample shows: variants of one photo are not independent of each other
    """

    samples: Samples
    accepted: tuple[tuple[int, ...], ...]
    photo: NDArray[np.int64]

    def right(self, outputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits [n, 1000] -> for each photo the share of its variants whose top class is accepted, [photos]."""
        hits = np.array([top in accepted for top, accepted in zip(outputs.argmax(1), self.accepted, strict=True)])
        return np.bincount(self.photo, hits) / np.bincount(self.photo)


def halves(folder: Path) -> tuple[Photos, Photos]:
    """(to calibrate with, to judge by): the photos in the order of their paths' sha256, cut in the middle."""
    labels: dict[str, list[int]] = json.loads(MAP.read_text())
    paths = sorted(labels, key=lambda path: hashlib.sha256(path.encode()).hexdigest())
    middle = len(paths) // 2
    chosen = ("calibration", paths[:middle]), ("verdict", paths[middle:])
    first, second = (_photos(folder, {path: labels[path] for path in part}, split) for split, part in chosen)
    return first, second


def _photos(folder: Path, labels: dict[str, list[int]], split: str) -> Photos:
    pictures = [decode(folder / path, PREPROCESS) for path in labels]
    array = np.stack([_variant(pixels, *variant) for variant in VARIANTS for pixels in pictures])
    accepted = tuple(tuple(classes) for _ in VARIANTS for classes in labels.values())
    names = [path for _ in VARIANTS for path in labels]
    first = np.array([classes[0] for classes in accepted], np.int64)
    samples = Samples(array, first, names, split, hashlib.sha256(array.tobytes()).hexdigest(), PREPROCESS)
    return Photos(samples, accepted, np.tile(np.arange(len(labels)), len(VARIANTS)))


def _variant(pixels: NDArray[np.uint8], longer_px: int, mirrored: bool, moved_px: int) -> NDArray[np.uint8]:
    """RGB [h, w, 3] -> [224, 224, 3]; what is moved in at the edges is white."""
    picture = geometry(pixels, replace(PREPROCESS, resize_px=longer_px))
    picture = picture[:, ::-1] if mirrored else picture
    height, width = picture.shape[:2]
    padded = np.pad(picture, ((abs(moved_px),) * 2, (abs(moved_px),) * 2, (0, 0)), constant_values=255)
    start = abs(moved_px) - moved_px
    return np.ascontiguousarray(padded[start : start + height, start : start + width])
