"""A journal of somebody else makes a run do nothing that its own user did not ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pocketfit.core.errors import UserError
from pocketfit.core.plan.prune import Prune
from pocketfit.search import journal
from pocketfit.search.run.job import Job
from pocketfit.search.run.resumed import check_resumed
from tests.search import builders

PATH = Path("out/journal.jsonl")
TASK = cast(
    "Job",
    SimpleNamespace(
        criterion="taylor", runtimes=("litert",), layers=(SimpleNamespace(name="a"), SimpleNamespace(name="b"))
    ),
)


def record(*trials: Any, **more: Any) -> journal.Record:
    return replace(journal.digest([builders.start(builders.budget())]), trials=trials, **more)


def test_its_own_journal_is_gone_on_with() -> None:
    pruned = builders.trial(1, precision="int8", passes=(Prune(0.5, "taylor"),))
    rows = [{"layer": "a", "share": 1.0}]
    allocation = {"keep": [[0.5, [["a", 8], ["b", 4]]]]}
    known = record(builders.baseline(), pruned, sensitivity={("litert", False): {"rows": rows}}, allocation=allocation)
    check_resumed(TASK, known, PATH)
    own = SimpleNamespace(**{**vars(TASK), "criterion": "mine.scores:f"})
    check_resumed(cast("Job", own), record(builders.trial(1, passes=(Prune(0.5, "mine.scores:f"),))), PATH)


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        (record(builders.trial(1, passes=(Prune(0.5, "evil:f"),))), 'Trial 1 of out/journal.jsonl calls "evil:f"'),
        (
            record(builders.baseline(3, "onnxruntime")),
            "Trial 3 of out/journal.jsonl is for onnxruntime, which --runtime",
        ),
        (
            record(sensitivity={("litert", False): {"rows": [{"layer": "c"}]}}),
            'about the layer "c", which this network',
        ),
        (record(allocation={"keep": [[0.5, [["d", 8]]]]}), 'about the layer "d"'),
    ],
)
def test_what_is_not_this_runs_is_refused(known: journal.Record, sentence: str) -> None:
    with pytest.raises(UserError, match=f"{sentence}.*the journal has been changed"):
        check_resumed(TASK, known, PATH)
