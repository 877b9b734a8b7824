"""Which operators of a file a Table lists, and what is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pocketfit.analysis.accelerators.table import Table
from pocketfit.core.artifact import Contents, OpInfo


@dataclass(frozen=True, kw_only=True)
class Line:
    """All operators of one type and dtype.

    dtype     in which the file computes them; "" for operators that read stored tensors only
    listed    whether the table lists the type, in this dtype
    types     dtypes that the source states for the type
    why       why it is not listed; "" where it is
    note      conditions of the source, which were not checked
    examples  names of the first few
    """

    type: str
    dtype: str
    count: int
    macs: int
    listed: bool
    types: tuple[str, ...]
    why: str
    note: str
    examples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """A file against a table. `runs`: lengths of the runs of listed operators, in the file's order."""

    table: Table
    lines: tuple[Line, ...]
    runs: tuple[int, ...]

    @property
    def operators(self) -> int:
        return sum(line.count for line in self.lines)

    @property
    def taken(self) -> int:
        return sum(line.count for line in self.lines if line.listed)

    def to_json(self) -> dict[str, Any]:
        """The counts and lines, with where the table comes from."""
        table, macs = self.table, sum(line.macs for line in self.lines)
        return {
            "target": table.target,
            "title": table.title,
            "source": table.source,
            "date": table.date,
            "read": table.read,
            "operators": self.operators,
            "listed": self.taken,
            "listed_macs": sum(line.macs for line in self.lines if line.listed) / macs if macs else None,
            "partitions": len(self.runs),
            "runs": list(self.runs),
            "lines": [asdict(line) for line in self.lines],
            "notes": list(table.notes),
        }


def coverage(contents: Contents, table: Table) -> Coverage:
    """Compare each operator's type and dtype with the table. Conditions beyond these are notes, and not checked."""
    grouped: dict[tuple[str, str], list[OpInfo]] = {}
    runs: list[int] = []
    inside = False
    for op in contents.ops:
        grouped.setdefault((op.type, op.compute_dtype), []).append(op)
        taken = not why_not(op.type, op.compute_dtype, table)
        if taken and inside:
            runs[-1] += 1
        elif taken:
            runs.append(1)
        inside = taken
    lines = [_line(kind, dtype, ops, table) for (kind, dtype), ops in grouped.items()]
    return Coverage(table=table, lines=tuple(sorted(lines, key=lambda line: line.listed)), runs=tuple(runs))


def why_not(kind: str, dtype: str, table: Table) -> str:
    """Why the table does not take an operator of this type and dtype, with what happens to it; "" where it does."""
    found = table.find(kind)
    if found is None:
        return table.elsewhere.get(kind, table.otherwise)
    if not dtype or not found.types or dtype in found.types or table.counts_as.get(dtype) in found.types:
        return ""
    return f"listed in {', '.join(found.types)}, and the file has {dtype}: {table.otherwise}"


def _line(kind: str, dtype: str, ops: list[OpInfo], table: Table) -> Line:
    found, why = table.find(kind), why_not(kind, dtype, table)
    return Line(
        type=kind,
        dtype=dtype,
        count=len(ops),
        macs=sum(op.macs for op in ops),
        listed=not why,
        types=found.types if found else (),
        why=why,
        note=found.note if found else "",
        examples=tuple(op.layer or op.name for op in ops[:3]),
    )


def sentence(found: Mapping[str, Any]) -> str:
    """ "58 of 60 operators (99 % of the multiply-accumulates) in 2 partitions", of `Coverage.to_json`."""
    share, partitions = found["listed_macs"], found["partitions"]
    macs = "" if share is None else f" ({share:.0%} of the multiply-accumulates)"
    return (
        f"{found['listed']} of {found['operators']} operators are listed{macs}, in {partitions} "
        f"partition{'' if partitions == 1 else 's'}"
    )
