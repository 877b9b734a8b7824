"""The dict of `report_data` -> one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from pocketfit.core.errors import UserError
from pocketfit.report.page import svg
from pocketfit.report.page.page import page, write_whole
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
    return page("run/report.html", data, drawings)


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
