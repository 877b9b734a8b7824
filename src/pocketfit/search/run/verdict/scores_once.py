"""What a reading of the verdict split gave, kept as soon as it is there: whatever fails then, it is not read twice."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np

from pocketfit.core.support.files import whole_or_not
from pocketfit.core.trial import Trial
from pocketfit.measurement.run_samples import Scores
from pocketfit.search.run.job import Task


def was_read(task: Task, *trials: Trial | None) -> bool:
    """Whether the scores of all of them are kept: a run that was killed behind the reading takes them."""
    return all(kept(task, trial) is not None for trial in trials if trial is not None)


def keep(task: Task, trial: Trial, scores: Scores) -> None:
    """Whole or not at all, forced to the disk."""
    arrays = {"values": scores.values, "predictions": scores.predictions, "nan": np.array(scores.nan)}
    if scores.strata is not None:
        arrays["strata"] = scores.strata
    with whole_or_not(_place(task, trial)) as partial:
        np.savez(partial, allow_pickle=False, **arrays)


def kept(task: Task, trial: Trial) -> Scores | None:
    """None where the split has not been read for this file, or where what was kept is damaged."""
    try:
        with _place(task, trial).open("rb") as file, np.load(file, allow_pickle=False) as found:
            strata = found["strata"] if "strata" in found.files else None
            return Scores(found["values"], found["predictions"], task.metric, int(found["nan"]), strata=strata)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _place(task: Task, trial: Trial) -> Path:
    assert trial.artifact is not None
    facts = (trial.runtime, trial.artifact.sha256, task.data.sha256, task.model.split_seed, task.metric)
    return task.cache / f"verdict-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.npz"
