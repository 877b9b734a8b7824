"""What a user says about the input of a network: preprocess, labels, shape; each from an object, a file or a word."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Colour, Filter, Preprocess, ResizeRule
from pocketfit.core.text import comparable, decoded

MAX_TEXT_BYTES = 10**7
MAX_SIDE = 16_384  # pixels
MAX_VALUES = 2**26  # of one sample: more would be seconds and gigabytes for a single answer


def read_input_shape(given: Sequence[int] | str) -> tuple[int, ...]:
    """The shape of one sample.

    >>> read_input_shape("3x224x224"), read_input_shape("1,28,28"), read_input_shape((40,))
    ((3, 224, 224), (1, 28, 28), (40,))
    """
    parts = re.split(r"[x,× ]+", given.strip()) if isinstance(given, str) else [str(size) for size in given]
    if not parts or not all(re.fullmatch(r"[1-9]\d{0,6}", part) for part in parts):
        raise UserError(
            f"The input shape '{given}' cannot be read: write channels, height and width, such as 3x224x224"
        )
    shape = tuple(int(part) for part in parts)
    if math.prod(shape) > MAX_VALUES:
        raise UserError(
            f"The input shape '{given}' has {math.prod(shape):,} values, more than {MAX_VALUES:,}, the limit"
        )
    return shape


def read_labels(given: Sequence[str] | str | Path) -> tuple[str, ...]:
    """Names in the order of the outputs; a file has one a line, or is a JSON list."""
    if not isinstance(given, str | Path):
        return tuple(str(label) for label in given)
    path = Path(given)
    text = _read_text(path, "labels")
    if path.suffix == ".json":
        names = _parse_json(text, path)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f'{path} holds no list of names: write ["first", "second", …] or one name a line')
        found = tuple(map(comparable, names))
    else:
        found = tuple(comparable(line) for line in text.splitlines() if line.strip())
    if not found:
        raise UserError(f"{path} holds no label: write one name a line, in the order of the network's outputs")
    return found


def read_preprocess(
    given: Preprocess | str | Path | None, shape: tuple[int, ...] | None
) -> tuple[Preprocess, tuple[str, ...]]:
    """The contract at the size of `shape`, and sentences about what was assumed because nothing was given."""
    findings: tuple[str, ...] = ()
    if isinstance(given, Preprocess):
        contract = given
    elif given is None and shape is not None and len(shape) == 3 and shape[0] == 1:
        contract = Preprocess(colour="GRAY", mean=(0.5,), std=(0.5,))
        findings = (
            "No preprocessing was given: grey pictures scaled to -1..1 are assumed; say otherwise with --preprocess.",
        )
    elif given is None:
        contract = Preprocess()
        findings = ("No preprocessing was given: that of ImageNet is assumed; say otherwise with --preprocess.",)
    elif str(given) == "imagenet":
        contract = Preprocess()
    else:
        contract = _from_file(Path(given))
    if shape is None or len(shape) != 3:
        return contract, findings if shape is None else ()
    channels, height, width = shape
    if channels != contract.channels:
        raise UserError(
            f"The input has {channels} channels, but the preprocessing makes {contract.channels} ({contract.colour}): "
            "make --input-shape and --preprocess agree"
        )
    return (contract if (height, width) == (contract.height, contract.width) else contract.at(height, width)), findings


def check_preprocess(data: Any, path: Path) -> Preprocess:
    """A Preprocess from parsed JSON. Raises UserError naming the file and the key."""
    known = {field.name for field in fields(Preprocess)}
    if not isinstance(data, dict) or (unknown := sorted(set(data) - known)):
        what = f"the unknown key '{unknown[0]}'" if isinstance(data, dict) else f"a {type(data).__name__}"
        raise UserError(f"{path} is no preprocessing: it holds {what}; the keys are {', '.join(sorted(known))}")
    for key, allowed in (("resize", get_args(ResizeRule)), ("filter", get_args(Filter)), ("colour", get_args(Colour))):
        if key in data and data[key] not in allowed:
            raise UserError(f"'{key}' in {path} is {data[key]!r}: use one of {', '.join(allowed)}")
    for key in ("height", "width", "resize_px"):
        if key in data and not (type(data[key]) is int and 0 < data[key] <= MAX_SIDE):
            raise UserError(f"'{key}' in {path} is {data[key]!r}: give a number of pixels from 1 to {MAX_SIDE}")
    contract = Preprocess.from_json(data)
    if contract.height * contract.width * contract.channels > MAX_VALUES:
        raise UserError(f"{path} makes pictures of {contract.height} x {contract.width} pixels: that is too large")
    colours = (("mean", contract.mean), ("std", contract.std))
    for key, values in colours:
        if not isinstance(values, tuple) or len(values) != contract.channels or not all(map(_is_number, values)):
            raise UserError(f"'{key}' in {path} must hold {contract.channels} numbers, one for each channel")
    if not _is_number(contract.scale) or contract.scale == 0 or 0 in contract.std:
        raise UserError(f"'scale' and 'std' in {path} must be numbers other than 0")
    return contract


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _from_file(path: Path) -> Preprocess:
    return check_preprocess(_parse_json(_read_text(path, "preprocessing"), path), path)


def _read_text(path: Path, what: str) -> str:
    if not path.is_file():
        raise UserError(f"There is no file {path} to read the {what} from")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise UserError(f"{path} is too large to be {what}")
    try:
        return decoded(path.read_bytes(), path, what)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _parse_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from error
