"""Arrays under the names of a network's inputs, and whether these take them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.signature import TensorSpec


def inputs_of(arrays: Mapping[str, Any]) -> list[str]:
    """The names of the inputs in their order, without the part: x where it is one, then others; several without x. One
    other name alone is none that counts."""
    names = dict.fromkeys(re.sub(r"_(train|val|test)$", "", name) for name in arrays if name != "class_names")
    inputs = [name for name in names if name != "y"]
    if "x" in inputs:
        return ["x", *(name for name in inputs if name != "x")]
    return inputs if len(inputs) > 1 else []


def further(
    name: str,
    suffixes: list[str],
    arrays: Mapping[str, NDArray[Any]],
    counts: list[int],
    as_floats: Callable[[str, NDArray[Any]], NDArray[Any]],
) -> NDArray[Any]:
    """A further input of all parts, [N, ...]: float32, int32, int64 or bool."""
    blocks: list[NDArray[Any]] = []
    for suffix, count in zip(suffixes, counts, strict=True):
        found = arrays[f"{name}{suffix}"]
        if not found.ndim or len(found) != count or not found.size:
            raise UserError(
                f"{name}{suffix} is {list(found.shape)}, and the first input has {count:,} rows: give a row each"
            )
        if found.dtype.kind == "f":
            found = as_floats(f"{name}{suffix}", found if found.ndim > 1 else found[:, None])
        elif found.dtype.kind in "iub" and found.dtype != np.uint8:
            found = whole(found)
        else:
            raise UserError(f"{name}{suffix} is {found.dtype}; further inputs are float32, or whole numbers (int64)")
        if blocks and (found.shape[1:] != blocks[0].shape[1:] or found.dtype != blocks[0].dtype):
            raise UserError(
                f"{name}{suffix} has rows of another shape or dtype than the part before: all need the same"
            )
        blocks.append(found)
    return np.concatenate(blocks)


def whole(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.dtype in (np.int32, np.int64, np.bool_) else values.astype(np.int64)


Kind = Literal["recordings", "several", ""]


def check_input(spec: TensorSpec, row: tuple[int, ...], dtype: type[np.generic], name: str, kind: Kind) -> None:
    """Raises UserError where an input can't take rows of this shape and dtype; images are uint8 [H, W, C].

    kind  whether the rows are features of recordings, or the data have several arrays
    """
    own, pictures = spec.shape[1:], dtype is np.uint8
    wanted = (own[2], *own[:2]) if spec.layout == "NHWC" and len(own) == 3 else own
    takes = f"the network takes {list(wanted)} a sample" + (f" for '{spec.name}'" if kind == "several" else "")
    if np.dtype(spec.dtype).kind in "iu" and np.dtype(dtype).kind == "f":
        raise UserError(
            f"The data's '{name or 'x'}' are {np.dtype(dtype)}, and the network's input '{spec.name}' takes whole"
            f" numbers ({spec.dtype}), such as token ids: give these"
        )
    if pictures and not _same((row[2], *row[:2]), wanted):
        raise UserError(
            f"The data are images, which the preprocessing makes {[row[2], *row[:2]]} (channels, height, width),"
            f" and {takes}: make the two agree (--preprocess, --input-shape), or give float arrays of its shape"
        )
    if kind == "recordings" and not _same(row, wanted):
        raise UserError(
            f"The preprocessing makes {list(row)} of a recording, and {takes}: make the two agree (--preprocess,"
            " --input-shape)"
        )
    if not pictures and not _same(row, wanted) and not _same(row, own):
        arrays = "float arrays" if np.dtype(dtype).kind == "f" else "whole numbers"
        raise UserError(f"The data's {arrays} have {list(row)} a sample, and {takes}: {_mend(row, wanted)}")


def _same(shape: Sequence[int | None], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(b is None or a == b for a, b in zip(shape, wanted, strict=True))


def _mend(row: tuple[int, ...], wanted: Sequence[int | None]) -> str:
    """What to do so that arrays of one row shape fit another, for the end of a sentence."""
    for order in permutations(range(len(row))) if len(row) == 3 else ():
        if _same([row[axis] for axis in order], wanted):
            return f"turn them with x.transpose(0, {', '.join(str(axis + 1) for axis in order)})"
    if _same((1, *row), wanted):
        return "add the channel with x[:, None]"
    if _same(row, (1, *wanted)) or _same(row, (*wanted, 1)):
        return f"drop the side of 1 with x.reshape({', '.join(map(str, (-1, *wanted)))})"
    if len(row) == len(wanted) == 3:
        return "give arrays of that size, or say with --input-shape what the network shall take"
    return "give arrays of that shape"
