"""A file of pairs -> which two pictures are the same. No picture is opened here.

    path_a,path_b,same,split                                              CSV with a header; split may be missing
    {"path_a": "ann/1.jpg", "path_b": "bob/1.jpg", "same": false}         JSON lines
    ann/1.jpg ann/2.jpg 1                                                 text: two paths, and 1 or 0, same or different
    Ann_Lee<TAB>1<TAB>2   or   Ann_Lee<TAB>1<TAB>Bob_Ray<TAB>1            LFW's pairs.txt: Ann_Lee/Ann_Lee_0001.jpg

Pictures of one file are in one split, and pairs between two splits are not counted.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.support.json_file import read_bytes, text_of
from pocketfit.core.support.rules import shown
from pocketfit.sources.data.listing import Listing, Part, counted
from pocketfit.sources.data.manifest_rows import LONGEST, MOST_BYTES, MOST_ROWS, PARTS
from pocketfit.sources.data.picture_files import SUFFIXES

FIRST, SECOND = ("path_a", "path1", "a"), ("path_b", "path2", "b")
SAME = {**dict.fromkeys(("1", "true", "same", "yes"), True), **dict.fromkeys(("0", "false", "different", "no"), False)}
KNOWN = "path_a, path_b, same, and if need be split"
PEEKED = 2**16  # letters of a file by which it is recognised
MOST_LISTED = 2**26  # pictures times the most pairs of one
LFW_HEADER = re.compile(r"\d+(\s+\d+)?\s*$")


class Pair(NamedTuple):
    """Two pictures by their relative paths; `part` is "" where the file does not say it."""

    place: int
    one: str
    other: str
    same: bool
    part: Part | str


def is_pairs_file(path: Path) -> bool:
    """Whether a manifest lists pairs, by its first lines."""
    with path.open("rb") as file:
        begin = file.read(PEEKED).decode("utf-8-sig", "replace")
    first = next((line.strip() for line in begin.splitlines() if line.strip()), "")
    if path.suffix.lower() in (".csv", ".tsv"):
        names = {name.strip().strip('"') for name in re.split("[,;\t]", first)}
        return bool(names & set(FIRST)) and bool(names & set(SECOND))
    if path.suffix.lower() == ".txt":
        words = first.split()
        return bool(LFW_HEADER.match(first)) or (
            len(words) == 3 and words[2].lower() in SAME and all(_is_picture(word) for word in words[:2])
        )
    return any(f'"{name}"' in first for name in FIRST[:2]) and any(f'"{name}"' in first for name in SECOND[:2])


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file by its suffix. Raises UserError that names the file and the line."""
    text = text_of(read_bytes(path, "data", MOST_BYTES), str(path))
    if path.suffix.lower() in (".csv", ".tsv"):
        found = list(_of_table(text, path))
    elif path.suffix.lower() == ".txt":
        found = list(_of_text(text, path))
    else:
        found = list(_of_json(text, path))
    if not found:
        raise UserError(f"{path} names no pair: write one row for each")
    for number, what in ((sum(pair.same for pair in found), "same"), (sum(not p.same for p in found), "different")):
        if not number:
            raise UserError(f"{path} has no pair that is {what}: verification needs both kinds of pairs")
    return found


def _of_table(text: str, path: Path) -> Iterator[Pair]:
    first = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for row in rows:
            if any(row.values()):
                yield _pair(path, rows.line_num, {(key or "").strip(): value for key, value in row.items()})
    except csv.Error as error:
        raise UserError(f"{path} is no CSV ({error})") from error


def _of_json(text: str, path: Path) -> Iterator[Pair]:
    entries: Iterable[tuple[int, str]] = enumerate(text.split("\n"), 1)
    for number, line in entries:
        if not line or line.isspace():
            continue
        try:
            said = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is no JSON ({error}): write one object a line") from error
        if not isinstance(said, dict):
            _refuse(path, number, f"{shown(said)} is no object: write {KNOWN}")
        yield _pair(path, number, said)


def _of_text(text: str, path: Path) -> Iterator[Pair]:
    lines = [(number, line.split()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if lines and all(word.isdigit() for word in lines[0][1]):  # LFW: how many folds, how many pairs a fold
        for number, words in lines[1:]:
            if len(words) == 3 and words[1].isdigit() and words[2].isdigit():
                one, other = _lfw(words[0], words[1]), _lfw(words[0], words[2])
            elif len(words) == 4 and words[1].isdigit() and words[3].isdigit():
                one, other = _lfw(words[0], words[1]), _lfw(words[2], words[3])
            else:
                _refuse(path, number, "it is neither 'name n n' nor 'name n name n', as in LFW's pairs.txt")
            yield _pair(path, number, {"path_a": one, "path_b": other, "same": len(words) == 3})
        return
    for number, words in lines:
        if len(words) != 3:
            _refuse(path, number, f"it has {counted(len(words), 'word')}: write two paths, and 1 (the same) or 0")
        yield _pair(path, number, dict(zip(("path_a", "path_b", "same"), words, strict=True)))


def _lfw(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04d}.jpg"


def _pair(path: Path, place: int, said: Mapping[str, Any]) -> Pair:
    if place > MOST_ROWS:
        raise UserError(f"{path} has more than {MOST_ROWS:,} rows, the limit: split it")
    one, other = (_picture(path, place, said, names) for names in (FIRST, SECOND))
    if one == other:
        _refuse(path, place, f"both pictures are {shown(one)}: a pair has two")
    answer = said.get("same")
    same = SAME.get(str(answer).strip().lower())
    if same is None:
        _refuse(path, place, f"'same' is {shown(answer)}: write 1 where both are the same, else 0")
    part = str(said.get("split") or "").strip().lower()
    if part not in PARTS:
        _refuse(path, place, f"'split' is {shown(part)}: give train, val or test")
    return Pair(place, one, other, same, PARTS[part] if part else "")


def _picture(path: Path, place: int, said: Mapping[str, Any], names: Sequence[str]) -> str:
    value = next((said[name] for name in names if said.get(name)), None)
    if not isinstance(value, str) or len(value) > LONGEST:
        _refuse(path, place, f"there is no '{names[0]}', which names a picture")
    name = value.strip().replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or re.match("[A-Za-z]:", name) or "\0" in name:
        _refuse(path, place, f"'{names[0]}' is {shown(value)}: paths are relative, and stay in the folder of the file")
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _refuse(path: Path, place: int, why: str) -> NoReturn:
    raise UserError(f"{path}, line {place}: {why}")


def _is_picture(word: str) -> bool:
    return word.lower().endswith(tuple(SUFFIXES))


def with_pairs(listing: Listing, names: Sequence[str], pairs: Sequence[Pair]) -> Listing:
    """The listing of the pictures by these names, with their pairs, and with findings about how they are split.

    Pictures that hang together by pairs go to one split. Where most of all do, those that are the same stay together,
    and pairs between two splits are not counted.
    """
    targets = _listed(names, pairs)
    findings, drawn = listing.findings, "test" not in listing.parts
    sets = _together(len(names), targets, same_only=False)
    if drawn and np.bincount(sets).max() * 2 > len(names):
        sets = _together(len(names), targets, same_only=True)
        findings = (
            *findings,
            "Most pictures hang together by pairs: only those that are the same stay in one split, and pairs of"
            " different ones that lie in two splits are not counted. Say with 'split' which pairs are for the test.",
        )
    least: dict[int, str] = {}
    for place, content in zip(sets.tolist(), listing.contents, strict=True):
        least[place] = min(content, least.get(place, content))
    return replace(listing, identities=targets, together=[least[place] for place in sets.tolist()], findings=findings)


def _listed(names: Sequence[str], pairs: Sequence[Pair]) -> NDArray[np.int64]:
    """Targets int64 [n, 1 + k] of these pictures, as tasks/common/verification.py has them. Pairs with a picture that
    is not among them are left out. Raises UserError for more than memory has room for."""
    number = {name: place for place, name in enumerate(names)}
    others: list[list[int]] = [[] for _ in names]
    for pair in pairs:
        if pair.one in number and pair.other in number:
            one, other = number[pair.one], number[pair.other]
            others[one].append(2 * other + pair.same)
            others[other].append(2 * one + pair.same)
    most = max(map(len, others), default=0)
    if len(names) * most > MOST_LISTED:
        raise UserError(
            f"A picture is in {most:,} pairs, and there are {len(names):,} pictures: that is too much for a list, give"
            " a manifest with 'identity', of which all pairs are made"
        )
    found = np.full((len(names), 1 + max(most, 1)), -1, np.int64)
    found[:, 0] = np.arange(len(names))
    for place, codes in enumerate(others):
        found[place, 1 : 1 + len(codes)] = codes
    return found


def _together(count: int, targets: NDArray[np.int64], *, same_only: bool) -> NDArray[np.int64]:
    """Which pictures hang together by pairs, or by those that are the same: the least number of each set, [count]."""
    parent = list(range(count))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for place, column in zip(*np.nonzero(targets[:, 1:] >= 0), strict=True):
        said = int(targets[place, 1 + column])
        if said % 2 or not same_only:
            one, other = sorted((root(int(place)), root(said // 2)))
            parent[other] = one
    return np.array([root(place) for place in range(count)], np.int64)
