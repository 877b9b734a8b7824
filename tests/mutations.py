"""Files as accidents and strangers change them: values of the wrong kind and size, keys gone or new, bytes lost."""

from __future__ import annotations

import copy
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketfit.core.errors import UserError

NESTED = "nested " * 3  # stands for a value that is nested too deep, which json.dumps could not write
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    0.5,
    -0.5,
    1e-300,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    10**9,
    10**12,
    10**19,
    10**400,
    "",
    " ",
    "x",
    "../../x",
    "/etc/passwd",
    "os:system",
    "\0",
    "\ud800",
    "\u202e",
    "n\u0430me",
    "<script>",
    "line\nline",
    "x" * 5000,
    [],
    {},
    [None],
    [[1, 2], [3]],
    {"a": 1},
    NESTED,
)


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value inside."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(items):
        yield data, key
        yield from places(value)


def changed(data: Any, rng: random.Random) -> Any:
    """A copy with one to three things changed."""
    made = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        known = list(places(made))
        if not known:
            return rng.choice(ODD)
        container, key = rng.choice(known)
        rng.choice(CHANGES)(container, key, rng)
    return made


def _replace(container: Any, key: Any, rng: random.Random) -> None:
    container[key] = copy.deepcopy(rng.choice(ODD))


def _scale(container: Any, key: Any, rng: random.Random) -> None:
    value = container[key]
    if isinstance(value, int | float) and not isinstance(value, bool):
        container[key] = value * rng.choice((-1, 0, 2, 1000, 1e-9, 1e12)) + rng.choice((0, 1, -1))
    elif isinstance(value, str):
        container[key] = value[: len(value) // 2] if rng.random() < 0.5 else value + rng.choice(("x", "é", "\0", " "))
    else:
        _replace(container, key, rng)


def _remove(container: Any, key: Any, rng: random.Random) -> None:
    del container[key]


def _swap(container: Any, key: Any, rng: random.Random) -> None:
    other = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
    container[key], container[other] = container[other], container[key]


def _again(container: Any, key: Any, rng: random.Random) -> None:
    if isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), copy.deepcopy(container[key]))
    else:
        container[rng.choice(("x", "", "kind", f"{key}_", "\0", "\ud800"))] = copy.deepcopy(container[key])


def _rename(container: Any, key: Any, rng: random.Random) -> None:
    if isinstance(container, dict):
        container[rng.choice((f"{key}2", str(key).upper(), "x"))] = container.pop(key)
    else:
        container.reverse()


Change = Callable[[Any, Any, random.Random], None]
CHANGES: tuple[Change, ...] = (
    _replace,
    _replace,
    _scale,
    _remove,
    _swap,
    _again,
    _rename,
)


def as_text(data: Any) -> bytes:
    """JSON, with what json.dumps would not write: an overflowing number, a value that is nested too deep."""
    text = json.dumps(data).replace("Infinity", "1e400")
    return text.replace(json.dumps(NESTED), "[" * 3000 + "]" * 3000).encode("utf-8", "surrogatepass")


def spoilt(raw: bytes, rng: random.Random) -> bytes:
    """The bytes with a few lost, changed, doubled, or with another beginning."""
    place, length = rng.randrange(len(raw) + 1), rng.choice((1, 1, 2, 5, 50))
    noise = bytes(rng.randrange(256) for _ in range(length))
    beginning = rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"[" * 100_000, b" "))
    token = rng.choice((b"{", b"]", b",", b'"', b"\\", b"-", b"e999", b"NaN"))
    return rng.choice(
        (
            raw[:place],
            raw[:place] + raw[place + length :],
            raw[:place] + noise + raw[place + length :],
            raw[:place] + raw[max(0, place - length) :],
            beginning + raw,
            raw[:place] + token + raw[place:],
            raw * 2 if len(raw) < 10**5 else raw[::-1],
        )
    )


def mutated(data: Any, rng: random.Random) -> bytes:
    """Mostly whole JSON that says something else; every fourth one is torn."""
    return spoilt(as_text(data), rng) if rng.random() < 0.25 else as_text(changed(data, rng))


# POCKETFIT_MUTATIONS=10000 looks further; a thousand take seconds.
MUTATIONS = int(os.environ.get("POCKETFIT_MUTATIONS", "1000"))
COUNTS = [pytest.param(MUTATIONS, id="all")]
FEW_COUNTS = [pytest.param(MUTATIONS // 4, id="some")]
LONGEST_S = 10.0


def survived(count: int, folder: Path, write: Callable[[random.Random], Any], read: Callable[[], Any]) -> Counter[str]:
    """Change, read; how often it was read and refused. Anything else fails the test, with the seed to repeat."""
    seen: Counter[str] = Counter()
    for seed in range(count):
        write(random.Random(seed))
        before, started = contents(folder), time.monotonic()
        try:
            read()
        except UserError as error:
            seen["refused"] += 1
            assert str(error) and "\n" not in str(error) and len(str(error)) < 2000, f"seed {seed}: {error}"
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        else:
            seen["read"] += 1
        assert time.monotonic() - started < LONGEST_S, f"seed {seed} took too long"
        assert contents(folder) == before, f"seed {seed}: something was written"
    return seen


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    with os.scandir(folder) as entries:
        return {entry.name: (entry.stat().st_mtime_ns, entry.stat().st_size) for entry in entries}
