"""The main job for networks with several inputs, and with token ids: a file, and a bundle that checks itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pocketfit
from pocketfit.measurement import latency
from pocketfit.sources.data.dataset import from_arrays
from tests.brought.networks import arrays, opened


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "runtime"), [("two inputs", "onnxruntime"), ("two inputs", "litert"), ("token ids and a mask", "litert")]
)
def test_fit_and_bundle(name: str, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for effort in ("QUICK", "CAREFUL"):  # no limit on the latency
        monkeypatch.setattr(latency, effort, latency.Effort(sessions=2, seconds=0.02, min_rounds=2, max_rounds=3))
    budget = pocketfit.Budget.parse(max_drop="50pt", max_trials=3)
    x, y = arrays(name, 240)
    data, out = from_arrays(x, y, class_names=list("abcde")), tmp_path / "out"
    result = pocketfit.fit(opened(name), data, budget, out=out, runtimes=(runtime,))
    assert result.status == "met"
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    assert [line["error"] for line in lines if line["kind"] == "trial" and line["status"] != "ok"] == []
    for arguments in (["--selftest"], ["--json", "golden/sample0.npz"]):
        run = subprocess.run(
            [sys.executable, "run.py", *arguments], cwd=out / "bundle", capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stdout + run.stderr
    assert len(json.loads(run.stdout)["top"]) == 5
