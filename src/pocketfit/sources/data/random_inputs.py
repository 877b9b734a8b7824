"""Random images, where a file must be run and there are no data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec

PATCHES = (2, 4, 8, 16, 32)  # sides, in numbers of patches: as in photographs, most of the change is coarse


def noise(inputs: Sequence[TensorSpec], preprocess: Preprocess, count: int, seed: int = 0) -> Samples:
    """`count` images of patches of random colours, coarse ones over fine ones; normal numbers for other inputs, 0 and 1
    for whole numbers.

    Their size is the input's; `preprocess` only turns pixels into values.

    >>> noise([TensorSpec("x", (None, 3, 32, 48), layout="NCHW")], Preprocess(), 2).array.shape
    (2, 32, 48, 3)
    """
    rng, spec = np.random.default_rng(seed), inputs[0]
    if not spec.layout:
        array = _numbers(rng, spec, count)
    else:
        _, first, second, third = spec.with_batch(count)
        height, width, channels = (second, third, first) if spec.layout == "NCHW" else (first, second, third)
        values = np.zeros((count, height, width, channels))
        for patches in PATCHES:
            rows, columns = (np.arange(side) * patches // side for side in (height, width))
            values += rng.standard_normal((count, patches, patches, channels))[:, rows][:, :, columns]
        array = np.clip(127.5 + 40 * values, 0, 255).astype(np.uint8)
    return Samples(
        array=array,
        more={further.name: _numbers(rng, further, count) for further in inputs[1:]},
        labels=np.full(count, -1),
        names=[f"noise {row}" for row in range(count)],
        split="calibration",
        sha256=hashlib.sha256(f"noise {count} {seed} {array.shape}".encode()).hexdigest(),
        preprocess=preprocess,
    )


def _numbers(rng: np.random.Generator, spec: TensorSpec, count: int) -> NDArray[Any]:
    shape = spec.with_batch(count)
    if spec.dtype.startswith("float"):
        return rng.standard_normal(shape).astype(spec.dtype)
    return rng.integers(0, 2, shape).astype(spec.dtype)
