"""The scores of a reading of the verdict split, kept at once: whatever fails later, the split is not read twice."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np

from pocketfit.core.support.files import whole_or_not
from pocketfit.core.trial import Trial
from pocketfit.measurement.run_samples import Scores
from pocketfit.search.run.job import Job


def was_read(job: Job, *trials: Trial | None) -> bool:
    """Whether the scores of all these trials are kept; a run that was killed after the reading uses them."""
    return all(kept(job, trial) is not None for trial in trials if trial is not None)


def keep(job: Job, trial: Trial, scores: Scores) -> None:
    """Write the scores whole or not at all, forced to the disk."""
    arrays = {"values": scores.values, "answers": scores.answers, "nan": np.array(scores.nan)}
    if scores.strata is not None:
        arrays["strata"] = scores.strata
    if scores.by_class is not None:
        arrays["by_class"] = scores.by_class
    with whole_or_not(_place(job, trial)) as partial:
        np.savez(partial, allow_pickle=False, **arrays)


def kept(job: Job, trial: Trial) -> Scores | None:
    """The kept scores; None where the split has not been read for this file, or where they are damaged."""
    try:
        with _place(job, trial).open("rb") as file, np.load(file, allow_pickle=False) as found:
            more = {name: found[name] for name in ("strata", "by_class") if name in found.files}
            values, answers, nan = found["values"], found["answers"], int(found["nan"])
            return Scores(values=values, answers=answers, metric=job.metric, nan=nan, **more)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _place(job: Job, trial: Trial) -> Path:
    assert trial.artifact is not None
    facts = (trial.runtime, trial.artifact.sha256, job.data.sha256, job.model.split_seed, job.model.task, job.metric)
    return job.cache / f"verdict-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.npz"
