"""A re-iterable source of inputs with targets, a split name and a content hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.preprocess import Preprocess

Rows = Sequence[int] | slice | NDArray[np.int64]
SPLITS = ("train", "calibration", "search", "verdict")
SPLIT_WORDS = {"train": "training", "search": "validation", "verdict": "test"}  # the field's words, for sentences


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Images after the geometry half of `preprocess`, features of recordings, or ready tensors.

    array   uint8 [N, H, W, C] (geometry done, values not), or float32 or whole numbers [N, ...] that are fed as they
            are (features, token ids); may be a memory map. The network's first input
    more    its further inputs by name, [N, ...], in the network's order, fed as they are; {}: it has one
    labels  int64 [N], the class, -1 where there is none; or [N, ...], a target of another form (tasks/)
    names   where each sample came from, for messages and reports
    sha256  hash of the content hashes and targets of all samples, in order
    texts   the text of each sample, "" where there is none; (): the data have no texts
    kinds   the kind of each sample, by which reports group them; (): the data name none
    """

    array: NDArray[np.generic]
    labels: NDArray[Any]
    names: Sequence[str]
    split: str
    sha256: str
    preprocess: Preprocess
    class_names: tuple[str, ...] = ()
    texts: Sequence[str] = ()
    kinds: Sequence[str] = ()
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def are_pictures(self) -> bool:
        """Whether the network has one input, and that is an image, which may be shifted a little."""
        return not self.more and self.array.ndim == 4

    def feeds(self, rows: Rows, layout: str = "NCHW") -> tuple[NDArray[Any], ...]:
        """The tensors of these rows, one for each input of the network, in its order; `layout`: of the first."""
        return (self.inputs(rows, layout), *(np.asarray(array[rows]) for array in self.more.values()))

    def by_name(self, names: Sequence[str]) -> list[NDArray[Any]]:
        """All rows of each of these inputs of a file: those of `more` under their names, `array` for the one that is
        left; in their own order where the names are not a network's."""
        arrays = [self.more.get(name, self.array) for name in names]
        if len(names) != 1 + len(self.more) or len(set(map(id, arrays))) != len(arrays):
            return [self.array, *self.more.values()]
        return arrays

    def inputs(self, rows: Rows, layout: str = "NCHW") -> NDArray[np.float32]:
        """The first tensor of these rows; see `values_of`."""
        return self.values_of(self.array, rows, layout)

    def values_of(self, array: NDArray[Any], rows: Rows, layout: str = "NCHW") -> NDArray[np.float32]:
        """These rows of an input: uint8 [n, H, W, C] -> float32 [n, C, H, W] ("NCHW") or [n, H, W, C] ("NHWC"). Whole
        numbers that are no images stay what they are."""
        chosen: NDArray[Any] = np.asarray(array[rows])
        if chosen.dtype != np.uint8:
            # torch takes no views of a file that may only be read
            kept = chosen.dtype if chosen.dtype.kind in "iub" else np.float32
            return chosen.astype(kept, copy=not chosen.flags.writeable)
        values = pixels_to_values(chosen, self.preprocess)
        if layout != "NCHW":
            return values
        count, height, width, channels = values.shape
        if channels == 1:  # after a transpose, torch would take one channel for a channels-last layout
            return values.reshape(count, 1, height, width)
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2))

    def batches(self, batch_size: int, layout: str = "NCHW") -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
        """All rows in order, `batch_size` at a time; the last batch may be shorter."""
        for start in range(0, len(self), batch_size):
            rows = slice(start, start + batch_size)
            yield self.inputs(rows, layout), self.labels[rows]

    def first(self, count: int) -> Samples:
        """The first rows, without a copy of them."""
        return self._part(slice(None, count))

    def behind(self, count: int) -> Samples:
        """All but the first rows, without a copy of them."""
        return self._part(slice(count, None))

    def _part(self, rows: slice) -> Samples:
        return replace(
            self,
            array=self.array[rows],
            more={name: array[rows] for name, array in self.more.items()},
            labels=self.labels[rows],
            names=self.names[rows],
            texts=self.texts[rows],
            kinds=self.kinds[rows],
            sha256=f"{self.sha256}[{rows.start or 0}:{'' if rows.stop is None else rows.stop}]",
        )

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Samples:
        """Some of the rows, in the given order; the hash is that of this part."""
        index = np.asarray(rows, dtype=np.int64)
        part = f"{self.sha256}[{len(index)}:{hashlib.sha256(index.tobytes()).hexdigest()[:16]}]"
        return replace(
            self,
            array=self.array[index],
            more={name: array[index] for name, array in self.more.items()},
            labels=self.labels[index],
            names=[self.names[i] for i in index],
            texts=[self.texts[i] for i in index] if len(self.texts) else (),
            kinds=[self.kinds[i] for i in index] if len(self.kinds) else (),
            sha256=part,
        )


def pixels_to_values(pixels: NDArray[np.generic], preprocess: Preprocess) -> NDArray[np.float32]:
    """The values half of a Preprocess: uint8 [..., C] -> float32 [..., C], (pixel * scale - mean) / std.

    >>> pixels_to_values(np.full((1, 1, 1, 3), 255, np.uint8), Preprocess(mean=(.5,) * 3, std=(.5,) * 3)).ravel()
    array([1., 1., 1.], dtype=float32)
    """
    gain = (preprocess.scale / np.asarray(preprocess.std, np.float64)).astype(np.float32)
    offset = (-np.asarray(preprocess.mean, np.float64) / np.asarray(preprocess.std, np.float64)).astype(np.float32)
    return pixels.astype(np.float32) * gain + offset


def split_words(split: str) -> str:
    """The field's word for a split, for sentences that users read.

    >>> [split_words(split) for split in SPLITS]
    ['training', 'calibration', 'validation', 'test']
    """
    return SPLIT_WORDS.get(split, split)


def value_range(preprocess: Preprocess) -> tuple[float, float]:
    """The lowest and the highest value that an image can become.

    >>> value_range(Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3))
    (-1.0, 1.0)
    """
    ends = np.array([[0] * len(preprocess.mean), [255] * len(preprocess.mean)], np.uint8)
    values = pixels_to_values(ends, preprocess)
    return float(values.min()), float(values.max())
