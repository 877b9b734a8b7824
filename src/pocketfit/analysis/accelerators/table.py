"""The operators that an accelerator's own documents list, as one Table a format of files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Format = Literal["onnx", "tflite"]


@dataclass(frozen=True)
class Operator:
    """One line of a list.

    types   dtypes in which the source says that the operator is computed ("int8", "float16"); () where it does not say
    note    further conditions of the source, which pocketfit does not check; "" without one
    """

    types: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The operators of one target.

    target     what `inspect --for` calls it
    title      the device or library, with its version
    format     the files whose operators are listed
    source     the document or the file of a public repository, with its version
    date       of that version
    read       when it was read
    operators  operator -> Operator; an operator of another domain as "com.microsoft:QLinearAdd"
    elsewhere  operators that the tools take without running them on the accelerator -> what happens to them
    otherwise  what happens to an operator that stands in neither
    counts_as  dtype in the file -> dtype in which the target computes it
    notes      sentences about files of this target
    """

    target: str
    title: str
    format: Format
    source: str
    date: str
    read: str
    operators: Mapping[str, Operator]
    otherwise: str
    elsewhere: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    counts_as: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()

    def find(self, kind: str) -> Operator | None:
        """The line of an operator, by its name without a domain."""
        return self.operators.get(kind) or self.operators.get(f"com.microsoft:{kind}")


def listed(names: str, *types: str, note: str = "") -> dict[str, Operator]:
    """The same line for several operators.

    >>> listed("Relu Clip", "int8")["Clip"]
    Operator(types=('int8',), note='')
    """
    return {name: Operator(types, note) for name in names.split()}


def noted(operators: Mapping[str, Operator], notes: Mapping[str, str]) -> dict[str, Operator]:
    """These lines with notes added to some. Raises KeyError for a note on an operator that is not listed.

    >>> noted(listed("Relu Conv", "int8"), {"Conv": "2D only"})["Conv"].note
    '2D only'
    """
    return dict(operators) | {name: Operator(operators[name].types, note) for name, note in notes.items()}
