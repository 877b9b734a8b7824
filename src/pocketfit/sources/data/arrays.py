"""Arrays in memory or in an .npz file -> Listing.

    x, y                                        one part
    x_train, y_train [, x_val, y_val] [, x_test, y_test]
    class_names                                 optional, strings

x: uint8 [N, H, W], [N, H, W, 1], [N, H, W, 3] (RGB) or [N, H, W, 4] (RGB and alpha), or float tensors [N, ...], ready
to be fed. y: whole numbers [N] from 0.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.text import comparable, readable, some
from pocketfit.sources.data.listing import Listing, Part, counted
from pocketfit.sources.image_preprocess import geometry, recolour

PARTS: dict[str, Part] = {"": "train", "_train": "train", "_val": "val", "_test": "test"}
KEYS = "x and y, or x_train, y_train and optionally x_val, y_val, x_test, y_test, class_names"
MAX_BYTES = 2**34  # of an .npz after decompression
ROWS_PER_CHUNK = 256
# Labels may leave classes out (ImageNet's thousand in a few hundred rows), but product numbers are no classes. Without
# class_names, more classes than this are refused where they are also more than so many times the different labels.
MOST_UNSEEN, CLASSES_PER_LABEL = 1000, 10


@dataclass(frozen=True)
class Arrays:
    """Reader of arrays of one row shape: uint8 [n, h, w, C] or float32 [n, ...] each, counted through."""

    blocks: tuple[NDArray[np.generic], ...]

    def read(self, rows: NDArray[np.int64], preprocess: Preprocess) -> Iterator[NDArray[np.generic]]:
        for start in range(0, len(rows), ROWS_PER_CHUNK):
            chunk = self._take(rows[start : start + ROWS_PER_CHUNK])
            yield _shaped(chunk, preprocess) if chunk.dtype == np.uint8 else chunk

    def _take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        taken = np.empty((len(rows), *self.blocks[0].shape[1:]), self.blocks[0].dtype)
        first = 0
        for block in self.blocks:
            here = (rows >= first) & (rows < first + len(block))
            taken[here] = block[rows[here] - first]
            first += len(block)
        return taken

    def row_shape(self, preprocess: Preprocess) -> tuple[int, ...]:
        if self.row_dtype() is np.float32:
            return self.blocks[0].shape[1:]
        return preprocess.height, preprocess.width, preprocess.channels

    def row_dtype(self) -> type[np.uint8] | type[np.float32]:
        return np.uint8 if self.blocks[0].dtype == np.uint8 else np.float32


def _shaped(pixels: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    if pixels.shape[-1] == 1 and len(set(preprocess.background)) == 1:
        # Grey stays grey in every step, so one channel instead of three is resized.
        return recolour(geometry(pixels, replace(preprocess, colour="GRAY")), preprocess)
    return geometry(recolour(pixels, preprocess), preprocess)


def read_npz(path: Path) -> Listing:
    """The arrays of an .npz file; nothing in it is unpickled. Raises UserError."""
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is no whole .npz file ({error}): save it again with numpy.savez") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, MemoryError) as error:
        if "allow_pickle" in str(error) or "pickled" in str(error):
            raise UserError(
                f"{path} holds pickled Python objects, which could run any code when read: save plain arrays, x as"
                " uint8 and y as whole numbers"
            ) from error
        raise UserError(f"{path} holds an array that cannot be read ({error}): save it again") from error
    if other := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise UserError(f"{path} holds something else than arrays ({some(other)}): save it again with numpy.savez")
    try:
        return from_mapping(arrays)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _check_sizes(path: Path) -> None:
    """Refuse, before anything is allocated, more than MAX_BYTES, and an array whose header says more than it holds."""
    with zipfile.ZipFile(path) as archive:
        size_bytes = sum(info.file_size for info in archive.infolist())
        if size_bytes > MAX_BYTES:
            raise UserError(f"{path} holds {size_bytes / 1e9:.0f} GB, more than {MAX_BYTES / 1e9:.0f} GB, the limit")
        for info in archive.infolist():
            with archive.open(info) as file:
                if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
                    continue  # no array: said later
            with archive.open(info) as file:
                version = np.lib.format.read_magic(file)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = header(file)
            if not dtype.hasobject and math.prod(shape) * dtype.itemsize > info.file_size:
                raise ValueError(f"{info.filename} says that it is {dtype} {list(shape)} and has {info.file_size:,} B")


def from_mapping(arrays: Mapping[str, NDArray[Any]]) -> Listing:
    """A listing of the arrays, under the names that an .npz file has them under. Raises UserError."""
    suffixes = [suffix for suffix in PARTS if f"x{suffix}" in arrays]
    known = {f"{letter}{suffix}" for suffix in suffixes for letter in "xy"} | {"class_names"}
    unknown = [name for name in arrays if name not in known]
    missing = [f"y{suffix}" for suffix in suffixes if f"y{suffix}" not in arrays]
    if unknown or missing or ("" in suffixes) == ("_train" in suffixes):
        held = f"the arrays {some(list(arrays), 8)}" if arrays else "no arrays"
        raise UserError(f"it holds {held}; expected are {KEYS}")
    blocks: list[NDArray[Any]] = []
    labels: list[NDArray[np.int64]] = []
    names: list[str] = []
    parts: list[Part] = []
    for suffix in suffixes:
        x, y = _pictures(f"x{suffix}", arrays[f"x{suffix}"]), _labels(f"y{suffix}", arrays[f"y{suffix}"])
        if len(x) != len(y):
            raise UserError(f"x{suffix} has {len(x):,} rows and y{suffix} has {len(y):,}: each needs one of the other")
        if blocks and (x.shape[1:] != blocks[0].shape[1:] or x.dtype != blocks[0].dtype):
            raise UserError(
                f"x{suffix} has rows of {x.dtype} {list(x.shape[1:])}, the part before of {blocks[0].dtype}"
                f" {list(blocks[0].shape[1:])}: all parts need the same"
            )
        blocks.append(x)
        labels.append(y)
        names += [f"x{suffix}[{row}]" for row in range(len(x))]
        parts += [PARTS[suffix]] * len(x)
    class_names = _class_names(arrays.get("class_names"), suffixes, labels)
    return Listing(
        class_names=class_names,
        names=names,
        contents=[content for block in blocks for content in _contents(block)],
        labels=np.concatenate(labels),
        parts=parts,
        reader=Arrays(tuple(blocks)),
    )


def _contents(block: NDArray[np.generic]) -> Iterator[str]:
    start = hashlib.sha256(f"{block.dtype.str}{list(block.shape[1:])}".encode())
    for row in block:
        digest = start.copy()
        digest.update(np.ascontiguousarray(row).data)
        yield digest.hexdigest()


def _pictures(name: str, x: NDArray[Any]) -> NDArray[Any]:
    """uint8 [N, h, w, C], or float32 [N, ...]."""
    if not len(x.shape) or not len(x):
        raise UserError(f"{name} holds no rows")
    if not x.size:
        raise UserError(f"{name} has the shape {list(x.shape)}: its rows are empty, every side needs one or more")
    if x.dtype == np.uint8 and x.ndim == 3:
        return x[..., np.newaxis]
    if x.dtype == np.uint8 and x.ndim == 4 and x.shape[-1] in (1, 3, 4):
        return x
    if x.dtype == np.uint8:
        turned = x.ndim == 4 and x.shape[1] in (1, 3, 4)
        mend = f"turn it with {name}.transpose(0, 2, 3, 1)" if turned else "channels are 1, 3 or 4"
        raise UserError(f"{name} has the shape {list(x.shape)}; images are [N, H, W] or [N, H, W, channels]: {mend}")
    if not np.issubdtype(x.dtype, np.floating) or x.ndim < 2:
        raise UserError(f"{name} is {x.dtype} {list(x.shape)}; expected is uint8 [N, H, W, C] or float32 [N, ...]")
    with np.errstate(over="ignore"):  # numbers too large for float32 become infinite, and are refused
        values = x.astype(np.float32, copy=False)
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if not finite.all():
        raise UserError(f"{name}[{int(np.argmin(finite))}] holds NaN or infinite numbers: leave such rows out")
    return values


def _labels(name: str, y: NDArray[Any]) -> NDArray[np.int64]:
    flat = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if flat.ndim != 1 or not np.issubdtype(flat.dtype, np.integer):
        mend = ""
        if flat.ndim == 1 and flat.dtype.kind in "US":
            mend = f": make them with class_names, {name} = numpy.unique({name}, return_inverse=True), and keep both"
        elif y.ndim == 2:
            mend = f": {name}.argmax(1) makes them of one column a class"
        raise UserError(f"{name} is {y.dtype} {list(y.shape)}; expected are whole numbers [N], one class a row{mend}")
    if len(flat) and int(flat.max()) > np.iinfo(np.int64).max:
        raise UserError(f"{name} holds {int(flat.max())}: number the classes from 0")
    return flat.astype(np.int64)


def _class_names(given: NDArray[Any] | None, suffixes: list[str], labels: list[NDArray[np.int64]]) -> tuple[str, ...]:
    if given is not None and (given.ndim != 1 or given.dtype.kind not in "US"):
        raise UserError(f"class_names is {given.dtype} {list(given.shape)}; expected is a list of strings")
    classes = 1 + max(int(y.max()) for y in labels) if given is None else len(given)
    for suffix, y in zip(suffixes, labels, strict=True):
        wrong = (y < 0) | (y >= classes)
        if wrong.any():
            row = int(np.argmax(wrong))
            number = counted(max(classes, 1), "class", "classes")
            raise UserError(f"y{suffix}[{row}] is {y[row]}; labels of {number} go from 0 to {max(classes, 1) - 1}")
    if given is None:
        _check_number(classes, suffixes, labels)
        return tuple(str(n) for n in range(classes))
    names = tuple(_text(name) for name in given)
    if "" in names:
        raise UserError(f"class_names[{names.index('')}] is empty: every class needs a name")
    if len(set(names)) != len(names):
        raise UserError("class_names holds a name twice: every class needs its own")
    return names


def _check_number(classes: int, suffixes: list[str], labels: list[NDArray[np.int64]]) -> None:
    """Refuse labels that are no class numbers, before anything is made for each class."""
    if classes <= MOST_UNSEEN:
        return
    rows, seen = sum(map(len, labels)), len(np.unique(np.concatenate(labels)))
    if classes > CLASSES_PER_LABEL * seen:
        part = max(range(len(labels)), key=lambda part: int(labels[part].max()))
        row = int(np.argmax(labels[part]))
        raise UserError(
            f"y{suffixes[part]}[{row}] is {int(labels[part][row])}: that would be {classes:,} classes, and the {rows:,}"
            f" rows have {seen:,} different labels; number the classes from 0 without gaps (numpy.unique(y,"
            " return_inverse=True) does), or add class_names"
        )


def _text(name: str | bytes) -> str:
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)
    return comparable(readable(text))
