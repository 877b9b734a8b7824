"""Samples as a file takes them, and as files for a child process that runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec


def array_file(samples: Samples, folder: Path) -> Path:
    """An .npy file of the samples' array: the one behind its memory map where that is all of it, else a copy."""
    array = samples.array
    if isinstance(array, np.memmap):
        name = str(array.filename)
        if name.endswith(".npy") and Path(name).is_file():  # the cache may have made room for newer arrays
            stored = np.load(name, mmap_mode="r", allow_pickle=False)
            same = (stored.shape, stored.dtype, stored.strides) == (array.shape, array.dtype, array.strides)
            if same and isinstance(stored, np.memmap) and stored.offset == array.offset:
                return Path(name)
    path = folder / "samples.npy"
    np.save(path, np.asarray(array), allow_pickle=False)
    return path


def stored(samples: Samples, folder: Path) -> dict[str, Any]:
    """What a child process needs to read the samples back, without their targets: arrays are .npy files in `folder`."""
    more = {}
    for number, (name, array) in enumerate(samples.more.items()):
        more[name] = str(folder / f"more-{number}.npy")
        np.save(more[name], np.asarray(array), allow_pickle=False)
    preprocess = json.dumps(samples.preprocess.to_json())
    return {"array": str(array_file(samples, folder)), "more": more, "preprocess": preprocess}


def read_back(given: Mapping[str, Any]) -> Samples:
    """The samples of `stored`, all without a label."""

    def mapped(path: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return array

    first = mapped(given["array"])
    return Samples(
        array=first,
        more={name: mapped(path) for name, path in given["more"].items()},
        labels=np.full(len(first), -1, np.int64),
        names=[],
        split="",
        sha256="",
        preprocess=Preprocess.from_json(json.loads(given["preprocess"])),
    )


def fed(samples: Samples, rows: slice, inputs: Sequence[TensorSpec]) -> tuple[NDArray[Any], ...]:
    """These rows as the file takes them, for each of its inputs."""
    arrays = samples.by_name([spec.name for spec in inputs])
    if len(arrays) != len(inputs):
        raise UserError(f"The file takes {len(inputs)} inputs, and the samples are for {len(arrays)}")
    return tuple(_fed(samples, array, rows, spec) for spec, array in zip(inputs, arrays, strict=True))


def _fed(samples: Samples, array: NDArray[Any], rows: slice, spec: TensorSpec) -> NDArray[Any]:
    """These rows of an input: images in its layout, or in the layout that fits where the file states none; ready
    tensors [n, C, H, W] are transposed to it if they fit, whole numbers brought to the width that it takes."""
    wanted = tuple(spec.shape[1:])
    for layout in (spec.layout,) if spec.layout else ("NCHW", "NHWC"):
        values: NDArray[Any] = samples.values_of(array, rows, layout)
        if values.shape[1:] == wanted:
            return values.astype(spec.dtype, copy=False) if values.dtype.kind in "iub" else values
    if values.ndim == 4:
        for order in ((0, 2, 3, 1), (0, 3, 1, 2)):
            if tuple(values.shape[axis] for axis in order[1:]) == wanted and array.dtype != np.uint8:
                return np.ascontiguousarray(values.transpose(order))
    raise UserError(
        f"The file takes inputs of shape {list(wanted)} ({spec.layout or 'no image'}), the samples are"
        f" {list(values.shape[1:])}: prepare them with the preprocess that the network expects"
    )
