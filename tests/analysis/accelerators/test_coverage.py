"""Operators against a table: types, runs, and what happens to the others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pocketfit.analysis.accelerators.coverage import coverage, sentence
from pocketfit.analysis.accelerators.table import Table, listed, noted
from pocketfit.core.artifact import Contents, OpInfo

TABLE = Table(
    target="t",
    title="T 1",
    format="onnx",
    source="s",
    date="d",
    read="r",
    operators=noted(listed("Conv Relu", "int8", "float16") | listed("com.microsoft:Gelu"), {"Conv": "2D only"}),
    elsewhere={"Softmax": "the CPU runs it"},
    otherwise="refused",
    counts_as={"float32": "float16"},
)


def contents(*ops: tuple[str, str, int]) -> Contents:
    made = [
        OpInfo(index=i, name=f"{kind}_{i}", type=kind, output_shape=(), compute_dtype=dtype, macs=macs)
        for i, (kind, dtype, macs) in enumerate(ops)
    ]
    return Contents("onnx", (), (), tuple(made))


def test_runs_of_listed_operators_are_partitions():
    ops = [("Conv", "int8", 90), ("Relu", "int8", 0), ("Softmax", "int8", 0), ("Loop", "", 0), ("Gelu", "int8", 0)]
    found = coverage(contents(*ops, ("Conv", "uint8", 10)), TABLE)
    assert (found.operators, found.taken, found.runs) == (6, 3, (2, 1))
    lines = {(line.type, line.dtype): line for line in found.lines}
    assert lines["Conv", "int8"].listed and lines["Conv", "int8"].note == "2D only"
    assert lines["Softmax", "int8"].why == "the CPU runs it" and lines["Loop", ""].why == "refused"
    assert lines["Conv", "uint8"].why == "listed in int8, float16, and the file has uint8: refused"
    assert lines["Conv", "uint8"].examples == ("Conv_5",)
    told = found.to_json()
    assert told["listed_macs"] == 0.9 and told["source"] == "s"
    assert sentence(told) == "3 of 6 operators are listed (90% of the multiply-accumulates), in 2 partitions"


def test_a_dtype_that_counts_as_another_is_taken():
    given = contents(("Conv", "float32", 1))
    assert coverage(given, TABLE).runs == (1,)
    assert coverage(given, replace(TABLE, counts_as={})).runs == ()


def test_a_note_needs_a_line():
    with pytest.raises(KeyError):
        noted(listed("Relu"), {"Conv": "2D only"})
