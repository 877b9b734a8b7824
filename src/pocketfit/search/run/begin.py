"""What is checked before a run begins or goes on, and its first line in the journal."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from pocketfit import __version__
from pocketfit.core.errors import UserError
from pocketfit.core.support.files import check_folder, check_writable
from pocketfit.core.support.progress import Watch
from pocketfit.measurement.environment import environment
from pocketfit.numerics.latency_intervals import MAX_NEEDED, needed_n
from pocketfit.search import journal
from pocketfit.search.run.job import (
    Job,
    about_data,
    check_criterion,
    check_data,
    check_layers,
    check_metric,
    check_runtimes,
    differences,
)

EXPECTED_DISAGREEMENT = (
    0.05  # share of samples on which a compressed network's score differs, where nothing is known yet
)


def check(job: Job) -> None:
    """Refuse bad input before anything is written."""
    check_runtimes(job)
    check_data(job)
    check_layers(job)
    check_metric(job)
    check_criterion(job)


def check_out(out: Path) -> None:
    """Refuse, before anything is read, an output folder that can't be written or that holds no run of pocketfit.

    A run that was killed before its first whole line may have left a lock, a cache and a torn line.
    """
    path = out / "journal.jsonl"
    begun = os.path.lexists(path) and path.is_file()  # False, and no error, for an impossible name
    if begun and journal.read_lines(path):
        check_writable(out)
    else:
        check_folder(out, (".lock", "cache", *(("journal.jsonl",) if begun else ())))


def begin(job: Job, path: Path, watch: Watch) -> None:
    findings = [*job.model.findings, *job.data.findings, *about_data(job), *_too_few(job)]
    for sentence in findings:
        watch.say(sentence)
    journal.append(
        path,
        {
            "kind": "start",
            "pocketfit": __version__,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "inputs": job.identity(),
            "budget": job.budget.to_json(),
            "environment": environment(job.threads),
            "findings": findings,
        },
    )


def _too_few(job: Job) -> Iterator[str]:
    """A sentence where the verdict split is too small to certify the allowed drop."""
    allowed = job.budget.limit_on("drop")
    have = job.data.split_counts(job.model.split_seed)["verdict"]
    if allowed is None or allowed <= 0:
        return
    need = needed_n(allowed, EXPECTED_DISAGREEMENT)
    if need is None or have < need:
        wanted = f"more than {MAX_NEEDED:,}" if need is None else f"about {need:,}"
        yield (
            f"The test split has {have} samples; to certify a drop of at most {allowed:g} points {wanted} are needed"
            f" (if one prediction in {round(1 / EXPECTED_DISAGREEMENT)} changes and nothing is lost), so the result"
            " will hardly be certified."
        )


def is_fruitless(job: Job, record: journal.Record) -> bool:
    """Whether a run of other inputs may be replaced, as nothing in it has worked: with a metric that failed, say."""
    assert record.start is not None
    return bool(differences(record.start["inputs"], job.identity())) and all(t.status != "ok" for t in record.trials)


def refuse_others(job: Job, record: journal.Record) -> None:
    assert record.start is not None
    changed = differences(record.start["inputs"], job.identity())
    if changed:
        raise UserError(
            f"{job.out} belongs to another run (different: {', '.join(changed)}); nothing was changed: give the"
            f" same inputs to"
            " go on, or another output folder"
        )
