"""Files of images (and of recordings, sound_files.py): each is read once and checked, and read again when its pixels
are wanted.

Its content is hashed and checked for being a whole image. Decoding happens in threads, because hashlib, Pillow's
decoders and numpy's products let go of the interpreter lock.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.array_file import FileHashes
from pocketfit.core.support.cpus import usable
from pocketfit.core.support.progress import Tick
from pocketfit.core.support.text import some
from pocketfit.sources.data import sound_files
from pocketfit.sources.data.listing import Reader, counted
from pocketfit.sources.image_preprocess import BadPicture, decode, geometry, open_picture

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
SUFFIXES = PICTURES | sound_files.SUFFIXES
MAX_FILE_BYTES = 2**28
ROWS_PER_CHUNK = 128


@dataclass(frozen=True)
class Pictures:
    """Reader of image files: `paths` are relative to `root`."""

    root: Path
    paths: tuple[str, ...]

    def read(self, rows: NDArray[np.int64], preprocess: Preprocess) -> Iterator[NDArray[np.uint8]]:
        def picture(row: int) -> NDArray[np.uint8]:
            path = self.root / self.paths[row]
            try:
                return geometry(decode(path, preprocess), preprocess)
            except BadPicture as error:
                raise UserError(f"{error}; it could be read when the data was opened: start again") from error

        with ThreadPoolExecutor(usable()) as pool:
            for start in range(0, len(rows), ROWS_PER_CHUNK):
                yield np.stack(list(pool.map(picture, rows[start : start + ROWS_PER_CHUNK].tolist())))

    def row_shape(self, preprocess: Preprocess) -> tuple[int, ...]:
        return preprocess.height, preprocess.width, preprocess.channels

    def row_dtype(self) -> type[np.uint8]:
        return np.uint8


def is_sound(path: str) -> bool:
    return path[path.rfind(".") :].lower() in sound_files.SUFFIXES


def reader_of(root: Path, paths: Sequence[str]) -> Reader:
    """The reader of these files. Raises UserError where some are images and some recordings."""
    sounds = [path for path in paths if is_sound(path)]
    if sounds and len(sounds) < len(paths):
        other = next(path for path in paths if not is_sound(path))
        raise UserError(f"{root} holds images and recordings ({other}, {sounds[0]}): give a network one kind of them")
    return sound_files.Recordings(root, tuple(paths)) if sounds else Pictures(root, tuple(paths))


def word_for(paths: Iterable[str]) -> str:
    """What these files are called in sentences."""
    return "recording" if (found := list(paths)) and all(map(is_sound, found)) else "image"


def checked(
    root: Path, paths: list[str], hashes: FileHashes, progress: Tick | None
) -> dict[str, tuple[os.stat_result, str, str]]:
    """For each path its stat, its content hash, and why it cannot be used ("": it can)."""

    def check(path: str) -> tuple[os.stat_result, str, str]:
        stat = (root / path).stat()
        check_one = sound_files.check_recording if is_sound(path) else check_picture
        return stat, *(hashes.get(path, stat) or check_one(root / path, stat.st_size))

    found: dict[str, tuple[os.stat_result, str, str]] = {}
    with ThreadPoolExecutor(usable()) as pool:
        for path, result in zip(paths, pool.map(check, paths), strict=True):
            found[path] = result
            if progress is not None:
                progress(len(found), len(paths))
    hashes.save(found)
    return found


def check_picture(path: Path, size_bytes: int) -> tuple[str, str]:
    """The content hash of a file and why it is no whole image ("": it is one)."""
    if size_bytes > MAX_FILE_BYTES:
        return "", f"it has {size_bytes / 1e6:.0f} MB, more than the {MAX_FILE_BYTES / 1e6:.0f} MB that are read"
    if size_bytes == 0:
        return "", "it is empty"
    try:
        data = path.read_bytes()
        with open_picture(io.BytesIO(data)) as image:
            # JPEG only: an eighth of the size in grey. The whole file is read, at a fraction of the time.
            image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except Exception as error:  # damaged files make Pillow's decoders raise nearly every built-in exception
        return "", str(error) or type(error).__name__
    return hashlib.sha256(data).hexdigest(), ""


def about_broken(broken: dict[str, str], total: int) -> Iterator[str]:
    if broken:
        number = counted(len(broken), word_for(path.partition(" (")[0] for path in broken))
        verb = "is" if len(broken) == 1 else "are"
        yield (
            f"{number} of {total:,} cannot be read and {verb} left out: "
            + some([f"{path} ({why})" for path, why in broken.items()])
        )
