"""Lines as a recogniser of PP-OCR takes them, and its outputs as texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.ocr.lines import MANIFEST
from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import TEXT_LINE
from pocketfit.sources.image_preprocess import to_tensor

HEIGHT, WIDTH = TEXT_LINE.height, TEXT_LINE.width


@dataclass(frozen=True)
class LabelledLines:
    """Lines of one split.

    values  float32 [n, 3, 48, 320], BGR, as pocketfit prepares lines for PP-OCR (TEXT_LINE)
    texts, kinds, fonts  one a line
    """

    values: NDArray[np.float32]
    texts: tuple[str, ...]
    kinds: tuple[str, ...]
    fonts: tuple[str, ...]


def read(folder: Path, split: str, limit: int | None = None) -> LabelledLines:
    """The lines of a folder that `benchmarks.ocr.lines` wrote, in the order of its manifest.

    limit  takes the first lines only (6,000 of them are 1.1 GB of float32)
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise UserError(f"'{manifest}' is not there: python -m benchmarks.ocr.lines -o {folder}")
    entries = [json.loads(one) for one in manifest.read_text(encoding="utf-8").splitlines()]
    chosen = [entry for entry in entries if entry["split"] == split][:limit]
    values = np.empty((len(chosen), 3, HEIGHT, WIDTH), np.float32)
    for row, entry in enumerate(chosen):
        values[row] = to_tensor(folder / entry["path"], TEXT_LINE)[0]
    return LabelledLines(
        values,
        tuple(entry["text"] for entry in chosen),
        tuple(entry["kind"] for entry in chosen),
        tuple(Path(entry["path"]).parent.name for entry in chosen),
    )


def greedy(outputs: NDArray[np.float32], charset: Sequence[str]) -> list[str]:
    """CTC outputs [n, steps, classes] -> texts: the best class of each step, repetitions once, blanks (0) left out.

    >>> greedy(np.eye(3, dtype=np.float32)[None, [1, 1, 0, 1, 2]], ["a", "b"])
    ['aab']
    """
    best = outputs.argmax(-1)
    kept = best != 0
    kept[:, 1:] &= best[:, 1:] != best[:, :-1]
    return ["".join(charset[c - 1] for c in row[keep]) for row, keep in zip(best, kept, strict=True)]
