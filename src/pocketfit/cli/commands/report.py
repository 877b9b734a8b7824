"""`pocketfit report`: the page of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pocketfit.cli.exit_codes import guarded, print_result
from pocketfit.cli.files_in import record_of
from pocketfit.cli.options import PATH
from pocketfit.core.errors import UserError


@click.command("report")
@click.argument("out", type=PATH)
@click.option("--open/--no-open", "open_", default=True, help="Open it in the browser.")
@guarded
def command(out: Path, open_: bool, as_json: bool) -> int:
    """Write OUT/report.html from the journal, and open it."""
    path = report(out)
    print_result({"report": str(path)}, as_json, lambda d: click.echo(d["report"]))
    if open_ and not as_json and sys.stdout.isatty():
        click.launch(str(path))
    return 0


def report(out: Path) -> Path:
    """Write report.html from the journal."""
    from pocketfit.core.support.files import check_writable, write_json
    from pocketfit.report.run.render import write_report
    from pocketfit.search.decide.result import compose
    from pocketfit.search.decide.result_file import read_result

    record = record_of(out)
    check_writable(out)
    try:
        read_result(out / "result.json")
    except UserError:  # what it holds follows from the journal
        write_json(out / "result.json", compose(record, record.budget, finished=record.verdict is not None))
    return write_report(out)
