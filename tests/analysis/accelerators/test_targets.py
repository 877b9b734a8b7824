"""Every table has a source and a date, names operators that exist, and joins by a file and a line."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from ai_edge_litert import schema_py_generated as tflite

from pocketfit.analysis.accelerators import table, targets
from pocketfit.core.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
ONNX = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
TFLITE = {name for name in vars(tflite.BuiltinOperator) if not name.startswith("_")}
DTYPES = {
    *("bool", "int4", "int8", "uint8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float8e4m3fn"),
}


@pytest.mark.parametrize("target", targets.TARGETS)
def test_a_table_has_a_source_and_operators_that_exist(target):
    found = targets.tables(target)
    assert found and len({one.format for one in found}) == len(found)
    for one in found:
        assert one.target == target and one.operators
        assert all((one.title, one.source, one.date, one.read, one.otherwise))
        assert any(place in one.source for place in ("github.com/", "hiascend.com", "PyPI", "as installed"))
        known = ONNX if one.format == "onnx" else TFLITE
        plain = {name for name in one.operators if ":" not in name} | set(one.elsewhere)
        assert plain <= known, plain - known
        assert {name.split(":")[0] for name in one.operators if ":" in name} <= {"com.microsoft"}
        assert not set(one.operators) & set(one.elsewhere)
        assert {dtype for operator in one.operators.values() for dtype in operator.types} <= DTYPES
        assert {*one.counts_as, *one.counts_as.values()} <= DTYPES


def test_every_file_in_tables_is_a_target():
    files = {path.stem for path in Path(table.__file__).with_name("tables").glob("*.py")} - {"__init__"}
    assert files == set(targets.TARGETS.values())


def test_the_page_names_every_target_with_its_version():
    page = (ROOT / "docs" / "accelerators.md").read_text(encoding="utf-8")
    for target in targets.TARGETS:
        assert f"`{target}`" in page
        for one in targets.tables(target):
            if "as installed" not in one.source:
                assert one.date in page and one.title in page, one.title
    assert all(f"`{target}`" in page for target in targets.NO_SOURCE)


def test_a_new_target_joins_by_a_file_and_a_line(monkeypatch):
    mine = replace(targets.tables("tensorrt")[0], target="mine", operators=table.listed("Relu", "int8"))
    module = ModuleType("mine")
    module.tables = lambda: (mine,)
    monkeypatch.setitem(sys.modules, "pocketfit.analysis.accelerators.tables.mine", module)
    monkeypatch.setitem(targets.TARGETS, "mine", "mine")
    assert targets.table_for("mine", "onnx") is mine
    with pytest.raises(UserError, match=r"lists operators of \.onnx files"):
        targets.table_for("mine", "tflite")


def test_without_a_source_there_is_no_table():
    with pytest.raises(UserError, match="no table for 'cambricon': no public document"):
        targets.tables("cambricon")
    with pytest.raises(UserError, match="No target is called 'abacus': known are rknn"):
        targets.tables("abacus")
