"""Find, check and read the folders that verbs are given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pocketfit.core.errors import UserError

if TYPE_CHECKING:
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
