"""Files of known type out of this machine's Python and system, as magika's network takes them.

A label is what a file's suffix says, for suffixes that stand for one type. Contents are different; no more than `most`
files a type. What the suffix says is not always right (a .txt may hold reStructuredText), so accuracies are lower than
those that magika's authors state, and only differences between two files of the network count.
"""

from __future__ import annotations

import json
import os
import site
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPES = {
    **{"py": "python", "pyc": "pythonbytecode", "so": "elf", "png": "png", "svg": "svg", "html": "html", "css": "css"},
    **{"js": "javascript", "c": "c", "cpp": "cpp", "hpp": "cpp", "json": "json", "xml": "xml", "md": "markdown"},
    **{"rst": "rst", "sh": "shell", "pl": "perl", "pm": "perl", "toml": "toml", "yaml": "yaml", "yml": "yaml"},
    **{"txt": "txt", "gz": "gzip", "zip": "zip", "ttf": "ttf", "npy": "npy", "npz": "npz", "onnx": "onnx"},
    **{"sql": "sql", "ini": "ini", "gif": "gif", "jpg": "jpeg", "csv": "csv", "cmake": "cmake", "f90": "fortran"},
    **{"cu": "cpp", "wav": "wav", "o": "elf", "jar": "jar", "pem": "pem", "tcl": "tcl", "el": "lisp", "m4": "m4"},
}
LEAST_BYTES, MOST_BYTES = 64, 5_000_000  # of a file
EDGE, BLOCK, PADDING = 1024, 4096, 256  # magika's config.min.json: beg_size, block_size, padding_token


def numbers(content: bytes) -> NDArray[np.int32]:
    """[2048]: the first and the last 1024 bytes, without white space around them, padded with 256."""
    begin, end = content[:BLOCK].lstrip()[:EDGE], content[-BLOCK:].rstrip()[-EDGE:]
    found = np.full(2 * EDGE, PADDING, np.int32)
    found[: len(begin)] = np.frombuffer(begin, np.uint8)
    found[2 * EDGE - len(end) :] = np.frombuffer(end, np.uint8)
    return found


def places() -> list[Path]:
    """The folders of Python and of the system."""
    found = [*site.getsitepackages(), sysconfig.get_path("stdlib"), sys.base_prefix, "/usr", "/etc"]
    return [Path(place) for place in dict.fromkeys(found) if Path(place).is_dir()]


def collect(
    labels: Sequence[str], most: int = 60, seed: int = 0, roots: Sequence[Path] = ()
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """(x int32 [n, 2048], y [n]: indices into labels)."""
    by_type: dict[str, list[str]] = {}
    for root in roots or places():
        for folder, _, names in os.walk(root):
            for name in names:
                kind = TYPES.get(name.rpartition(".")[2].lower(), "") if "." in name else ""
                if kind in labels:
                    by_type.setdefault(kind, []).append(os.path.join(folder, name))  # noqa: PTH118 (a million files)
    rng, x, y = np.random.default_rng(seed), [], []
    for kind, paths in sorted(by_type.items()):
        seen: set[bytes] = set()
        for path in rng.permutation(sorted(set(paths))):
            if len(seen) == most:
                break
            content = _content(Path(path))
            taken = numbers(content)
            if content and taken.tobytes() not in seen:
                seen.add(taken.tobytes())
                x.append(taken)
                y.append(labels.index(kind))
    return np.stack(x), np.array(y)


def _content(path: Path) -> bytes:
    """The file's bytes; nothing of one that is too small, too large or not readable."""
    try:
        return path.read_bytes() if LEAST_BYTES <= path.stat().st_size <= MOST_BYTES else b""
    except OSError:
        return b""


def labels_of(config: Path) -> list[str]:
    """The names of the network's 214 outputs, out of magika's config.min.json."""
    names: list[str] = json.loads(config.read_text())["target_labels_space"]
    return names
