"""The journal of an earlier session may make a run do nothing that the run's own user has not asked for."""

from __future__ import annotations

from pathlib import Path

from pocketfit.core.errors import UserError
from pocketfit.core.plan.prune import Prune
from pocketfit.core.support.rules import shown
from pocketfit.search.journal import CHANGED, Record
from pocketfit.search.run.job import Job


def check_resumed(job: Job, record: Record, path: Path) -> None:
    """Refuse a journal whose plans call code, or whose tables are about layers, that this run does not know of."""
    for trial in record.trials:
        for settings in trial.plan.passes:
            if isinstance(settings, Prune) and settings.calls_code and settings.criterion != job.criterion:
                raise UserError(
                    f"Trial {trial.number} of {path} calls {shown(settings.criterion)} of your Python environment,"
                    f" which --criterion does not name; {CHANGED}"
                )
        if trial.runtime not in job.runtimes:
            raise UserError(
                f"Trial {trial.number} of {path} is for {trial.runtime}, which --runtime does not name; {CHANGED}"
            )
    known = {row.name for row in job.layers}
    named = [row["layer"] for line in record.sensitivity.values() for row in line["rows"]]
    if record.allocation is not None:
        named += [layer for _, widths in record.allocation["keep"] for layer, _ in widths]
    for name in named:
        if name not in known:
            raise UserError(f"{path} is about the layer {shown(name)}, which this network does not have; {CHANGED}")
