"""One reader for all JSON files that pocketfit reads back, its own or a stranger's.

`checked` checks plain values (core/support/json_file.py) against a type, and raises the first violation as a sentence
with its place in the file. The types are those that the code works with: frozen dataclasses (no unknown keys; they are
built), TypedDicts for objects that stay dicts (keys of later versions may stand beside the known ones), Literal,
tuples, lists, Mapping[str, ...], unions with None. A rule in Annotated restricts a type further
(core/support/rules.py). So a setting's type and range stand once, at its field; `check_rules` checks the field where
settings are made in Python.
"""

from __future__ import annotations

import math
import re
from collections import abc
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from pocketfit.core.errors import UserError
from pocketfit.core.support.json_file import MOST_DEPTH
from pocketfit.core.support.rules import LARGEST_INT, Like, Rule, shown

T = TypeVar("T")
Reader = Callable[[Any], Any]
LONGEST_PLACE = 200  # letters


class Violation(UserError):
    """A problem with a value, and its place inside the file: "passes[1].steps"; "" for the file as a whole.

    problem  the end of a sentence that begins with the place ("is -1: give a number from 0"), or a whole sentence
    """

    def __init__(self, problem: str, place: str = "", *, sentence: bool = False) -> None:
        quoted = f"'{place}'" if place else "it"
        super().__init__((f"{place}: {problem}" if place else problem) if sentence else f"{quoted} {problem}")
        self.problem, self.place, self.sentence = problem, place, sentence

    def inside(self, place: str) -> Violation:
        """The same violation with its place seen from one level up: an object with this key, or a list's "[number]"."""
        place = place if re.fullmatch(r"[\w.\-]{1,60}|\[\d+\]", place, re.ASCII) else shown(place)
        joined = place if not self.place else place + ("" if self.place.startswith("[") else ".") + self.place
        return Violation(
            self.problem, joined if len(joined) < LONGEST_PLACE else f"{joined[:80]} …", sentence=self.sentence
        )


@contextmanager
def at(place: str) -> Iterator[None]:
    """Add this place to Violations raised inside."""
    try:
        yield
    except Violation as violation:
        raise violation.inside(place) from None


@contextmanager
def reading(source: str, mend: str = "") -> Iterator[None]:
    """Turn Violations raised inside into one sentence: what cannot be read, where, why, and what to do."""
    try:
        yield
    except Violation as violation:
        raise UserError(f"{source} can't be read: {violation}{'; ' if mend else ''}{mend}") from violation


def checked(hint: Any, data: Any, source: str, mend: str = "") -> Any:
    """`data`, read as this type. Raises UserError: "<source> can't be read: 'place' is …; <mend>".

    >>> checked(dict[str, int], {"a": 1.5}, "x.json", "make it again")
    Traceback (most recent call last):
    pocketfit.core.errors.UserError: x.json can't be read: 'a' is 1.5: give a whole number; make it again
    """
    with reading(source, mend):
        return reader(hint)(data)


def build(cls: Callable[..., T], data: Any, given: Mapping[str, Any] | None = None, ignored: Sequence[str] = ()) -> T:
    """A dataclass from an object with its fields' names. Raises Violation.

    given    fields that do not stand in `data`
    ignored  keys that may stand in `data` and are no fields
    """
    given, kind = given or {}, cast("Hashable", cls)
    if not isinstance(data, Mapping):
        raise Violation(f"is {shown(data)}: give an object")
    table: dict[str, tuple[Reader, bool]] = _fields(kind)
    for key in data:
        if (key not in table or key in given) and key not in ignored:
            known = ", ".join(sorted(table.keys() - given | set(ignored)))
            raise Violation(f"is no known key: there are {known}").inside(str(key))
    values = dict(given)
    for key, (read, required) in table.items():
        if key in data and key not in given:
            try:
                values[key] = read(data[key])
            except Violation as violation:
                raise violation.inside(key) from None
        elif required and key not in given:
            raise Violation("is missing", key)
    try:
        return cls(**values)
    except Violation:
        raise
    except UserError as error:  # fields that contradict each other
        raise Violation(str(error), sentence=True) from error


def check_rules(settings: Any) -> None:
    """Check every field against its rule and its Literal, in `__post_init__`. Raises UserError with class and field."""
    for name, check in _rules(cast("Hashable", type(settings))).items():
        if problem := check(getattr(settings, name)):
            raise UserError(f"{type(settings).__name__} can't have {name}={shown(getattr(settings, name))}: {problem}")


@cache
def reader(hint: Any) -> Reader:
    """The function that reads plain values as this type, or raises Violation."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin in _COMPOSED:
        return _COMPOSED[origin](arguments)
    if is_typeddict(hint):
        return _typed_dict(hint)
    if is_dataclass(hint):
        own: Reader | None = getattr(hint, "read", None)
        return own or (lambda data: build(cast("Any", hint), data))
    raise TypeError(f"no reader for {hint}")


def _anything(value: Any, depth: int = 0) -> Any:
    """The reader of any JSON, which is passed on as it is."""
    if depth > MOST_DEPTH:
        raise Violation(f"is nested too deep: at most {MOST_DEPTH} levels are read")
    if isinstance(value, dict):
        for key, one in value.items():
            try:
                _anything(one, depth + 1)
            except Violation as violation:
                raise violation.inside(key) from None
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            try:
                _anything(one, depth + 1)
            except Violation as violation:
                raise violation.inside(f"[{number}]") from None
    elif isinstance(value, str):
        _text(value)
    elif isinstance(value, float):
        _number(value)
    elif isinstance(value, int):
        _bounded(value)
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise Violation(f"is {shown(value)}: give a number")
    if type(value) is float and not math.isfinite(value):
        raise Violation("is not finite: give a number")
    _bounded(value)
    number: float = value
    return number


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise Violation(f"is {shown(value)}: give a whole number")
    _bounded(value)
    return value


def _bounded(value: float) -> None:
    if type(value) is int and abs(value) > LARGEST_INT:
        raise Violation("is an integer of more than 64 bits")


def _exactly(kind: type, words: str) -> Reader:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise Violation(f"is {shown(value)}: give {words}")
        return value

    return read


def _text(value: Any) -> str:
    if type(value) is not str:
        raise Violation(f"is {shown(value)}: give a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Violation(f"is {shown(value)}: half a character is no text") from None
    return value


_PLAIN: dict[Any, Reader] = {
    Any: _anything,
    float: _number,
    int: _whole,
    str: _text,
    bool: _exactly(bool, "true or false"),
    NoneType: _exactly(NoneType, "null"),
}


def _ruled(arguments: tuple[Any, ...]) -> Reader:
    read, rules = reader(arguments[0]), [rule for rule in arguments[1:] if isinstance(rule, Rule)]
    also = [reader(rule.kind) for rule in arguments[1:] if isinstance(rule, Like)]

    def ruled(value: Any) -> Any:
        found = read(value)
        for rule in rules:
            if problem := rule.problem(found):
                raise Violation(f"is {shown(found)}: {problem}")
        for one in also:
            one(found)
        return found

    return ruled


def _one_of(values: tuple[Any, ...]) -> Reader:
    words = f"give one of {', '.join(map(shown, values))}"

    def read(value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in values):
            raise Violation(f"is {shown(value)}: {words}")
        return value

    return read


def _either(kinds: tuple[Any, ...]) -> Reader:
    """The reader of a union: null, or the one other type; of several other types the first that fits."""
    others = [reader(kind) for kind in kinds if kind is not NoneType]

    def read(value: Any) -> Any:
        if value is None and NoneType in kinds:
            return None
        for number, other in enumerate(others):
            try:
                return other(value)
            except Violation:
                if number == len(others) - 1:
                    raise
        raise AssertionError("a union of nothing")

    return read


def _tuple(kinds: tuple[Any, ...]) -> Reader:
    """The reader of a tuple, a list in JSON: tuple[T, ...], or one entry of each of these types."""
    if kinds[-1] is Ellipsis:
        entries = _listed(kinds[:1])
        return lambda value: tuple(entries(value))
    readers = [reader(kind) for kind in kinds]

    def read(value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != len(readers):
            raise Violation(f"is {shown(value)}: give a list of {len(readers)}")
        return tuple(_entry(one, number, value[number]) for number, one in enumerate(readers))

    return read


def _listed(kinds: tuple[Any, ...]) -> Reader:
    one = reader(kinds[0])

    def read(value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise Violation(f"is {shown(value)}: give a list")
        return [_entry(one, number, each) for number, each in enumerate(value)]

    return read


def _entry(read: Reader, number: int, value: Any) -> Any:
    try:
        return read(value)
    except Violation as violation:
        raise violation.inside(f"[{number}]") from None


def _mapped(kinds: tuple[Any, ...]) -> Reader:
    read = reader(kinds[1])

    def mapped(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise Violation(f"is {shown(value)}: give an object")
        found = {}
        for key, one in value.items():
            try:
                found[key] = read(one)
            except Violation as violation:
                raise violation.inside(key) from None
        return found

    return mapped


_COMPOSED: dict[Any, Callable[[tuple[Any, ...]], Reader]] = {
    Annotated: _ruled,
    Literal: _one_of,
    Union: _either,
    UnionType: _either,
    tuple: _tuple,
    list: _listed,
    dict: _mapped,
    abc.Mapping: _mapped,
}


def _typed_dict(hint: Any) -> Reader:
    """The reader of a TypedDict; it returns the object itself. Unknown keys need only keep the limits of any JSON."""
    known: dict[str, tuple[Reader, bool]] = {}
    for name, kind in get_type_hints(hint, include_extras=True).items():
        optional = get_origin(kind) is NotRequired
        known[name] = reader(get_args(kind)[0] if optional else kind), not optional

    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise Violation(f"is {shown(value)}: give an object")
        for key, (_, required) in known.items():
            if required and key not in value:
                raise Violation("is missing", key)
        for key, one in value.items():
            try:
                known.get(key, (_anything, False))[0](one)
            except Violation as violation:
                raise violation.inside(str(key)) from None
        return value

    return read


@cache
def _fields(cls: Any) -> dict[str, tuple[Reader, bool]]:
    """(reader, whether it must be given) for each field of a dataclass, by its name."""
    hints = get_type_hints(cls, include_extras=True)
    return {each.name: (reader(hints[each.name]), _required(cls, each)) for each in fields(cls) if each.init}


def _required(cls: Any, field: Field[Any]) -> bool:
    """Whether a field must stand in JSON: one without a default, or any of a class that says so itself."""
    return field.default is field.default_factory is MISSING or getattr(cls, "whole_in_json", False)


@cache
def _rules(cls: Any) -> dict[str, Callable[[Any], str]]:
    """For each field with a Literal or a rule, a function that says what is wrong with a value, "" where nothing is."""
    hints = get_type_hints(cls, include_extras=True)
    found = {}
    for each in fields(cls):
        kind = hints[each.name]
        if get_origin(kind) is Literal:
            found[each.name] = _literal_problem(get_args(kind))
        elif get_origin(kind) is Annotated:
            found[each.name] = _rule_problem(get_args(kind)[1:])
    return found


def _literal_problem(values: tuple[Any, ...]) -> Callable[[Any], str]:
    return lambda value: "" if value in values else f"give one of {', '.join(map(shown, values))}"


def _rule_problem(rules: Sequence[Any]) -> Callable[[Any], str]:
    def problem(value: Any) -> str:
        try:
            return next((words for rule in rules if isinstance(rule, Rule) and (words := rule.problem(value))), "")
        except (TypeError, ValueError, OverflowError):
            return f"a {type(value).__name__} is no such value"

    return problem
