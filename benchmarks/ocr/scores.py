"""What two files answer on the same lines or pages, and how far apart they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.ocr.lines import MANIFEST
from benchmarks.ocr.recogniser import LabelledLines, greedy
from pocketfit import runtimes
from pocketfit.core.errors import UserError
from pocketfit.core.runtime import Session, answer
from pocketfit.numerics.latency_intervals import mean_interval, paired_drop
from pocketfit.tasks.text import edit_distance

Floats = NDArray[np.float64]
MASK_ABOVE = 0.3  # DBNet's threshold of probabilities, as PP-OCR has it
DRAWS = 2000
# PaddleOCR normalizes pages with ImageNet's numbers, and applies them to B, G, R in this order.
PAGE_MEAN, PAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def texts_of(file: Path, lines: LabelledLines, charset: Sequence[str], *, threads: int, kept: Path) -> list[str]:
    """What a file reads, line by line at batch 1. Answers are kept in the folder `kept`, by the hashes of the file and
    of the inputs."""
    key = hashlib.sha256(file.read_bytes() + lines.values.tobytes()).hexdigest()[:24]
    path = kept / f"texts-{key}.json"
    if path.is_file():
        found: list[str] = json.loads(path.read_text(encoding="utf-8"))
        return found
    session = runtimes.for_file(file).load(file, threads=threads)
    steps = outputs_of(session, lines.values)
    found = [greedy(one, charset)[0] for one in steps]
    session.close()
    path.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    return found


def outputs_of(session: Session, values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """The first output for each row of NCHW values; files that take NHWC get that."""
    shape = session.signature.inputs[0].shape
    channels_last = len(shape) == 4 and shape[3] == values.shape[1] and shape[1] != values.shape[1]
    for row in values:
        given = row.transpose(1, 2, 0) if channels_last else row
        yield answer(session, np.ascontiguousarray(given[None]))


def compared_texts(lines: LabelledLines, original: Sequence[str], candidate: Sequence[str]) -> dict[str, Any]:
    """Exact match and CER of both, their paired differences with 95 % intervals, by kind and by font too.

    exact         shares with intervals; `drop` in points, positive where the candidate reads worse
    cer           edits over characters of all lines; `rise` in points with the interval of a bootstrap over lines
    same_text     share of lines on which both read the same
    """
    groups = {"all": np.ones(len(lines.texts), bool)}
    for names in (lines.kinds, lines.fonts):
        groups |= {name: np.array([each == name for each in names]) for name in sorted(set(names))}
    right = [
        np.array([a == b for a, b in zip(lines.texts, said, strict=True)], float) for said in (original, candidate)
    ]
    edits = [
        np.array([edit_distance(a, b) for a, b in zip(lines.texts, said, strict=True)], float)
        for said in (original, candidate)
    ]
    lengths = np.array([len(text) for text in lines.texts], float)
    same = np.array([a == b for a, b in zip(original, candidate, strict=True)], float)
    return {
        name: {
            "n": int(rows.sum()),
            "exact": {
                "original": _interval(right[0][rows]),
                "candidate": _interval(right[1][rows]),
                "drop": vars(paired_drop(right[0][rows], right[1][rows])),
            },
            "cer": cer(edits[0][rows], edits[1][rows], lengths[rows]),
            "same_text": _interval(same[rows]),
        }
        for name, rows in groups.items()
    }


def cer(original: Floats, candidate: Floats, lengths: Floats) -> dict[str, float]:
    """Edits [n] of two files over the lines' lengths [n]: both CERs, and the rise in points with its 95 % interval.

    >>> cer(np.array([0.0, 1.0]), np.array([1.0, 1.0]), np.array([10.0, 10.0]))["rise"]
    5.0
    """
    total = lengths.sum()
    picked = np.random.default_rng(0).integers(0, len(lengths), (DRAWS, len(lengths)))
    draws = 100 * (candidate - original)[picked].sum(1) / lengths[picked].sum(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {
        "original": float(original.sum() / total),
        "candidate": float(candidate.sum() / total),
        "rise": float(100 * (candidate - original).sum() / total),
        "low": float(low),
        "high": float(high),
    }


def pages_in(folder: Path, limit: int | None) -> list[Path]:
    """The pictures of a folder, by name."""
    found = sorted(path for path in folder.iterdir() if path.suffix == ".jpg") if folder.is_dir() else []
    if not found:
        raise UserError(f"'{folder}' holds no pages: python -m benchmarks.ocr.pages -o {folder} --split test")
    return found[:limit]


def page_input(path: Path) -> NDArray[np.float32]:
    """A page -> float32 [3, H, W], B, G, R."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), np.float32)[..., ::-1]
    values = (pixels / 255 - np.asarray(PAGE_MEAN, np.float32)) / np.asarray(PAGE_STD, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)


def compared_masks(files: tuple[Path, Path], pages: Sequence[Path], *, threads: int) -> dict[str, Any]:
    """IoU of the candidate's text mask with the original's: the mean over pages with its interval, and that of all
    pixels together. `text` is the share of pixels that the original marks."""
    sessions = [runtimes.for_file(file).load(file, threads=threads) for file in files]
    both, either, marked, pixels = [], [], 0, 0
    for path in pages:
        values = page_input(path)[None]
        one, other = (next(outputs_of(session, values)).reshape(-1) > MASK_ABOVE for session in sessions)
        both.append(int((one & other).sum()))
        either.append(int((one | other).sum()))
        marked, pixels = marked + int(one.sum()), pixels + one.size
    for session in sessions:
        session.close()
    each = [inter / union if union else 1.0 for inter, union in zip(both, either, strict=True)]
    return {
        "n": len(pages),
        "iou": _interval(np.array(each)),
        "iou_pixels": sum(both) / max(1, sum(either)),
        "lowest": min(each),
        "text": marked / pixels,
    }


def manifest_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def _interval(values: Floats) -> dict[str, float]:
    found = mean_interval(values)
    return {"value": found.value, "low": found.low, "high": found.high}
