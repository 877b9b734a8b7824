"""The user's description of a network's input: preprocess, labels, shape; each from an object, a file or a word."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import LETTERBOX, LOG_MEL, MFCC, TEXT_LINE, WAVEFORM, Preprocess
from pocketfit.core.signature import TensorSpec
from pocketfit.core.support.json_file import load, parse, read_bytes, text_of
from pocketfit.core.support.schema import checked
from pocketfit.core.support.text import comparable

NAMED = {
    "imagenet": Preprocess(),
    "text-line": TEXT_LINE,
    "letterbox": LETTERBOX,
    "log-mel": LOG_MEL,
    "mfcc": MFCC,
    "waveform": WAVEFORM,
}
Inputs = str | Sequence[int] | Mapping[str, str | Sequence[int]]
INPUT_DTYPES = ("float32", "int64", "int32", "bool")
MAX_VALUES = 2**26  # of one sample: more would take seconds and gigabytes for a single run


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


def read_inputs(given: Inputs) -> tuple[TensorSpec, ...]:
    """The inputs that a user describes; one without a name is "", and whole numbers say so.

    >>> [(i.name, i.shape, i.dtype) for i in read_inputs("ids=64:int64, mask=64:int64")]
    [('ids', (None, 64), 'int64'), ('mask', (None, 64), 'int64')]
    >>> read_inputs({"image": (3, 8, 8)})[0].layout, read_inputs("40:int32")[0].name
    ('NCHW', 'input')
    """
    if isinstance(given, str):
        parts = [part.strip() for part in re.split(r"[;,]\s*(?=[^=;,]+=)", given)]
        named = [tuple(part.split("=", 1)) if "=" in part else ("", part) for part in parts]
    elif isinstance(given, Mapping):
        named = list(given.items())
    else:
        named = [("", given)]
    found = []
    for given_name, described in named:
        shape, _, dtype = described.partition(":") if isinstance(described, str) else (described, "", "")
        if dtype not in ("", *INPUT_DTYPES):
            raise UserError(f"The input '{given_name}' is said to be {dtype}: networks take {', '.join(INPUT_DTYPES)}")
        sizes, dtype = read_input_shape(shape), dtype or "float32"
        picture = len(sizes) == 3 and dtype == "float32"
        name = str(given_name).strip() or ("image" if picture else "input")
        if not re.fullmatch(r"[^\s=;,]{1,200}", name):
            raise UserError(f"'{name}' is no name of an input: write name=shape, such as facts=5")
        found.append(TensorSpec(name, (None, *sizes), dtype, "NCHW" if picture else ""))
    if len({spec.name for spec in found}) < len(found):
        raise UserError(f"The input shape '{given}' names an input twice: give each its own name")
    return tuple(found)


def read_labels(given: Sequence[str] | str | Path) -> tuple[str, ...]:
    """Names in the order of the outputs; a file has one a line, or is a JSON list."""
    if not isinstance(given, str | Path):
        return tuple(str(label) for label in given)
    path = Path(given)
    raw = read_bytes(path, "labels")
    if path.suffix == ".json":
        mend = 'write ["first", "second", …] or one name a line'
        names = checked(tuple[str, ...], parse(raw, str(path)), str(path), mend)
    else:
        names = [line for line in text_of(raw, str(path)).splitlines() if line.strip()]
    if not names:
        raise UserError(f"{path} holds no label: write one name a line, in the order of the network's outputs")
    return tuple(map(comparable, names))


def read_preprocess(
    given: Preprocess | str | Path | None, shape: tuple[int, ...] | None
) -> tuple[Preprocess, tuple[str, ...]]:
    """(the Preprocess at the size of `shape`, sentences about what was assumed because nothing was given)."""
    findings: tuple[str, ...] = ()
    if isinstance(given, Preprocess):
        given.check()
        contract = given
    elif given is None and shape is not None and len(shape) == 3 and shape[0] == 1:
        contract = Preprocess(colour="GRAY", mean=(0.5,), std=(0.5,))
        findings = (
            "No preprocessing was given: grey images scaled to -1..1 are assumed; say otherwise with --preprocess.",
        )
    elif given is None:
        contract = Preprocess()
        findings = ("No preprocessing was given: that of ImageNet is assumed; say otherwise with --preprocess.",)
    elif str(given) in NAMED:
        contract = NAMED[str(given)]
    else:
        contract = _from_file(Path(given))
    if contract.sound is not None:
        if shape is not None and tuple(shape) != contract.shape:
            raise UserError(
                f"The network takes {list(shape)} a sample, and the preprocessing makes {list(contract.shape)} of a"
                " recording: make --input-shape and --preprocess agree"
            )
        return contract, findings
    if shape is None or len(shape) != 3:
        return contract, findings if shape is None else ()
    channels, height, width = shape
    if channels != contract.channels:
        raise UserError(
            f"The input has {channels} channels, but the preprocessing makes {contract.channels} ({contract.colour}): "
            "make --input-shape and --preprocess agree"
        )
    return (contract if (height, width) == (contract.height, contract.width) else contract.at(height, width)), findings


def check_preprocess(data: Any, source: str | Path) -> Preprocess:
    """A Preprocess from parsed JSON. Raises UserError naming the file and the key."""
    contract: Preprocess = checked(Preprocess, data, str(source))
    if math.prod(contract.shape) > MAX_VALUES:
        raise UserError(f"{source} makes images of {contract.height} x {contract.width} pixels: that is too large")
    return contract


def _from_file(path: Path) -> Preprocess:
    return check_preprocess(load(path, "preprocessing"), path)
