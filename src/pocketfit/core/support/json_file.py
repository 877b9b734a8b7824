"""Read a JSON file as plain values, within limits: size, depth, no NaN, no infinity, no key twice."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from pathlib import Path
from typing import Any

from pocketfit.core.errors import UserError
from pocketfit.core.support.rules import shown

MOST_BYTES = 10 * 2**20
MOST_DEPTH = 48  # of lists and objects in each other


def load(path: Path, what: str, mend: str = "", *, most_bytes: int = MOST_BYTES) -> Any:
    """The plain values of a JSON file. Raises UserError naming the file: missing, too large, no JSON, too deep."""
    return parse(read_bytes(path, what, most_bytes), str(path), mend)


def read_bytes(path: Path, what: str, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of a file of this kind ("plan", "preprocessing"). Raises UserError naming it."""
    try:
        if not path.is_file():
            there = "is no file" if path.exists() else "does not exist"
            raise UserError(f"The {what} file {path} {there}")
        if path.stat().st_size > most_bytes:
            raise UserError(f"The {what} file {path} is too large to be one: it has {path.stat().st_size / 1e6:.0f} MB")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"The {what} file {path} can't be read: {error.strerror or error}") from error


def text_of(raw: bytes, source: str, mend: str = "") -> str:
    """UTF-8 with or without a byte order mark. Raises UserError naming the source."""
    if raw.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{source} is a text in UTF-16 or UTF-32: save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is no text in UTF-8 (byte {error.start}){f'; {mend}' if mend else ''}") from error


def parse(raw: bytes, source: str, mend: str = "") -> Any:
    """Plain values from JSON as RFC 8259 has it: no NaN, no key twice. Raises UserError: the source, why, and `mend`.

    >>> parse(b'{"a": [1, 2.5]}', "x.json")
    {'a': [1, 2.5]}
    """
    behind = f"; {mend}" if mend else ""
    try:
        return json.loads(text_of(raw, source, mend), parse_constant=_refused, object_pairs_hook=_object)
    except RecursionError as error:
        raise UserError(f"{source} is nested too deep to be read: at most {MOST_DEPTH} levels are{behind}") from error
    except ValueError as error:  # also an integer of thousands of digits
        raise UserError(f"{source} is no JSON: {str(error).splitlines()[0]}{behind}") from error


def _refused(word: str) -> Any:
    raise ValueError(f"{word} is no number in JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key in counts if counts[key] > 1)
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return found
