"""The text of a manifest -> Rows: which picture, with which target. No picture is opened here.

    {"path": "lines/1.png", "text": "110101199003077758", "kind": "number", "split": "train"}     JSON lines (.jsonl)
    path,label,split                                                                              CSV with a header
    lines/1.png<TAB>110101199003077758                                                            PaddleOCR's label file

Targets are one of `label` (one class), `labels` (tags: a list, or "a;b"), `text`, `mask`, `identity`, `value` or
`values` (numbers: a list, or "1.5;2"), and `target` (a picture), the same in all rows, or none.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pocketfit.core.errors import UserError
from pocketfit.core.support.json_file import read_bytes, text_of
from pocketfit.core.support.rules import shown
from pocketfit.core.support.text import STRANGE, comparable, readable, some
from pocketfit.sources.data.listing import Part, counted

MOST_BYTES = 2**29  # of a manifest
MOST_ROWS = 10**7
MOST = 1e18  # of a number: its square has to be a float32
LONGEST = 100_000  # letters of a path or a target
KNOWN = "path, one of label, labels, text, mask, identity, value, values and target, and if need be split and kind"
TARGETS = {
    "label": "labels",
    "labels": "labels",
    "text": "text",
    "mask": "mask",
    "identity": "identity",
    "value": "values",
    "values": "values",
    "target": "target",
}
FILES = ("mask", "target")  # their values are paths
BETWEEN = ";"  # tags and numbers in one field of a table
MOST_VALUES = 10_000  # tags or numbers of a row
PARTS: dict[str, Part] = {
    **dict.fromkeys(("train", "training", ""), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
DELIMITERS = ",;\t"
BOXES = re.compile(r'\s*\[\s*\{\s*"(transcription|points)"')  # PaddleOCR's label files for detection


class Row(NamedTuple):
    """One sample; `place` is its line, or its number in a list."""

    place: int
    path: str  # relative, with "/"
    target: str  # "" where the row has none; of tags and of numbers a JSON list
    part: Part
    kind: str


@dataclass(frozen=True)
class Rows:
    """What a manifest says.

    target  "label", "labels", "text", "mask", "identity", "values", "target" or "" (none)
    word    what `place` of a Row counts: "line" or "entry"
    """

    rows: list[Row]
    target: str
    word: str
    findings: tuple[str, ...]


def read_rows(path: Path) -> Rows:
    """The rows of a manifest by its suffix. Raises UserError that names the file and the line."""
    text = text_of(read_bytes(path, "data", MOST_BYTES), str(path))
    suffix, word = path.suffix.lower(), "line"
    entries: Iterable[tuple[int, Mapping[str, Any]]]
    if suffix in (".csv", ".tsv"):
        entries = _of_csv(text, path)
    elif suffix == ".txt":
        entries = _of_paddle(text, path)
    elif text.lstrip()[:1] == "[":
        entries, word = _of_list(text, path), "entry"
    else:
        entries = _of_json_lines(text, path)
    return _Reader(path, word).read(entries)


class _Reader:
    """Rows from the objects of a manifest; what must be the same in all of them is remembered."""

    def __init__(self, path: Path, word: str) -> None:
        self.path, self.word = path, word
        self.target, self.key, self.first = "", "", 0  # the targets, their key, and where it stood first
        self.numbers = 0  # how many a row has; 0: not known yet
        self.unknown: dict[str, int] = {}  # keys that nothing is done with -> in how many rows

    def read(self, entries: Iterable[tuple[int, Mapping[str, Any]]]) -> Rows:
        rows = [self._row(place, entry) for place, entry in entries]
        findings = []
        if self.unknown:
            names = [f"'{readable(key)}'" for key in self.unknown]
            number = counted(len(names), "key is not known and is", "keys are not known and are")
            findings.append(f"{self.path.name}: {number} ignored: {some(names, 5)}; known are {KNOWN}")
        if self.target == "labels" and all(row.target.count('"') == 2 for row in rows if row.target):
            rows = [row._replace(target=json.loads(row.target)[0] if row.target else "") for row in rows]
            self.target = "label"  # one class for each sample
        return Rows(rows, self.target, self.word, tuple(findings))

    def _row(self, place: int, entry: Mapping[str, Any]) -> Row:
        if place > MOST_ROWS:
            raise UserError(f"{self.path} has more than {MOST_ROWS:,} rows, the limit: split it")
        path, part, kind, target = "", "", "", ""
        for key, value in entry.items():
            if value is None or value == "":
                continue
            if key in TARGETS:
                self._check_target(place, key, bool(target))
                target = self._target(place, key, value)
            elif key == "path":
                path = self._inside(place, key, self._word(place, key, value))
            elif key == "split":
                part = self._word(place, key, value).strip().lower()
                if part not in PARTS:
                    self._refuse(place, f"'split' is {shown(value)}: give train, val or test")
            elif key == "kind":
                kind = readable(self._word(place, key, value).strip())
            else:
                self.unknown[key] = self.unknown.get(key, 0) + 1
        if not path:
            self._refuse(place, "there is no 'path', which names the picture")
        return Row(place, path, target, PARTS[part], kind)

    def _check_target(self, place: int, key: str, another: bool) -> None:
        """Raises UserError where targets are of two kinds, in a row or in the manifest."""
        if another:
            self._refuse(place, f"there are two targets: give {KNOWN.partition(', ')[2].partition(', and')[0]}")
        if self.target not in ("", TARGETS[key]):
            also = f"{self.word} {self.first} has a '{self.key}'"
            self._refuse(place, f"there is a '{key}', and {also}: a manifest has one kind of target")
        if not self.target:
            self.target, self.key, self.first = TARGETS[key], key, place

    def _target(self, place: int, key: str, value: Any) -> str:
        if key == "identity":
            return self._class(place, key, value)
        if key == "label":
            return json.dumps([self._class(place, key, value)], ensure_ascii=False)
        if key == "labels":
            return self._tags(place, key, value)
        if TARGETS[key] == "values":
            return self._numbers(place, key, value)
        word = self._word(place, key, value)
        if key in FILES:
            return self._inside(place, key, word)
        if BOXES.match(word):
            self._refuse(place, "the text holds boxes, as labels for detection do: pocketfit reads no boxes")
        if strange := STRANGE.search(word):
            self._refuse(place, f"the text holds {shown(strange[0])}, which is no character of a line: remove it")
        return word

    def _class(self, place: int, key: str, value: Any) -> str:
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if isinstance(value, list | tuple):
            self._refuse(place, f"'{key}' names {len(value)} classes: give them under 'labels' where they are tags")
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        name = comparable(readable(self._word(place, key, value)))
        if not name:
            self._refuse(place, f"'{key}' is {shown(value)}: give the name of a class")
        return name

    def _tags(self, place: int, key: str, value: Any) -> str:
        """The names of a sample's tags; [], or ";" in a table, is a sample without any."""
        parts = value if isinstance(value, list | tuple) else None
        if isinstance(value, str):
            parts = [part for part in value.split(BETWEEN) if part.strip()]
        if parts is None:
            parts = [value]
        self._check_count(place, key, parts)
        names = sorted({self._class(place, key, part) for part in parts})
        return json.dumps([name.replace('"', "'") for name in names], ensure_ascii=False)

    def _numbers(self, place: int, key: str, value: Any) -> str:
        parts = list(value) if isinstance(value, list | tuple) else [value]
        if isinstance(value, str):
            parts = [part for part in value.split(BETWEEN) if part.strip()]
        self._check_count(place, key, parts)
        numbers = [self._number(place, key, part) for part in parts]
        if not numbers:
            self._refuse(place, f"'{key}' holds no number")
        if self.numbers not in (0, len(numbers)):
            self._refuse(place, f"'{key}' has {counted(len(numbers), 'number')}, and rows before {self.numbers}")
        self.numbers = len(numbers)
        return json.dumps(numbers)

    def _number(self, place: int, key: str, value: Any) -> float:
        number = math.nan
        with suppress(ValueError, OverflowError):
            if isinstance(value, int | float | str) and not isinstance(value, bool):
                number = float(value)
        if not abs(number) < MOST:  # NaN is below nothing
            self._refuse(place, f"'{key}' is {shown(value)}: give a number, such as 1.5")
        return number

    def _check_count(self, place: int, key: str, parts: Sequence[Any]) -> None:
        if len(parts) > MOST_VALUES:
            self._refuse(place, f"'{key}' has {len(parts):,} entries, more than {MOST_VALUES:,}, the limit")

    def _word(self, place: int, key: str, value: Any) -> str:
        if not isinstance(value, str):
            self._refuse(place, f"'{key}' is {shown(value)}: give a text")
        if len(value) > LONGEST:
            self._refuse(place, f"'{key}' has {len(value):,} letters, more than {LONGEST:,}, the limit")
        return value

    def _inside(self, place: int, key: str, value: str) -> str:
        """A relative path with "/" that does not lead out of the manifest's folder."""
        parts = [part for part in value.replace("\\", "/").split("/") if part != "."]
        absolute = value[:1] in ("/", "\\") or re.match("[A-Za-z]:", value)
        if absolute or ".." in parts or "\0" in value:
            self._refuse(place, f"'{key}' is {shown(value)}: give a path below the folder of the manifest")
        joined = "/".join(part for part in parts if part)
        if not joined:
            self._refuse(place, f"'{key}' is {shown(value)}: give the path of a picture")
        return joined

    def _refuse(self, place: int, why: str) -> NoReturn:
        raise UserError(f"{self.path}, {self.word} {place}: {why}")


def _of_json_lines(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.isspace():
            continue
        try:
            entry = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            why = "nested too deep" if isinstance(error, RecursionError) else str(error).splitlines()[0]
            raise UserError(
                f'{path}, line {number} is no JSON ({why}): write one object a line, such as {{"path": "1.png"}}'
            ) from error
        if not isinstance(entry, dict):
            raise UserError(f'{path}, line {number} is {shown(entry)}: write an object, such as {{"path": "1.png"}}')
        yield number, entry


def _of_list(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        entries = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise UserError(f"{path} is no JSON ({why}): write a list of objects, or one object a line") from error
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise UserError(f'{path}, entry {number} is {shown(entry)}: write an object, such as {{"path": "1.png"}}')
        yield number, entry


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _of_csv(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a table whose first line names the columns; the delimiter is the one that sets `path` apart."""
    header: list[str] = []
    for delimiter in DELIMITERS:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        with suppress(csv.Error):  # names in quotes, and another delimiter behind them
            header = [name.strip() for name in next((row for row in rows if row), [])]
        if "path" in header:
            break
    else:
        raise UserError(f"{path} does not begin with the names of its columns, one of them path: known are {KNOWN}")
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UserError(f"{path} has two columns {shown(twice)}: give each its own name")
    try:
        for row in rows:
            if len(row) == len(header):
                yield rows.line_num, dict(zip(header, row, strict=True))
            elif any(row):
                raise UserError(
                    f"{path}, line {rows.line_num} has {counted(len(row), 'field')}, and the first line names"
                    f' {len(header)}: put texts with "{delimiter}" into quotes'
                )
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num} is no CSV ({error})") from error


def _of_paddle(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.isspace():
            continue
        name, tab, said = line.removesuffix("\r").partition("\t")
        if not tab:
            raise UserError(f"{path}, line {number} has no tab: write the path of a picture, a tab, and its text")
        yield number, {"path": name, "text": said}
