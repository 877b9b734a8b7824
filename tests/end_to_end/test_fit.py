"""The main job from end to end, on a network and pictures that are tiny: one run, killed runs, repeated ones.

Timing is kept short here (its figures decide nothing: sizes do), everything else is as users get it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import psutil
import pytest
import torch
from torch import nn

import pocketfit
from pocketfit import runtimes
from pocketfit.core.budget import Budget
from pocketfit.core.errors import ExportFailed, UserError
from pocketfit.core.model import Origin
from pocketfit.core.preprocess import Preprocess
from pocketfit.measurement import latency
from pocketfit.passes.train import fine_tune
from pocketfit.search import journal
from pocketfit.sources.data.dataset import open_data
from pocketfit.sources.models.open_model import model_from_module, save_model

pytestmark = pytest.mark.slow

BRIEFLY = "Effort(sessions=2, seconds=0.05, min_rounds=5, max_rounds=10)"
MAIN = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell start with Ctrl-C ignored
from pocketfit.measurement import latency
from pocketfit.measurement.latency import Effort
latency.QUICK = latency.CAREFUL = {BRIEFLY}
from pocketfit.cli.main import main
main()
"""
FACTORY = """
from torch import nn

def block(inputs, outputs, stride=1, groups=1):
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())

def net(classes: int = 4):
    layers = block(3, 32, 2), block(32, 64), block(64, 64, 2, 64), nn.Conv2d(64, 128, 1), nn.ReLU6()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))
"""
NAMES = ["red disc", "red square", "blue disc", "blue square"]
LIMITS = ("--max-size", "0.27x", "--max-drop", "8pt", "--prefer", "size", "--max-trials", "8")
FIT = ("fit", "model", "--data", "shapes.npz", "--runtime", "litert,onnxruntime", "--allow-code", *LIMITS)


def shapes(count: int = 600, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs and squares, red and blue, on dark noise."""
    rng, labels = np.random.default_rng(0), np.arange(count) % 4
    pixels = rng.integers(0, 60, (count, side, side, 3))
    rows, columns = np.mgrid[0:side, 0:side]
    for picture, label in zip(pixels, labels, strict=True):
        y, x, size = *rng.integers(10, 22, 2), rng.integers(6, 9)
        square = np.maximum(abs(rows - y), abs(columns - x)) < size
        disc = (rows - y) ** 2 + (columns - x) ** 2 < size**2
        picture[square if label % 2 else disc] += (170, 30, 30) if label < 2 else (30, 30, 170)
    return pixels.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures, the factory and a trained model folder."""
    folder = tmp_path_factory.mktemp("fit")
    torch.set_num_threads(1)
    pixels, labels = shapes()
    np.savez(folder / "shapes.npz", x=pixels, y=labels, class_names=NAMES)
    (folder / "nets_of_fit_test.py").write_text(FACTORY)
    data = open_data(folder / "shapes.npz")
    names: dict[str, Any] = {}
    exec(FACTORY, names)
    torch.manual_seed(0)
    model = model_from_module(
        names["net"](),
        preprocess=Preprocess(height=32, width=32, resize="exact"),
        labels=data.class_names,
        origin=Origin("factory", "nets_of_fit_test:net"),
    )
    samples = data.split("train", model.preprocess, split_seed=0)
    save_model(fine_tune.transfer(model, samples, epochs=30, batch_size=32, learning_rate=0.05), folder / "model")
    return folder


def started(here: Path, *arguments: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *arguments],
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(here: Path, *arguments: str) -> tuple[int, str, str]:
    process = started(here, *arguments)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def lines(out: Path, kind: str = "trial") -> list[dict[str, Any]]:
    return [line for line in journal.read_lines(out / "journal.jsonl") if line["kind"] == kind]


def hashes(out: Path) -> list[str]:
    return [trial.plan.hash for trial in journal.read(out / "journal.jsonl").trials]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def finished(here: Path) -> Path:
    """OUT of one undisturbed run."""
    code, out, err = run(here, *FIT, "-o", "out", "--json")
    assert code == 0, err
    assert json.loads(out) == json.loads((here / "out/result.json").read_text())
    assert "trial 0: fp32 in litert (baseline)" in err and "best so far: " in err
    return here / "out"


@pytest.fixture(scope="module")
def verdict_samples(here: Path) -> int:
    return open_data(here / "shapes.npz").split_counts(0)["verdict"]


def test_the_result_is_what_was_asked_for(finished: Path, verdict_samples: int) -> None:
    result = json.loads((finished / "result.json").read_text())
    schema = json.loads(files("pocketfit.search.decide").joinpath("result.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(result)
    assert (result["status"], result["trials"]) == ("met", 9)
    comparison, chosen = result["comparison"], result["chosen"]
    assert comparison["size_ratio"] <= 0.27 and comparison["drop"]["points"] <= 8
    assert (comparison["drop"]["split"], comparison["drop"]["n"]) == ("verdict", verdict_samples)
    assert comparison["latency_ratio"]["low"] <= comparison["latency_ratio"]["value"]
    file = finished / chosen["artifact"]["path"]
    assert sha256(file) == chosen["artifact"]["sha256"] and file.stat().st_size == chosen["artifact"]["bytes"]
    assert chosen["measurements"]["accuracy"]["value"] > 0.8, "the network had learned the shapes"
    assert chosen["measurements"]["memory_bytes"]["value"] > 1e6
    assert json.loads((finished / "plan.json").read_text()) == chosen["plan"]


def test_the_journal_holds_every_stage_of_both_runtimes_and_one_reading(finished: Path, verdict_samples: int) -> None:
    trials = lines(finished)
    assert [t["stage"] for t in trials[:5]] == [*["baseline"] * 2, *["recipe"] * 3]
    assert [t["stage"] for t in trials[5:]] == ["ladder", "pruned", "finalist", "control"]
    assert all(t["status"] == "ok" for t in trials), [t["error"] for t in trials]
    for runtime in ("litert", "onnxruntime"):
        mine = [t for t in trials if t["plan"]["export"]["runtime"] == runtime]
        assert {"baseline", "recipe"} <= {t["stage"] for t in mine}
        for trial in mine:
            assert sha256(finished / trial["artifact"]["path"]) == trial["artifact"]["sha256"]
    (rung,) = [t for t in trials if t["stage"] == "ladder"]  # no file with 8-bit weights is small enough
    assert rung["plan"]["export"]["weights"] == "int4"
    assert [settings["pass"] for settings in rung["plan"]["passes"]] == ["equalize", "round"]
    assert len(lines(finished, "reading")) == len(lines(finished, "verdict")) == len(lines(finished, "layers")) == 1
    (verdict,) = lines(finished, "verdict")
    assert verdict["control"]["trial"] == trials[-1]["number"] and verdict["control"]["steps"] > 0
    against = json.loads((finished / "result.json").read_text())["comparison"]["control"]
    assert against["loss"]["points"] == verdict["control"]["loss"]["points"]
    assert {row["label"] for row in verdict["per_class"]} == set(NAMES)
    assert sum(row["n"] for row in verdict["per_class"]) == verdict_samples
    losses = [row["before"] - row["after"] for row in verdict["per_class"]]
    assert losses == sorted(losses, reverse=True), "the classes that lost most come first"
    mean = sum(row["after"] * row["n"] for row in verdict["per_class"]) / verdict_samples
    assert mean == pytest.approx(verdict["measurements"]["accuracy"]["value"])


def test_the_run_itself_is_idle_while_files_are_timed_and_a_disturbed_latency_is_said(finished: Path) -> None:
    measured = [t["measurements"]["latency_ms"] for t in lines(finished)]
    (verdict,) = lines(finished, "verdict")
    measured.append(verdict["measurements"]["latency_ms"])
    for session in (each for m in measured for each in m["environment"]["load"]):
        assert session["own_cores"] < 0.2, "neither training threads nor prefetching go on"
    first, last = (m["environment"]["best_ms"] for m in (measured[0], measured[-1]))
    assert last["memory"] <= first["memory"], "what was best in the run is known to its end"
    baseline = verdict["baseline_measurements"]["latency_ms"]["environment"]
    assert baseline["load"] == measured[-1]["environment"]["load"], "both files in the same sessions"
    result = json.loads((finished / "result.json").read_text())
    said = any("not certified, because other work ran beside it" in sentence for sentence in result["explanation"])
    assert said == ("disturbed" in result["comparison"]["latency_ratio"])


def test_the_report_and_the_bundle_are_there_and_work(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "blue square" in page
    done = subprocess.run(
        [sys.executable, "run.py", "--selftest"], cwd=finished / "bundle", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((finished / "bundle/manifest.json").read_text())
    assert list(manifest["labels"]) == NAMES


def test_the_same_command_again_returns_at_once(here: Path, finished: Path) -> None:
    before = (finished / "journal.jsonl").read_bytes()
    result = json.loads((finished / "result.json").read_text())
    code, out, _ = run(here, *FIT, "-o", "out", "--json")
    assert code == 0 and json.loads(out) == result
    after = (finished / "journal.jsonl").read_bytes()
    assert after.startswith(before)
    assert {json.loads(line)["kind"] for line in after[len(before) :].splitlines()} <= {"time"}


def test_other_inputs_are_refused_and_nothing_is_changed(here: Path, finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    for changed, word in ((("--seed", "1"), "seed"), (("--max-drop", "2pt"), "limits"), (("--io", "int8"), "io")):
        code, out, err = run(here, *FIT, "-o", "out", *changed)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1 and f"different: {word}" in err and "nothing was changed" in err
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_apply_makes_the_same_file_again(here: Path, finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    arguments = ("apply", "out/plan.json", "model", "--data", "shapes.npz", "-o", "again", "--json", "--allow-code")
    code, out, err = run(here, *arguments)
    assert code == 0, err
    made = json.loads(out)
    assert made["sha256"] == result["chosen"]["artifact"]["sha256"] == sha256(Path(here, made["path"]))


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_killed_five_times_and_interrupted_it_tries_the_same_plans(here: Path, finished: Path) -> None:
    """SIGKILL in the first export, in recipes, in a training, in an export, in a finalist; then Ctrl-C."""
    out = here / "killed"
    for trials, seconds in ((0, 1.0), (1, 3.0), (3, 0.5), (5, 2.0), (6, 6.0)):
        process = started(here, *FIT, "-o", "killed")
        wait_until(lambda n=trials: len(lines(out, "start")) == 1 and len(lines(out)) >= n, process)  # type: ignore[misc]
        time.sleep(seconds)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if sys.platform == "linux":  # elsewhere a child that lost its parent works on to its end
            wait_until(lambda gone=children: all(map(is_gone, gone)))  # type: ignore[misc]
        if lines(out):
            assert json.loads((out / "result.json").read_text())["status"] == "stopped"
            assert (out / "bundle/manifest.json").exists(), "there is always a best so far on disk"
    process = started(here, *FIT, "-o", "killed")
    wait_until(lambda: bool(psutil.Process(process.pid).children()), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from here" in err.splitlines()[-1]
    assert json.loads((out / "result.json").read_text())["status"] == "stopped"
    code, _, err = run(here, *FIT, "-o", "killed")
    assert code in (0, 1), err
    assert sorted(hashes(out)) == sorted(hashes(finished)), "the same plans, none twice"
    assert [t["number"] for t in lines(out)] == list(range(9))
    wanted = {t.plan.hash: t.artifact.sha256 for t in journal.read(finished / "journal.jsonl").trials if t.artifact}
    found = {t.plan.hash: t.artifact.sha256 for t in journal.read(out / "journal.jsonl").trials if t.artifact}
    assert found == wanted, "to the last bit"


def test_an_exporter_that_dies_is_a_failed_trial_and_impossible_limits_are_explained(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, with an exporter that cannot do float16; limits that nothing reaches; no second verdict."""
    monkeypatch.setattr(latency, "QUICK", eval(BRIEFLY, {"Effort": latency.Effort}))
    monkeypatch.setattr(latency, "CAREFUL", latency.QUICK)
    runtime, torch_threads = runtimes.get("onnxruntime"), torch.get_num_threads()
    export = runtime.export

    def breaking(model: Any, plan: Any, *more: Any, **settings: Any) -> Any:
        if plan.export.activations == "uint8":
            raise ExportFailed("The step convert died with exit status -11", "op 17\nSegmentation fault")
        return export(model, plan, *more, **settings)

    monkeypatch.setattr(runtime, "export", breaking)
    monkeypatch.chdir(here)
    budget = Budget.parse(max_size="1kB", max_drop="8pt", max_trials=3)
    result = pocketfit.fit("model", "shapes.npz", budget, out="impossible", runtimes=("onnxruntime",), allow_code=True)
    assert torch.get_num_threads() == torch_threads
    ok, failed, later, control = lines(here / "impossible")
    assert (ok["status"], failed["status"], later["status"]) == ("ok", "failed", "ok")
    assert (later["stage"], control["stage"]) == ("pruned", "control"), "which a limit on trials does not count"
    assert failed["log_tail"] == "op 17\nSegmentation fault" and "exit status -11" in failed["error"]
    assert any("exit status -11" in sentence for sentence in result.data["explanation"])
    assert result.status == "infeasible" and not result.certified
    assert result.data["shortfall"]["binding"] == ["size"]
    assert any("--max-size 1kB was not reached" in sentence for sentence in result.data["shortfall"]["sentences"])
    assert result.chosen_file is not None and result.chosen_file.exists(), "best so far is delivered"
    code, _, err = run(here, "choose", "impossible")
    assert code == 1, err


def test_a_network_that_cannot_be_exported_is_one_sentence(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def died(*arguments: Any, **settings: Any) -> Any:
        raise ExportFailed("The step convert died with exit status -11", "op 17\nSegmentation fault")

    monkeypatch.setattr(runtimes.get("litert"), "export", died)
    monkeypatch.chdir(here)
    with pytest.raises(UserError, match=r"for litert: .* exit status -11 \(its log is in broken.journal") as caught:
        pocketfit.fit("model", "shapes.npz", Budget.parse(max_size="1kB"), out="broken", allow_code=True)
    assert len(str(caught.value).splitlines()) == 1
    assert "Segmentation fault" in lines(here / "broken")[0]["log_tail"]
    with pytest.raises(UserError, match="No plan has given a file"):
        pocketfit.fit("model", "shapes.npz", Budget.parse(max_size="1kB"), out="broken", allow_code=True)


def test_two_runs_in_one_folder_are_refused(here: Path, finished: Path) -> None:
    import fcntl

    with (finished / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, err = run(here, *FIT, "-o", "out")
    assert code == 2 and "Another run is working in out" in err


class Nothing(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean((2, 3))


def test_what_python_callers_get_wrong(here: Path) -> None:
    pixels, labels = shapes(200)
    with pytest.raises(UserError, match=r"give preprocess=Preprocess"):
        pocketfit.fit(Nothing(), (pixels, labels), Budget(), out=here / "never")
    with pytest.raises(UserError, match="samples must be a Dataset"):
        pocketfit.fit(Nothing(), [pixels], Budget(), out=here / "never")
    with pytest.raises(UserError, match="metric"):
        pocketfit.fit(Nothing(), (pixels, labels), Budget(), out=here / "never", metric="loss")
    assert not (here / "never").exists()
