"""Arrays in memory, in an .npz file, or (x alone) in an .npy file -> Listing.

    x [, y]                                     one part
    x_train [, y_train] [, x_val, y_val] [, x_test, y_test]
    class_names                                 optional, strings

A network with several inputs has an array for each, named after it (image, facts and y; or image_train, facts_train,
y_train, …); one of them may be called x.

x: uint8 [N, H, W], [N, H, W, 1], [N, H, W, 3] (RGB) or [N, H, W, 4] (RGB and alpha), or float tensors [N, ...] or
whole numbers [N, n] (token ids), ready to be fed. y: whole numbers [N] from 0 (classes), whole numbers [N, H, W]
(masks), strings [N] (texts), 0 and 1 [N, K] (tags, with their class_names), floats [N], [N, k] or [N, a, b] (numbers),
or pictures, uint8 [N, H, W, C] or float [N, C, H, W]. Without y in all parts, the samples have no labels.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.text import STRANGE, comparable, readable, some
from pocketfit.sources.data.listing import NO_LABEL, Listing, Part, counted
from pocketfit.sources.data.targets import masks
from pocketfit.sources.data.targets.array_targets import form_of, numbers, tag_names, tags
from pocketfit.sources.data.targets.target_pictures import TargetArrays, times_of
from pocketfit.sources.image_preprocess import geometry, recolour
from pocketfit.sources.named_inputs import further, inputs_of, whole

PARTS: dict[str, Part] = {"": "train", "_train": "train", "_val": "val", "_test": "test"}
KEYS = "x and y, or x_train, y_train and optionally x_val, y_val, x_test, y_test, class_names; or x without y"
MAX_BYTES = 2**34  # of an .npz after decompression
PICKLED = (
    "{} holds pickled Python objects, which could run any code when read: save plain arrays, x as uint8 and y as whole"
    " numbers"
)
ROWS_PER_CHUNK = 256
# Labels may leave classes out (ImageNet's thousand in a few hundred rows), but product numbers are no classes. Without
# class_names, more classes than this are refused where they are also more than so many times the different labels.
MOST_UNSEEN, CLASSES_PER_LABEL = 1000, 10
TEXTS_PER_CLASS = 4  # rows for each different text: with more, texts are probably names of classes


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
        if self.row_dtype() is not np.uint8:
            return self.blocks[0].shape[1:]
        return preprocess.height, preprocess.width, preprocess.channels

    def row_dtype(self) -> type[np.generic]:
        return self.blocks[0].dtype.type


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
            raise UserError(PICKLED.format(path)) from error
        raise UserError(f"{path} holds an array that cannot be read ({error}): save it again") from error
    if other := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise UserError(f"{path} holds something else than arrays ({some(other)}): save it again with numpy.savez")
    try:
        return from_mapping(arrays)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_npy(path: Path) -> Listing:
    """The array of an .npy file as x, without labels; nothing in it is unpickled. Raises UserError."""
    try:
        size_bytes = path.stat().st_size
        _check_size(path, size_bytes)
        with path.open("rb") as file:
            _check_header(file, path.name, size_bytes)
            file.seek(0)
            x = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, MemoryError, EOFError) as error:
        if "allow_pickle" in str(error) or "pickled" in str(error):
            raise UserError(PICKLED.format(path)) from error
        raise UserError(f"{path} is no whole .npy file ({error}): save it again with numpy.save") from error
    try:
        return from_mapping({"x": x})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _check_sizes(path: Path) -> None:
    """Refuse, before anything is allocated, more than MAX_BYTES, and an array whose header says more than it holds."""
    with zipfile.ZipFile(path) as archive:
        _check_size(path, sum(info.file_size for info in archive.infolist()))
        for info in archive.infolist():
            with archive.open(info) as file:
                if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
                    continue  # no array: said later
            with archive.open(info) as file:
                _check_header(file, info.filename, info.file_size)


def _check_size(path: Path, size_bytes: int) -> None:
    if size_bytes > MAX_BYTES:
        raise UserError(f"{path} holds {size_bytes / 1e9:.0f} GB, more than {MAX_BYTES / 1e9:.0f} GB, the limit")


def _check_header(file: IO[bytes], name: str, size_bytes: int) -> None:
    """Raises ValueError where the header of an .npy file speaks of more than the file holds."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > size_bytes:
        raise ValueError(f"{name} says that it is {dtype} {list(shape)} and has {size_bytes:,} B")


def from_mapping(arrays: Mapping[str, NDArray[Any]]) -> Listing:
    """A listing of the arrays, under the names that an .npz file has them under. Raises UserError."""
    inputs = inputs_of(arrays)
    suffixes = [suffix for suffix in PARTS if all(f"{name}{suffix}" in arrays for name in inputs)] if inputs else []
    known = {f"{name}{suffix}" for suffix in suffixes for name in (*inputs, "y")} | {"class_names"}
    unknown = [name for name in arrays if name not in known]
    missing = [f"y{suffix}" for suffix in suffixes if f"y{suffix}" not in arrays]
    some_missing = bool(missing) and len(missing) < len(suffixes)
    if unknown or some_missing or ("" in suffixes) == ("_train" in suffixes):
        held = f"the arrays {some(list(arrays), 8)}" if arrays else "no arrays"
        raise UserError(f"it holds {held}; expected are {KEYS}")
    blocks: list[NDArray[Any]] = []
    targets: list[NDArray[Any]] = []
    names: list[str] = []
    parts: list[Part] = []
    for suffix in suffixes:
        x = _pictures(f"{inputs[0]}{suffix}", arrays[f"{inputs[0]}{suffix}"])
        if not missing:
            y = arrays[f"y{suffix}"]
            if y.ndim and len(x) != len(y):
                raise UserError(
                    f"{inputs[0]}{suffix} has {len(x):,} rows and y{suffix} has {len(y):,}: each needs one of the other"
                )
            targets.append(y)
        if blocks and (x.shape[1:] != blocks[0].shape[1:] or x.dtype != blocks[0].dtype):
            raise UserError(
                f"x{suffix} has rows of {x.dtype} {list(x.shape[1:])}, the part before of {blocks[0].dtype}"
                f" {list(blocks[0].shape[1:])}: all parts need the same"
            )
        blocks.append(x)
        names += [f"{inputs[0]}{suffix}[{row}]" for row in range(len(x))]
        parts += [PARTS[suffix]] * len(x)
    more = {name: further(name, suffixes, arrays, list(map(len, blocks)), _pictures) for name in inputs[1:]}
    contents = [content for block in blocks for content in _contents(block)]
    for array in more.values():
        contents = [_hash_of(pair) for pair in zip(contents, _contents(array), strict=True)]
    listing = Listing(
        class_names=(),
        names=names,
        contents=contents,
        given="" if inputs[0] == "x" else inputs[0],
        more=more,
        labels=np.full(len(names), NO_LABEL, np.int64),
        parts=parts,
        reader=Arrays(tuple(blocks)),
    )
    return _with_targets(listing, blocks, suffixes, targets, arrays.get("class_names"))


def _hash_of(parts: tuple[str, ...]) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _with_targets(
    listing: Listing,
    blocks: list[NDArray[Any]],
    suffixes: list[str],
    targets: list[NDArray[Any]],
    class_names: NDArray[Any] | None,
) -> Listing:
    """The listing with the y of each part, in the form that they have."""
    if not targets:
        unused = () if class_names is None else ("class_names is ignored: no y says which class a row has",)
        return replace(listing, findings=unused)
    keys = [f"y{suffix}" for suffix in suffixes]
    form = form_of(targets, named=class_names is not None)
    if form == "texts":
        texts = [text for key, y in zip(keys, targets, strict=True) for text in _texts(key, y)]
        return replace(listing, texts=texts, findings=_about_texts(texts))
    if form == "numbers":
        return replace(listing, values=numbers(keys, targets))
    if form == "tags":
        names = () if class_names is None else _names(class_names)
        return replace(listing, class_names=tag_names(names, keys, targets), values=tags(targets))
    if form in ("masks", "pictures"):
        return (_with_masks if form == "masks" else _with_pictures)(listing, blocks, keys, targets)
    labels = [_labels(key, y) for key, y in zip(keys, targets, strict=True)]
    return replace(
        listing, class_names=_class_names(class_names, suffixes, labels), labels=np.concatenate(labels).astype(np.int64)
    )


def _texts(key: str, y: NDArray[Any]) -> Iterator[str]:
    for row, value in enumerate(y):
        try:
            text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError as error:
            raise UserError(f"{key}[{row}] is no text in UTF-8: save {key} as an array of str") from error
        if not text or STRANGE.search(text):
            what = "empty" if not text else f"{text!r}, which holds a character that no line has"
            raise UserError(f"{key}[{row}] is {what}: leave such rows out")
        yield text


def _about_texts(texts: list[str]) -> tuple[str, ...]:
    """A sentence where texts seem to be the names of classes."""
    different = len(set(texts))
    if different * TEXTS_PER_CLASS > len(texts):
        return ()
    return (
        f"y holds {counted(len(texts), 'text')}, only {different:,} of them different. Where they name classes, make"
        " numbers of them: class_names, y = numpy.unique(y, return_inverse=True), and keep both.",
    )


def _with_masks(listing: Listing, blocks: list[NDArray[Any]], keys: list[str], targets: list[NDArray[Any]]) -> Listing:
    made = []
    resized = blocks[0].dtype == np.uint8
    for key, x, y in zip(keys, blocks, targets, strict=True):
        if (resized and y.shape[1:] != x.shape[1:3]) or y.shape[1:] != targets[0].shape[1:]:
            other = x.shape[1:3] if resized else targets[0].shape[1:]
            raise UserError(
                f"{key} has masks of {list(y.shape[1:])}, and the images are {list(other)}: they need the same"
            )
        if not y.size:
            raise UserError(f"{key} has the shape {list(y.shape)}: its rows are empty, every side needs one or more")
        lowest, highest = int(y.min()), int(y.max())
        if lowest < NO_LABEL or highest > masks.UNKNOWN:
            wrong = lowest if lowest < NO_LABEL else highest
            raise UserError(
                f"{key} holds {wrong}: classes are numbered from 0 to {masks.UNKNOWN - 1}, and {masks.UNKNOWN} or -1 is"
                " where none is known"
            )
        made.append(np.where(y == NO_LABEL, masks.UNKNOWN, y).astype(np.uint8) if lowest < 0 else y.astype(np.uint8))
    values = np.logical_or.reduce([masks.values_of(mask) for block in made for mask in block])
    highest, white_is_one = masks.what_they_mean(values)
    contents = masks.identities((content for block in made for content in _contents(block)), white_is_one)
    reader = masks.MaskArrays(tuple(made), contents, highest, white_is_one, resized)
    return replace(listing, masks=reader, findings=(masks.WHITE_IS_ONE,) if white_is_one else ())


def _with_pictures(
    listing: Listing, blocks: list[NDArray[Any]], keys: list[str], targets: list[NDArray[Any]]
) -> Listing:
    made = [_pictures(key, y) for key, y in zip(keys, targets, strict=True)]
    contents = [content for block in made for content in _contents(block)]
    return replace(listing, pictures=TargetArrays(tuple(made), contents, times_of(keys, blocks, made)))


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
    if x.dtype.kind in "iu" and x.ndim == 2:
        return whole(x)
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
            mend += "; texts need no class_names"
        elif y.ndim == 2:
            mend = f": {name}.argmax(1) makes them of one column a class; tags are 0 and 1, floats are numbers"
        raise UserError(f"{name} is {y.dtype} {list(y.shape)}; expected are whole numbers [N], one class a row{mend}")
    if len(flat) and int(flat.max()) > np.iinfo(np.int64).max:
        raise UserError(f"{name} holds {int(flat.max())}: number the classes from 0")
    return flat.astype(np.int64)


def _names(given: NDArray[Any]) -> tuple[str, ...]:
    if given.ndim != 1 or given.dtype.kind not in "US":
        raise UserError(f"class_names is {given.dtype} {list(given.shape)}; expected is a list of strings")
    names = tuple(_text(name) for name in given)
    if "" in names:
        raise UserError(f"class_names[{names.index('')}] is empty: every class needs a name")
    if len(set(names)) != len(names):
        raise UserError("class_names holds a name twice: every class needs its own")
    return names


def _class_names(given: NDArray[Any] | None, suffixes: list[str], labels: list[NDArray[np.int64]]) -> tuple[str, ...]:
    names = () if given is None else _names(given)
    classes = 1 + max(int(y.max()) for y in labels) if given is None else len(names)
    for suffix, y in zip(suffixes, labels, strict=True):
        wrong = (y < 0) | (y >= classes)
        if wrong.any():
            row = int(np.argmax(wrong))
            number = counted(max(classes, 1), "class", "classes")
            raise UserError(f"y{suffix}[{row}] is {y[row]}; labels of {number} go from 0 to {max(classes, 1) - 1}")
    if given is None:
        _check_number(classes, suffixes, labels)
        return tuple(str(n) for n in range(classes))
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
