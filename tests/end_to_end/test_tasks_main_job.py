"""The main job for every task, with labels and without, in the runtimes of phones, and for one task in every other: a
new task joins by its example. What other runtimes do is their contract (tests/runtimes/test_contract.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pocketfit
from pocketfit.core.plan.runtime_list import for_apps
from pocketfit.core.task.task_list import TASKS
from pocketfit.measurement import latency
from tests.tasks.examples import EXAMPLES, data_of, model_of

PHONES = ("litert", "onnxruntime")
VALUES = ("binary", "multilabel", "regression", "ordinal", "image_to_image")  # one fit with labels and one without
ANSWERED = {  # a key of what a bundle says
    "classification": "top",
    "text": "text",
    "segmentation": "shares",
    "embedding": "embedding",
    "detection": "boxes",
    "binary": "probability",
    "multilabel": "tags",
    "regression": "values",
    "ordinal": "place",
    "image_to_image": "shape",
    "fidelity": "mean",
}
CASES = [
    (name, labelled, runtime)
    for name in TASKS
    for labelled in (True, False)
    if not labelled or EXAMPLES[name].targets
    for runtime in for_apps()
    if runtime in PHONES or (name, labelled) == ("classification", True)
    if name not in VALUES or labelled == (runtime == "litert")
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "labelled", "runtime"), CASES)
def test_fit_hands_over_a_file_and_says_what_was_proved(
    name: str, labelled: bool, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for effort in ("QUICK", "CAREFUL"):  # no limit on the latency
        monkeypatch.setattr(latency, effort, latency.Effort(sessions=2, seconds=0.02, min_rounds=2, max_rounds=3))
    trains = runtime == "onnxruntime" and not labelled  # what pruned networks learn is the same in every runtime
    budget = pocketfit.Budget.parse(max_drop="50pt", max_trials=4 if trains else 2)
    out = tmp_path / "out"
    result = pocketfit.fit(
        model_of(name),
        data_of(name, tmp_path, labelled=labelled),
        budget,
        out=out,
        runtimes=(runtime,),
        task=name if EXAMPLES[name].asked else "",
    )
    assert result.status == "met"
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    (verdict,) = [line for line in lines if line["kind"] == "verdict"]
    assert (verdict["task"], verdict["labelled"]) == (name, labelled)
    assert ("(with the original)" in verdict["metric_title"]) == (
        not labelled and name not in ("fidelity", "embedding")
    )
    if not labelled:
        assert verdict["before"] == pytest.approx(1.0) and verdict["after"] > 0.3
        assert "nothing of how often the original is right" in (out / "report.html").read_text()
    failed = [line["error"] for line in lines if line["kind"] == "trial" and line["status"] != "ok"]
    assert failed == []
    manifest = json.loads((out / "bundle" / "manifest.json").read_text())
    assert manifest["task"] == name
    for arguments in (["--selftest"], ["--json", "golden/chart.png"]):
        run = subprocess.run(
            [sys.executable, "run.py", *arguments], cwd=out / "bundle", capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stdout + run.stderr
    answer = json.loads(run.stdout)
    assert ANSWERED[name] in answer
