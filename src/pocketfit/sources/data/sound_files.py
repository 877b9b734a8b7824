"""Files of recordings (.wav): each is read once and checked, and read again when its features are wanted."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.cpus import usable
from pocketfit.sources.sound_preprocess import MOST_BYTES, BadSound, read_wave, to_tensor

SUFFIXES = {".wav"}
ROWS_PER_CHUNK = 128


@dataclass(frozen=True)
class Recordings:
    """Reader of .wav files: `paths` are relative to `root`."""

    root: Path
    paths: tuple[str, ...]

    def read(self, rows: NDArray[np.int64], preprocess: Preprocess) -> Iterator[NDArray[np.float32]]:
        def recording(row: int) -> NDArray[np.float32]:
            try:
                made: NDArray[np.float32] = to_tensor(self.root / self.paths[row], preprocess.sound)[0]
            except BadSound as error:
                raise UserError(f"{error}; leave it out, or mend it") from error
            return made

        with ThreadPoolExecutor(usable()) as pool:
            for start in range(0, len(rows), ROWS_PER_CHUNK):
                yield np.stack(list(pool.map(recording, rows[start : start + ROWS_PER_CHUNK].tolist())))

    def row_shape(self, preprocess: Preprocess) -> tuple[int, ...]:
        return preprocess.shape

    def row_dtype(self) -> type[np.float32]:
        return np.float32


def check_recording(path: Path, size_bytes: int) -> tuple[str, str]:
    """The content hash of a file and why it is no whole recording ("": it is one)."""
    if size_bytes > MOST_BYTES:
        return "", f"it has {size_bytes / 1e6:.0f} MB, more than the {MOST_BYTES / 1e6:.0f} MB that are read"
    if size_bytes == 0:
        return "", "it is empty"
    try:
        data = path.read_bytes()
        read_wave(io.BytesIO(data))
    except OSError as error:
        return "", error.strerror or str(error)
    except BadSound as error:
        return "", str(error)
    return hashlib.sha256(data).hexdigest(), ""
