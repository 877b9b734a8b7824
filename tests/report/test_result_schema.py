"""result.json against its schema, which is part of the public face."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from pocketfit.report.data import report_data
from pocketfit.report.render import render
from pocketfit.search.journal import digest
from pocketfit.search.result import compose

from . import sample_run

SCHEMA = json.loads(files("pocketfit.search").joinpath("result.schema.json").read_text())
VARIANTS = ("met", "uncertified", "infeasible", "stopped", "empty")


def problems(result: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(result)]


def test_the_schema_is_itself_valid() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("memory_possible", [True, False])
def test_sample_results_fit(variant: sample_run.Variant, memory_possible: bool) -> None:
    written = json.dumps(sample_run.result(variant, memory_possible=memory_possible), allow_nan=False)
    assert problems(json.loads(written)) == []


@pytest.mark.parametrize("variant", ["met", "infeasible", "stopped", "empty"])
def test_what_the_search_composes_fits_and_can_be_drawn(variant: sample_run.Variant) -> None:
    lines = sample_run.lines(variant)
    composed = compose(digest(lines), sample_run.budget(variant), finished=variant not in ("stopped", "empty"))
    result = json.loads(json.dumps(composed, allow_nan=False))
    assert problems(result) == []
    assert result["status"] == {"empty": "stopped"}.get(variant, variant)
    data = report_data(lines, result)
    assert data["headline"] in html.unescape(render(data)).replace("\xa0", " ")
    assert bool(data["shortfall"]) == (variant == "infeasible")


def _drop_hash(result: dict[str, Any]) -> None:
    result["chosen"]["artifact"]["sha256"] = "abc"


def _number_without_measuring(result: dict[str, Any]) -> None:
    result["chosen"]["measurements"]["memory_bytes"].update(how="not_possible_here", reason="no /proc", value=1.0)


def _no_reason(result: dict[str, Any]) -> None:
    result["chosen"]["measurements"]["memory_bytes"].update(how="not_possible_here", value=None)


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "unknown key": lambda r: r.update(extra=1),
    "unknown status": lambda r: r.update(status="fine"),
    "missing explanation": lambda r: r.pop("explanation"),
    "met without a file": lambda r: r.update(chosen=None),
    "certified without met": lambda r: r.update(status="infeasible"),
    "another version": lambda r: r.update(schema_version=2),
    "drop without n": lambda r: r["comparison"]["drop"].pop("n"),
    "not a sha256": _drop_hash,
    "a number that was not measured": _number_without_measuring,
    "not possible, and no reason": _no_reason,
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_results_are_refused(name: str) -> None:
    result = json.loads(json.dumps(sample_run.result("met")))
    WRONG[name](result)
    assert problems(result)
