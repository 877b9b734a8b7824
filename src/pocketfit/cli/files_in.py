"""Find, check and read the folders that verbs are given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pocketfit.core.errors import UserError

if TYPE_CHECKING:
    from pocketfit.core.plan.plan import Plan
    from pocketfit.core.support.user_code import Allowed
    from pocketfit.search import journal


def record_of(out: Path) -> journal.Record:
    """The journal of a run's output folder."""
    from pocketfit.search import journal

    path = out / "journal.jsonl"
    if not path.is_file():
        raise UserError(f"{out} is not the output folder of a run: it has no journal.jsonl")
    record = journal.read(path)
    if record.start is None:
        raise UserError(f"{path} does not say what its run is about: its first line is missing")
    return record


def plan_of(path: Path, agreed: Allowed) -> Plan:
    """The plan in a file. Raises UserError where it calls code that the user has not agreed to."""
    from pocketfit.core.plan.plan import Plan
    from pocketfit.core.support import user_code
    from pocketfit.core.support.json_file import load

    plan = Plan.from_json(load(path, "plan"), str(path), allow_code=True)
    for name in plan.called:
        user_code.function(name, "criterion", user_code.consent(agreed).check(name, path, "criterion"))
    return plan
