"""The 75 photos that `stamps_imagenet.json` labels, as samples: one half to calibrate with, the other to judge by.

The photos come from a Debian package (`tools/fetch.py stamps`) and are no part of pocketfit; the map is ours: path ->
the ImageNet-1k classes that count as right. No other photo of the package is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.sources.image_preprocess import decode, geometry

MAP = Path(__file__).with_name("stamps_imagenet.json")
PREPROCESS = Preprocess(resize="longer", resize_px=200, height=224, width=224, filter="bicubic")
Variant = tuple[int, bool, int, int]  # (longer side in px, mirrored, moved right by px, moved down by px)
# The same photo again; over 224 px its ends are cut off.
FEW: tuple[Variant, ...] = (
    *((200, False, 0, 0), (200, True, 0, 0), (200, False, 12, 12)),
    *((250, True, 0, 0), (160, False, -12, -12)),
)
MANY: tuple[Variant, ...] = (
    *FEW,
    *((224, False, 0, 0), (224, True, -20, 10), (180, True, 20, -10), (200, True, -12, 12)),
    *((140, False, 30, 30), (140, True, -30, 20), (270, False, -25, -25)),
    *((300, False, 0, 0), (300, True, 40, -30), (360, True, 0, 0), (360, False, -50, 40)),
)
# Of a photo that fills its frame, for training.
WHOLE: tuple[Variant, ...] = (
    *((300, False, 0, 0), (300, True, 40, 0), (360, True, 0, 0)),
    *((360, False, -50, 40), (224, False, 0, 0), (200, True, -12, 12)),
)


@dataclass(frozen=True)
class Photos:
    """Samples of some photos in all variants, variant by variant.

    accepted  for each sample the classes that count as right
    photo     int64 [n], which photo each sample shows: variants of one photo are not independent of each other
    """

    samples: Samples
    accepted: tuple[tuple[int, ...], ...]
    photo: NDArray[np.int64]

    def first(self, count: int) -> Photos:
        """The first `count` pictures; as many as make whole variants show every photo alike."""
        chosen = self.samples.take(np.arange(count))
        return replace(self, samples=chosen, accepted=self.accepted[:count], photo=self.photo[:count])

    def right(self, outputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits [n, 1000] -> for each photo the share of its variants whose top class is accepted, [photos]."""
        hits = np.array([top in accepted for top, accepted in zip(outputs.argmax(1), self.accepted, strict=True)])
        return np.bincount(self.photo, hits) / np.bincount(self.photo)


def halves(folder: Path, variants: Sequence[Variant] = FEW) -> tuple[Photos, Photos]:
    """(to calibrate with, to judge by): the photos in the order of their paths' sha256, cut in the middle."""
    labels: dict[str, list[int]] = json.loads(MAP.read_text())
    paths = sorted(labels, key=lambda path: hashlib.sha256(path.encode()).hexdigest())
    middle = len(paths) // 2
    chosen = ("calibration", paths[:middle]), ("verdict", paths[middle:])
    first, second = (_photos(folder, {path: labels[path] for path in part}, split, variants) for split, part in chosen)
    return first, second


def unlabelled(folder: Path) -> Samples:
    """All photos of a folder (`tools/fetch.py photos`), six variants of each, for training alone."""
    paths = sorted(path.name for path in folder.glob("*.webp"))
    return _photos(folder, {path: [-1] for path in paths}, "train", WHOLE).samples


def joined(first: Samples, second: Samples) -> Samples:
    """The pictures of both, fed as the first ones."""
    array = np.concatenate([first.array, second.array])
    labels = np.concatenate([first.labels, second.labels])
    return replace(
        first,
        array=array,
        labels=labels,
        names=[*first.names, *second.names],
        sha256=hashlib.sha256(array.tobytes()).hexdigest(),
    )


def shuffled(photos: Photos, count: int, seed: int = 0) -> Samples:
    """`count` of the pictures in a fixed random order, without labels: the first 100 of 200 are those of 100."""
    chosen = photos.samples.take(np.random.default_rng(seed).permutation(len(photos.samples))[:count])
    return replace(chosen, labels=np.full(count, -1, np.int64))


def mixed(samples: Samples, seed: int = 0) -> Samples:
    """All of them in a fixed random order, so that the first ones show something of all."""
    return samples.take(np.random.default_rng(seed).permutation(len(samples)))


def _photos(folder: Path, labels: dict[str, list[int]], split: str, variants: Sequence[Variant]) -> Photos:
    pictures = [decode(folder / path, PREPROCESS) for path in labels]
    array = np.stack([_variant(pixels, *variant) for variant in variants for pixels in pictures])
    accepted = tuple(tuple(classes) for _ in variants for classes in labels.values())
    names = [path for _ in variants for path in labels]
    first = np.array([classes[0] for classes in accepted], np.int64)
    samples = Samples(
        array=array,
        labels=first,
        names=names,
        split=split,
        sha256=hashlib.sha256(array.tobytes()).hexdigest(),
        preprocess=PREPROCESS,
    )
    return Photos(samples, accepted, np.tile(np.arange(len(labels)), len(variants)))


def _variant(
    pixels: NDArray[np.uint8], longer_px: int, mirrored: bool, right_px: int, down_px: int
) -> NDArray[np.uint8]:
    """RGB [h, w, 3] -> [224, 224, 3]; around the picture is white."""
    height, width, reach_px = PREPROCESS.height, PREPROCESS.width, max(abs(right_px), abs(down_px))
    wide = replace(PREPROCESS, resize_px=longer_px, height=height + 2 * reach_px, width=width + 2 * reach_px)
    picture = geometry(pixels, wide)
    picture = picture[:, ::-1] if mirrored else picture
    top, left = reach_px - down_px, reach_px - right_px
    return np.ascontiguousarray(picture[top : top + height, left : left + width])
