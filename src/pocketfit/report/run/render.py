"""The dict of `report_data` -> one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pocketfit.core.errors import UserError
from pocketfit.core.support.text import READABLE
from pocketfit.report.page import svg
from pocketfit.report.run.run_data import report_data
from pocketfit.search import journal
from pocketfit.search.decide.result_file import read_result


def write_report(out: Path) -> Path:
    """Read `out/journal.jsonl` and `out/result.json`, write `out/report.html` in one move, return its path.

    Raises UserError where one of the two is missing or is not what it should be.
    """
    out = Path(out)
    lines_path = out / "journal.jsonl"
    if not lines_path.is_file():
        raise UserError(f"{lines_path} does not exist: a report is made from the output folder of `pocketfit fit`")
    data = report_data(journal.read_lines(lines_path), read_result(out / "result.json"))
    return write_whole(out / "report.html", render(data))


def render(data: dict[str, Any]) -> str:
    """The page of a run as text."""
    drawings = {"bar": _bar, "pareto": lambda plot: Markup(svg.pareto_plot(plot, f"{plot['key']}-"))}
    return page("report.html", data, drawings)


def page(template: str, data: Mapping[str, Any], drawings: Mapping[str, Callable[..., Markup]]) -> str:
    """A template of this folder filled in. Every value is escaped; the page's own script is the only one that its
    policy lets run."""
    environment = Environment(
        loader=PackageLoader("pocketfit.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(drawings)
    environment.filters["unbroken"] = _unbroken
    environment.filters["draw"] = Markup  # only for the marker shapes of svg.SHAPES, our own constants
    script = environment.get_template("report.js").render()
    # CSP hashes are over the exact text between the tags: https://www.w3.org/TR/CSP3/#match-element-to-source-list
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(data, script=Markup(script), script_hash=digest)


def _unbroken(text: str) -> str:
    """A number and its unit stay on one line.

    >>> _unbroken("takes 1.9 MB (95 % interval)").count("\xa0")
    2
    """
    return re.sub(r"(?<=\d) (?=(?:B|kB|MB|GB|ms|µs|s|dB|pt|points|%)\b|%)|(?<=n) (?== )|(?<=n =) ", "\xa0", text)


def _bar(entry: dict[str, Any]) -> Markup:
    """The drawing of one entry of `quantities.bars`."""
    draw, limit = entry["draw"], entry["limit"]
    label = limit["label"] if limit else ""
    told = f"{entry['title']}: now {entry['after']['text']}"
    if entry["before"]:
        told += f", before {entry['before']['text']}"
    if limit:
        told += f", {label}, {limit['text']}"
    if draw["kind"] == "interval":
        return Markup(
            svg.interval_bar(
                draw["after"], draw["limit"], aria=told, limit_label=label, low=draw["low"], high=draw["high"]
            )
        )
    return Markup(
        svg.budget_bar(
            draw["before"],
            draw["after"],
            draw["limit"],
            aria=told,
            limit_label=label,
            low=draw["low"],
            high=draw["high"],
            floor=entry["quantity"] == "accuracy",
        )
    )


def write_whole(path: Path, text: str) -> Path:
    """Write beside the target and move it there, so that a reader never sees half a page."""
    partial = path.with_name(f".{path.name}-{secrets.token_hex(8)}.partial")
    try:
        with partial.open("x", encoding="utf-8", errors=READABLE) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
