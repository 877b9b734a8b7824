"""`pocketfit choose`: another choice from a run that is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pocketfit.cli.exit_codes import LIMITS_NOT_MET, guarded, print_result
from pocketfit.cli.files_in import record_of
from pocketfit.cli.options import PATH, limit_options
from pocketfit.core.budget import Budget


@click.command("choose")
@click.argument("out", type=PATH)
@limit_options
@guarded
def command(out: Path, as_json: bool, **limits: Any) -> int:
    """Decide again from the journal of OUT, with other limits and no new trial.

    Limits that are not given here stay as they were for the run.
    """
    from pocketfit.cli.terminal import show_result

    data = choose(out, **limits)
    print_result(data, as_json, lambda d: show_result(d, out))
    return 0 if data["status"] == "met" else LIMITS_NOT_MET


def choose(out: Path, prefer: Any, **limits: str | None) -> dict[str, Any]:
    """Decide again from the journal; reads journal.jsonl, writes nothing."""
    from pocketfit.search.decide.result import compose

    record = record_of(out)
    asked = Budget.parse(prefer=prefer or record.budget.prefer, max_trials=None, **limits)
    changed = {limit.quantity for limit in asked.limits}
    kept = tuple(limit for limit in record.budget.limits if limit.quantity not in changed)
    return compose(record, replace(record.budget, limits=(*kept, *asked.limits), prefer=asked.prefer), finished=True)
