"""Random images, where a file must be run and there are no data."""

from __future__ import annotations

import hashlib

import numpy as np

from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec

PATCHES = (2, 4, 8, 16, 32)  # sides, in numbers of patches: as in photographs, most of the change is coarse


def noise(spec: TensorSpec, preprocess: Preprocess, count: int, seed: int = 0) -> Samples:
    """`count` images of patches of random colours, coarse ones over fine ones; normal numbers for other inputs.

    Their size is the input's; `preprocess` only turns pixels into values.

    >>> noise(TensorSpec("x", (None, 3, 32, 48), layout="NCHW"), Preprocess(), 2).array.shape
    (2, 32, 48, 3)
    """
    rng = np.random.default_rng(seed)
    if not spec.layout:
        array = rng.standard_normal(spec.with_batch(count)).astype(np.float32)
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
        labels=np.full(count, -1),
        names=[f"noise {row}" for row in range(count)],
        split="calibration",
        sha256=hashlib.sha256(f"noise {count} {seed} {array.shape}".encode()).hexdigest(),
        preprocess=preprocess,
    )
