"""What the y of arrays means, by its shape and its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.task.task import Form
from pocketfit.sources.data.manifest_rows import MOST


def form_of(targets: Sequence[NDArray[Any]], *, named: bool) -> Form:
    """The form of the y of all parts; `named`: whether class_names are given. What nothing else is, is "classes".

    >>> form_of([np.array([0.5, 2.0])], named=False), form_of([np.array([[0, 1], [1, 1]])], named=False)
    ('numbers', 'tags')
    """
    if all(y.ndim == 1 and y.dtype.kind in "US" for y in targets) and not named:
        return "texts"
    if all(y.ndim == 3 and y.dtype.kind in "biu" for y in targets):
        return "masks"
    if all(y.ndim == 4 and y.dtype.kind in "uf" for y in targets):
        return "pictures"
    if all(y.dtype.kind == "f" and y.ndim in (1, 2, 3) for y in targets):
        return "numbers"
    return "tags" if all(_are_tags(y) for y in targets) else "classes"


def numbers(keys: Sequence[str], targets: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """float32 [N, k] of the floats [n, ...] of each part. Raises UserError, which names the row."""
    values = []
    for key, y in zip(keys, targets, strict=True):
        if not y.size or y.shape[1:] != targets[0].shape[1:]:
            raise UserError(f"{key} has the shape {list(y.shape)}: every row needs one or more numbers, all as many")
        flat = y.reshape(len(y), -1)
        fits = (np.abs(flat) < MOST).all(axis=1)  # NaN is below nothing
        if not fits.all():
            raise UserError(f"{key}[{int(np.argmin(fits))}] holds NaN, or a number too large to train on: leave it out")
        values.append(flat.astype(np.float32))
    return np.concatenate(values)


def _are_tags(y: NDArray[Any]) -> bool:
    """Whether this is a column for each tag; rows with exactly one 1 each are classes."""
    if y.ndim != 2 or y.dtype.kind not in "biu" or y.shape[1] < 2 or not y.size:
        return False
    return bool(np.isin(y, (-1, 0, 1)).all()) and not bool((y.sum(axis=1) == 1).all())


def tags(targets: Sequence[NDArray[Any]]) -> NDArray[np.int8]:
    return np.concatenate(targets).astype(np.int8)


def tag_names(names: Sequence[str], keys: Sequence[str], targets: Sequence[NDArray[Any]]) -> tuple[str, ...]:
    """A name for each column; their numbers where none are given. Raises UserError."""
    count = targets[0].shape[1]
    for key, y in zip(keys, targets, strict=True):
        if y.shape[1] != count:
            raise UserError(f"{key} has {y.shape[1]} columns, and {keys[0]} has {count}: one for each tag")
    if len(names) not in (0, count):
        raise UserError(f"class_names has {len(names)} names, and y has {count} columns: one for each tag")
    return tuple(names) or tuple(map(str, range(count)))
