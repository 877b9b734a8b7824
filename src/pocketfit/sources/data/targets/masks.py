"""Masks: pictures, or rows of an array, that hold the number of a class for each pixel.

255 stands for "no class is known", as in Pascal VOC and Cityscapes, and becomes -1. Where masks hold nothing but 0 and
255, 255 is the one class beside the background.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.cpus import usable
from pocketfit.sources.data.picture_files import MAX_FILE_BYTES, ROWS_PER_CHUNK
from pocketfit.sources.image_preprocess import BadPicture, Pixels, geometry, open_picture, turned

UNKNOWN = 255
LOSSY = ("JPEG", "MPO")
CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # Pillow's modes of one channel
WHITE_IS_ONE = "The masks hold nothing but 0 and 255: 255 is taken for class 1."


@dataclass(frozen=True)
class Mask:
    """What was found when a mask was read: sha256 of its content, height and width, and which of 0..255 it holds."""

    content: str
    size: tuple[int, int]
    values: NDArray[np.bool_]


@dataclass(frozen=True)
class MaskFiles:
    """Reader of mask files: `paths` are relative to `root`."""

    root: Path
    paths: tuple[str, ...]
    contents: Sequence[str]
    highest: int
    white_is_one: bool

    def read(self, rows: NDArray[np.int64], preprocess: Preprocess) -> Iterator[NDArray[np.int16]]:
        def mask(row: int) -> NDArray[np.int16]:
            path = self.root / self.paths[row]
            try:
                return as_target(_decoded(path.read_bytes()), preprocess, self.white_is_one)
            except (BadPicture, OSError) as error:
                raise UserError(
                    f"The mask {path} cannot be read: {error}; it could be when the data was opened: start again"
                ) from error

        with ThreadPoolExecutor(usable()) as pool:
            for start in range(0, len(rows), ROWS_PER_CHUNK):
                yield np.stack(list(pool.map(mask, rows[start : start + ROWS_PER_CHUNK].tolist())))

    def shape(self, preprocess: Preprocess) -> tuple[int, int]:
        return preprocess.height, preprocess.width


@dataclass(frozen=True)
class MaskArrays:
    """Reader of masks in arrays, uint8 [n, h, w] each, counted through. Masks of float arrays are fed as they are."""

    blocks: tuple[NDArray[np.uint8], ...]
    contents: Sequence[str]
    highest: int
    white_is_one: bool
    resized: bool  # as the images of uint8 arrays are

    def read(self, rows: NDArray[np.int64], preprocess: Preprocess) -> Iterator[NDArray[np.int16]]:
        starts = np.cumsum([0, *map(len, self.blocks)])
        for row in rows.tolist():
            block = int(np.searchsorted(starts, row, side="right")) - 1
            mask = self.blocks[block][row - starts[block]]
            yield as_target(mask, preprocess if self.resized else None, self.white_is_one)[np.newaxis]

    def shape(self, preprocess: Preprocess) -> tuple[int, int]:
        height, width = self.blocks[0].shape[1:]
        return (preprocess.height, preprocess.width) if self.resized else (height, width)


def as_target(mask: Pixels, preprocess: Preprocess | None, white_is_one: bool) -> NDArray[np.int16]:
    """A mask, uint8 [h, w], with the geometry of its picture: int16 [H, W]; -1 where no class is known, and beyond the
    picture's edge. Nothing is mixed (nearest).

    >>> as_target(np.array([[0, 7, 255]], np.uint8), None, white_is_one=False)
    array([[ 0,  7, -1]], dtype=int16)
    """
    classes = np.where(mask == UNKNOWN, np.uint8(1), mask) if white_is_one else mask
    if preprocess is not None:
        same = replace(preprocess, filter="nearest", colour="GRAY", background=(UNKNOWN,) * 3, mean=(0.0,), std=(1.0,))
        classes = geometry(classes[..., np.newaxis], same)[..., 0]
    return np.where(classes == UNKNOWN, np.int16(-1), classes.astype(np.int16))


def checked_mask(path: Path, size_bytes: int, picture: Path) -> Mask | str:
    """What a mask file holds, or why it cannot be used with this picture."""
    if size_bytes > MAX_FILE_BYTES:
        return f"it has {size_bytes / 1e6:.0f} MB, more than the {MAX_FILE_BYTES / 1e6:.0f} MB that are read"
    try:
        data = path.read_bytes()
        mask = _decoded(data)
        height, width = upright_size(picture)
    except (BadPicture, OSError) as error:
        return str(error)
    if mask.shape != (height, width):
        return f"it is {mask.shape[1]} x {mask.shape[0]} pixels, and its picture is {width} x {height}"
    return Mask(hashlib.sha256(data).hexdigest(), mask.shape, values_of(mask))


def values_of(masks: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of 0..255 stand in masks: bool [256]."""
    return np.bincount(masks.reshape(-1), minlength=256) > 0


def what_they_mean(values: NDArray[np.bool_]) -> tuple[int, bool]:
    """(the highest class, whether 255 is class 1), from the values that stand in any of the masks.

    >>> values = np.zeros(256, bool); values[[0, 255]] = True
    >>> what_they_mean(values)
    (1, True)
    """
    if values[0] and values[UNKNOWN] and values.sum() == 2:
        return 1, True
    known = np.flatnonzero(values[:UNKNOWN])
    return int(known.max(initial=0)), False


def identities(contents: Iterable[str], white_is_one: bool) -> list[str]:
    """What masks are known by, in hashes and caches: their contents, and that 255 is class 1, where it is."""
    return [f"{content} 255=1" if white_is_one else content for content in contents]


def _decoded(data: bytes) -> Pixels:
    """The numbers of a mask's pixels, upright: uint8 [h, w]; of a palette the indices. Raises BadPicture."""
    try:
        with open_picture(io.BytesIO(data)) as image:
            if image.format in LOSSY:
                raise BadPicture("it is a JPEG, which changes numbers: save masks as PNG")
            image.load()
            if image.mode not in CHANNEL:
                raise BadPicture("it has colours: save one channel with the number of the class of each pixel")
            pixels = np.asarray(image)
            orientation = image.getexif().get(0x0112, 1)
    except BadPicture:
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise nearly every built-in exception
        raise BadPicture(str(error) or type(error).__name__) from error
    if pixels.max() > UNKNOWN or pixels.min() < 0:
        raise BadPicture(f"it holds {int(pixels.max())}: classes are numbered from 0 to {UNKNOWN - 1}")
    upright: Pixels = turned(pixels.astype(np.uint8), orientation)
    return upright


def upright_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file, most often from its header alone. Raises BadPicture."""
    try:
        with open_picture(path) as image:
            if image.format == "TIFF":  # Pillow turns these by itself when it loads them
                image.load()
            width, height = image.size
            return (width, height) if image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else (height, width)
    except Exception as error:  # as above
        raise BadPicture(f"its picture cannot be read: {error}") from error
