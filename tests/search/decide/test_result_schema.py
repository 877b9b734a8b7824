"""result.json against its schema, which is part of the public face."""

from __future__ import annotations

import dataclasses
import html
import json
import random
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from pocketfit.core.budget import Budget
from pocketfit.core.errors import UserError
from pocketfit.core.measurement import Measurement
from pocketfit.report.run.render import render
from pocketfit.report.run.run_data import report_data
from pocketfit.search.decide import result_file
from pocketfit.search.decide.result import compose
from pocketfit.search.decide.result_file import read_result
from pocketfit.search.journal import digest
from tests.mutations import as_text, changed
from tests.report.run import sample_run

SCHEMA = json.loads(files("pocketfit.search.decide").joinpath("result.schema.json").read_text())
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


def test_what_is_read_back_follows_the_published_schema(tmp_path: Path) -> None:
    """Hundreds of changed results: what the schema refuses is refused when it is read, and what is read fits it.

    The reader asks for more where JSON Schema would not say it well: settings of passes, numbers that can have been
    measured, sizes of integers.
    """
    path, both = tmp_path / "result.json", 0
    sound = [json.loads(json.dumps(sample_run.result(variant))) for variant in ("met", "infeasible", "stopped")]
    for seed in range(300):
        rng = random.Random(seed)
        path.write_bytes(as_text(changed(rng.choice(sound), rng)))
        try:
            found = read_result(path)
        except UserError:
            both += bool(_parsed(path) is None or problems(_parsed(path)))
        else:
            assert problems(found) == [], f"seed {seed}"
    assert both > 100


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None


def test_every_field_is_published() -> None:
    def fields(schema: dict[str, Any]) -> set[str]:
        return set(schema["properties"])

    defined = SCHEMA["$defs"]
    assert {f.name for f in dataclasses.fields(result_file.ResultFile)} == fields(SCHEMA)
    for kind, schema in (
        (result_file.Side, defined["side"]),
        (result_file.File, defined["side"]["properties"]["artifact"]),
        (result_file.Comparison, defined["comparison"]),
        (result_file.LimitCheck, defined["limit_check"]),
        (result_file.Shortfall, defined["shortfall"]),
        (Measurement, defined["measurement"]),
        (Budget, defined["budget"]),
    ):
        assert {f.name for f in dataclasses.fields(kind)} == fields(schema), kind
