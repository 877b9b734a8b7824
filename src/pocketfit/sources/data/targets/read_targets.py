"""The targets of some rows of a Listing, and whether a network's outputs can be compared with them."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.signature import TensorSpec
from pocketfit.core.support.array_file import stored_array
from pocketfit.sources.data import box_files
from pocketfit.sources.data.listing import Listing, counted

GEOMETRY = ("height", "width", "resize", "resize_px", "filter", "colour", "background")
GEOMETRY_VERSION = 1  # to be raised when the pixels that preprocess.geometry gives change


def geometry_key(preprocess: Preprocess) -> str:
    """What the geometry half of a Preprocess does, for the names of stored pixels; or what is done to recordings."""
    geometry = {key: getattr(preprocess, key) for key in GEOMETRY}
    return f"{GEOMETRY_VERSION} {json.dumps(geometry if preprocess.sound is None else preprocess.sound.to_json())}"


def read_targets(listing: Listing, rows: NDArray[np.int64], preprocess: Preprocess, cache: Path | None) -> NDArray[Any]:
    """The targets of these rows, by their form:

    classes     int64 [N], -1 where there is none; so too where the data have no targets
    identities  int64 [N] or [N, 1 + k]
    masks       int16 [N, H, W]: the class of each pixel, -1 unknown
    boxes       float32 [N, k, 6]
    tags        int8 [N, class_names]
    numbers     float32 [N, k]
    pictures    as their reader has them

    `cache` is a folder for masks and pictures; they come back as a memory map and are decoded once.
    """
    masks, pictures = listing.masks, listing.pictures
    if listing.boxes is not None:
        return box_files.box_targets([listing.boxes[row] for row in rows], preprocess)
    reader: Any = masks or pictures
    if reader is None:
        given = (listing.values, listing.identities, listing.labels)
        return next(targets for targets in given if targets is not None)[rows]
    shape, dtype = (len(rows), *reader.shape(preprocess)), np.int16 if pictures is None else pictures.dtype()
    if cache is not None:
        what = "masks" if pictures is None else f"targets {list(shape)}"
        lines = [f"{what} {geometry_key(preprocess)}", *(reader.contents[row] for row in rows)]
        key = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        path = Path(cache) / f"pixels-{key[:32]}.npy"
        return stored_array(path, shape, dtype, lambda: reader.read(rows, preprocess))
    found, start = np.empty(shape, dtype), 0
    for chunk in reader.read(rows, preprocess):
        found[start : start + len(chunk)] = chunk
        start += len(chunk)
    return found


def check_outputs(listing: Listing, outputs: TensorSpec, preprocess: Preprocess) -> None:
    """Raises UserError where a network with these outputs can't give what the targets are."""
    values, pictures, shape = listing.values, listing.pictures, outputs.shape[1:]
    count = math.prod(size or 1 for size in shape)
    if listing.form == "numbers" and values is not None and count != values.shape[1]:
        mend = "" if values.shape[1] > 1 else "; where they are numbers of classes, give them as whole numbers"
        raise UserError(
            f"The data have {counted(values.shape[1], 'number')} a sample, and the network gives"
            f" {' x '.join(map(str, shape)) or 1}{mend}"
        )
    if pictures is None:
        return
    height, width, channels = pictures.shape(preprocess)
    if pictures.dtype() is not np.uint8:
        height, width, channels = width, channels, height
    if shape != (channels, height, width):
        raise UserError(
            f"The target pictures become {[channels, height, width]} (channels, height, width) beside the network's"
            f" input, and the network gives {list(shape)}: they need one size"
        )
