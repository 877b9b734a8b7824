"""Values out of JSON against types: what fits is passed on or built, what does not is named with its place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketfit.core.errors import UserError
from pocketfit.core.support.json_file import MOST_DEPTH, load, parse
from pocketfit.core.support.rules import Between, FileName, InFolder, Like, OneOf, RelativePath, Size, Text
from pocketfit.core.support.schema import build, check_rules, checked, reader

Share = Annotated[float, Between(0, 1)]


@dataclass(frozen=True)
class Inner:
    share: Share
    name: str = "x"


class Known(TypedDict):
    one_sided: NotRequired[float]
    count: int


@dataclass(frozen=True, kw_only=True)
class Outer:
    number: Annotated[int, Between(1)]
    kind: Literal["a", "b", 3]
    inner: tuple[Inner, ...]
    pair: tuple[str, float] = ("p", 1.0)
    maybe: Inner | None = None
    free: Any = None
    table: Mapping[str, list[int]] = field(default_factory=dict)
    known: Annotated[Mapping[str, Any], Like(Known)] | None = None
    note: ClassVar[str] = "no field"


@dataclass(frozen=True)
class Whole:
    whole_in_json: ClassVar[bool] = True
    a: int = 1


SOUND: dict[str, Any] = {"number": 1, "kind": "a", "inner": [{"share": 0.5}], "pair": ["p", 2], "maybe": None}


def changed(**values: Any) -> dict[str, Any]:
    return {**SOUND, **values}


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_what_fits_is_built() -> None:
    made = checked(Outer, SOUND, "x.json")
    assert made == Outer(number=1, kind="a", inner=(Inner(0.5),), pair=("p", 2))
    assert type(made.inner) is tuple
    assert checked(Outer, json.loads(json.dumps(asdict(made))), "x.json") == made
    assert checked(Outer, changed(free=nested(40), table={"a": [1]}, kind=3), "x.json").table == {"a": [1]}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "it is []: give an object"),
        (None, "it is null: give an object"),
        ({}, "'number' is missing"),
        (changed(more=1), "'more' is no known key: there are free, inner, kind, known, maybe, number, pair, table"),
        (changed(note="x"), "'note' is no known key"),
        (changed(**{"a\x1b[2J": 1}), """'"a\\u001b[2J"' is no known key"""),
        (changed(number=0), "'number' is 0: give a number from 1"),
        (changed(number=True), "'number' is true: give a whole number"),
        (changed(number=1.0), "'number' is 1.0: give a whole number"),
        (changed(number=10**30), "'number' is an integer of more than 64 bits"),
        (changed(kind="c"), '\'kind\' is "c": give one of "a", "b", 3'),
        (changed(kind=["a"]), "'kind' is [\"a\"]: give one of"),
        (changed(inner={}), "'inner' is an object: give a list"),
        (changed(inner=[{"share": 1.5}]), "'inner[0].share' is 1.5: give a number from 0 up to 1"),
        (changed(inner=[{"share": 0}, {}]), "'inner[1].share' is missing"),
        (changed(inner=[{"share": float("nan")}]), "'inner[0].share' is not finite"),
        (changed(inner=[{"share": 0, "name": 3}]), "'inner[0].name' is 3: give a text"),
        (changed(inner=[{"share": 0, "name": "\ud800"}]), "half a character is no text"),
        (changed(pair=["p"]), ": give a list of 2"),
        (changed(maybe=3), "'maybe' is 3: give an object"),
        (changed(free=nested(MOST_DEPTH + 5)), "is nested too deep"),
        (changed(free={"a": [float("inf")]}), "'free.a[0]' is not finite"),
        (changed(table={"a": [1, "2"]}), "'table.a[1]' is \"2\": give a whole number"),
        (changed(known={}), "'known.count' is missing"),
        (changed(known={"count": 1, "one_sided": "x"}), "'known.one_sided' is \"x\": give a number"),
    ],
)
def test_the_first_violation_is_named_with_its_place(data: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^x.json can't be read: .*{re.escape(sentence)}.*; make it again$"):
        checked(Outer, data, "x.json", "make it again")


def test_open_objects_keep_what_is_not_known() -> None:
    data = {"count": 1, "later": {"a": [1]}}
    assert checked(Known, data, "x") is data
    with pytest.raises(UserError, match=r"'later\[0\].* is nested too deep"):
        checked(Known, {"count": 1, "later": nested(MOST_DEPTH + 2)}, "x")
    assert checked(Known, {"count": 1, "later": nested(MOST_DEPTH)}, "x")


def test_fields_that_are_given_do_not_stand_in_the_data() -> None:
    assert build(Inner, {"share": 1, "code": 3}, {"name": "y"}, ignored=("code",)) == Inner(1, "y")
    with pytest.raises(UserError, match="'name' is no known key: there are code, share"):
        build(Inner, {"share": 1, "name": "z"}, {"name": "y"}, ignored=("code",))
    with pytest.raises(UserError, match="'a' is missing"):
        build(Whole, {})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(sorted(SOUND)),
)
def test_anything_is_read_or_refused_in_one_line(value: Any, key: str) -> None:
    try:
        made = checked(Outer, changed(**{key: value}), "x.json")
    except UserError as error:
        assert "\n" not in str(error) and str(error).startswith("x.json can't be read: ")
    else:
        assert checked(Outer, json.loads(json.dumps(asdict(made))), "x.json") == made


@dataclass(frozen=True)
class Setting:
    share: Share = 0.5
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        check_rules(self)


def test_settings_made_in_python_follow_the_same_rules() -> None:
    assert Setting(1).share == 1
    for wrong, words in (
        ({"share": 2}, "Setting can't have share=2: give a number from 0 up to 1"),
        ({"share": "much"}, "a str is no such value"),
        ({"share": float("nan")}, "give a number from 0 up to 1"),
        ({"kind": "c"}, 'Setting can\'t have kind="c": give one of "a", "b"'),
    ):
        with pytest.raises(UserError, match=words):
            Setting(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        (Between(0, 1, above=True, below=True), (0.5,), (0, 1, float("inf"), float("nan"))),
        (Between(1), (1, 10**30), (0, -1, float("inf"))),
        (OneOf((1, "x")), (1, "x"), (2, "y")),
        (Text("[0-9a-f]{4}", "hex"), ("00ff",), ("00ff\n", "", "00FF")),
        (Size(1, 2, unique=True), ("a", "ab"), ("", "abc", "aa")),
        (
            InFolder(2),
            ("a.txt", "models/a.onnx", "a b é", "..a"),
            ("", ".", "..", "/a", "a/", "a//b", "a/../b", "a/b/c", "a\\b", "c:x", "a\0", "x" * 256),
        ),
    ],
)
def test_rules(rule: Any, right: tuple[Any, ...], wrong: tuple[Any, ...]) -> None:
    assert [rule.problem(value) for value in right] == [""] * len(right)
    assert all(rule.problem(value).startswith(("give", '"a" stands')) for value in wrong)


def test_names_of_files_lead_nowhere_else() -> None:
    assert reader(FileName)("a.onnx") and reader(RelativePath)("models/a.onnx")
    for name in ("models/a.onnx", "../a.onnx"):
        with pytest.raises(UserError, match="give the name of a file below its own folder"):
            reader(FileName)(name)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"{", "x is no JSON: Expecting property name"),
        (b"NaN", "x is no JSON: NaN is no number in JSON"),
        (b"[-Infinity]", "x is no JSON: -Infinity is no number in JSON"),
        (b'{"a": 1, "b": 2, "a": 3}', 'x is no JSON: the key "a" stands twice in one object'),
        (b"[" * 100_000, f"x is nested too deep to be read: at most {MOST_DEPTH} levels are"),
        (b'{"a":' * 100_000, "x is nested too deep"),
        (b"1" * 10_000, "x is no JSON: Exceeds the limit"),
        (b'"\xff"', r"x is no text in UTF-8 \(byte 1\)"),
        ('"a"'.encode("utf-16"), "x is a text in UTF-16 or UTF-32: save it as UTF-8"),
        (b"", "x is no JSON"),
    ],
)
def test_what_is_no_json(raw: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence}"):
        parse(raw, "x")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert load(path, "plan") == [1]
    with pytest.raises(UserError, match="is too large to be one"):
        load(path, "plan", most_bytes=3)
    (tmp_path / "folder").mkdir()
    for name, sentence in (
        ("nowhere.json", "does not exist"),
        ("folder", "is no file"),
        ("x" * 300, "can't be read: File name too long"),
        ("a\0b", "does not exist"),
    ):
        with pytest.raises(UserError, match=f"^The plan file .*{sentence}"):
            load(tmp_path / name, "plan")
