"""What comes in and goes out at the command line's door: output folders, locales, names, closed pipes, Ctrl-C."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from pocketfit.cli import main
from pocketfit.cli.commands import choose
from pocketfit.core.errors import UserError
from pocketfit.core.support import files
from pocketfit.measurement import channel_cost_table
from pocketfit.passes.train import fine_tune, torch_accuracy
from pocketfit.sources.data.dataset import from_arrays
from pocketfit.sources.data.splits import position
from pocketfit.sources.models.open_model import load_model
from tests.report.run import sample_run

PATHS = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
FACTORY = """
from torch import nn
def net(classes: int = 2):
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, classes))
"""
PREPARED = {"height": 8, "width": 8, "resize": "exact", "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a factory, its weights and data in several shapes, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("nets_of_door_test.py").write_text(FACTORY)
    Path("prep.json").write_text(json.dumps(PREPARED))
    names: dict[str, Any] = {}
    exec(FACTORY, names)
    torch.save(names["net"]().state_dict(), "net.pth")
    rng, labels = np.random.default_rng(0), np.arange(200) % 2
    pixels = rng.integers(0, 256, (200, 8, 8, 3), np.uint8)
    np.savez("data.npz", x=pixels, y=labels)
    np.savez("turned.npz", x=rng.normal(size=(200, 8, 8, 3)).astype(np.float32), y=labels)
    np.savez("same.npz", x=pixels[:1].repeat(200, 0), y=labels)
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("years of work")
    Path("file").write_text("a file")
    return tmp_path


NET = ("nets_of_door_test:net", "--weights", "net.pth")
FED = (*NET, "--preprocess", "prep.json")
WRITING = {
    "train": ("train", *FED),
    "fit": ("fit", *FED, "--runtime", "onnxruntime"),
    "fit --no-data": ("fit", *FED, "--no-data"),
    "apply": ("apply", "nowhere.json", *FED),
    "sensitivity": ("sensitivity", *FED),
    "explain": ("explain", *FED),
}


def invoked(*arguments: str) -> Result:
    return CliRunner().invoke(main.main, list(arguments))


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    for word in words:
        assert word in line
    assert not Path("out").exists() and not list(Path.cwd().glob("crash-*"))


def python(*arguments: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    given = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=False, env=given, cwd=folder)


# --- output folders: found first, before a model or data are looked for ---


@pytest.mark.parametrize("verb", WRITING)
def test_an_output_folder_that_cannot_be_used_is_found_first(here: Path, verb: str) -> None:
    before = sorted(str(path) for path in here.rglob("*"))
    data = () if "--no-data" in WRITING[verb] else ("--data", "nowhere.npz")
    for out, words in {
        "file": ("file is a file", "give another output folder"),
        "file/below": ("file/below cannot be written", "file is a file"),
        "x" * 300: ("cannot be written (File name too long)",),
        "mine": ("mine holds something else", "thesis.tex", "nothing was changed: give another output folder"),
        "out\udcff": ("The name out\\xff is not UTF-8",),
    }.items():
        refused(invoked(*WRITING[verb], *data, "-o", out), *words)
    assert sorted(str(path) for path in here.rglob("*")) == before


@pytest.mark.parametrize("verb", WRITING)
def test_no_rights_and_a_full_disk_are_found_first(here: Path, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = () if "--no-data" in WRITING[verb] else ("--data", "nowhere.npz")
    for number in (errno.EACCES, errno.ENOSPC, errno.EROFS):

        def full(*words: Any, number: int = number) -> None:
            raise OSError(number, os.strerror(number), "out")

        monkeypatch.setattr(files, "_probe", full)
        refused(
            invoked(*WRITING[verb], *data, "-o", "out/deeper"), f"out/deeper cannot be written ({os.strerror(number)})"
        )


def test_costs_overwrites_nothing_but_costs(here: Path) -> None:
    for out, words in {
        "mine": ("mine is a folder", "give a file"),
        "file": ("file is there already and something else",),
        "file/below": ("cannot be written", "file is a file"),
        "y" * 300: ("File name too long",),
    }.items():
        refused(invoked("costs", *NET, "-o", out), *words)
    refused(invoked("costs", *NET, "--cache", "file"), "file cannot be written")
    files.check_file(Path("new.json"), ("full_ms",))
    Path("old.json").write_text('{"full_ms": 1, "held_out": {}}')
    files.check_file(Path("old.json"), ("full_ms", "held_out"))
    assert Path("file").read_text() == "a file" and not Path("new.json").exists()


def test_what_the_system_says_later_is_a_sentence_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: Exception) -> Result:
        def fail(*words: Any, **more: Any) -> None:
            raise error

        monkeypatch.setattr(choose, "choose", fail)
        return invoked("choose", "out")

    refused(fails(OSError(errno.ENOSPC, "No space left on device", "journal.jsonl")), "journal.jsonl: No space left")
    refused(fails(MemoryError()), "The memory is not enough")
    assert fails(FileNotFoundError(errno.ENOENT, "No such file", "ours")).exit_code == 3


# --- samples, labels and metrics: before anything is trained or written ---


def test_what_cannot_be_trained_on_is_said_before_the_training(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine_tune, "transfer", None)
    arrays = dict(np.load("data.npz"))
    x, y = arrays["x"], arrays["y"]
    contents = from_arrays(x, y).listing.contents
    rows = [row for row in range(100) if position(contents[row], 0) > 0.5][:4]  # all in the train split
    np.savez("no_val.npz", x_train=x[rows], y_train=y[rows], x_test=x[100:], y_test=y[100:])
    for data, words in {
        "turned.npz": ("[8, 8, 3] a sample", "takes [3, 8, 8]", "x.transpose(0, 3, 1, 2)"),
        "same.npz": ("validation split is empty", "only 1 is different"),
        "no_val.npz": ("split is empty: 4 samples are too few",),
    }.items():
        refused(invoked("train", *FED, "--data", data, "-o", "out"), *words)


@pytest.mark.parametrize("verb", ["fit", "sensitivity", "explain", "apply"])
def test_samples_of_another_shape_get_their_mend_from_every_verb(here: Path, verb: str) -> None:
    Path("nowhere.json").write_text('{"plan_version": 1, "passes": [], "export": {"runtime": "onnxruntime"}}')
    result = invoked(*WRITING[verb], "--data", "turned.npz", "-o", "out")
    refused(result, "float arrays have [8, 8, 3]", "x.transpose(0, 3, 1, 2)")


def test_a_trained_model_is_kept_whatever_happens_behind(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: Any, **more: Any) -> float:
        raise UserError("a picture is gone")

    monkeypatch.setattr(torch_accuracy, "accuracy", fail)
    result = invoked("train", *FED, "--data", "data.npz", "-o", "model", "--epochs", "0.1")
    assert result.exit_code == 2 and "The model is in model, but its accuracy" in result.stderr
    assert load_model("model", allow_code=True).labels == ("0", "1")
    assert sorted(path.name for path in here.glob(".*")) == [], "no cache stays behind"


def test_a_metric_that_cannot_score_is_called_one(here: Path) -> None:
    Path("metrics_of_door_test.py").write_text("def half(outputs, labels):\n    return 0.5\n")
    given = (*WRITING["fit"], "--data", "data.npz", "-o", "out")
    for metric, words in {
        "metrics_of_door_test:half": ("The metric 'metrics_of_door_test:half' gave scores []",),
        ":": ("There is no metric ':'", "balanced-accuracy"),
        ".:x": ("There is no metric '.:x'",),
    }.items():
        refused(invoked(*given, "--metric", metric), *words)


def test_numbers_and_names_that_are_none(here: Path) -> None:
    for option, value in (("--epochs", "inf"), ("--width", "nan"), ("--seed", "-1"), ("--seed", "9" * 30), ("-o", "")):
        result = invoked("train", "mobilenet_v2", "--data", "data.npz", "-o", "out", option, value)
        assert result.exit_code == 2 and "Error: Invalid value" in result.stderr and not Path("out").exists()
    Path("twice.txt").write_text("0\n0\n")
    Path("none.txt").write_text("\n")
    given = (*WRITING["fit"], "--data", "data.npz", "-o", "out", "--labels")
    refused(invoked(*given, "twice.txt"), "'0' stands for several outputs")
    refused(invoked(*given, "none.txt"), "none.txt holds no label")


# --- a run that is over ---


@pytest.fixture
def run(here: Path) -> Path:
    """A finished run: a journal with made-up figures (fixtures, not measurements)."""
    return sample_run.write(here / "done")  # type: ignore[no-any-return]


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"schema_version": 0}', None])
def test_report_writes_a_broken_result_again(run: Path, broken: str | None) -> None:
    path = run / "result.json"
    path.unlink() if broken is None else path.write_text(broken)
    result = invoked("report", "done", "--no-open")
    assert result.exit_code == 0 and (run / "report.html").is_file()
    assert json.loads(path.read_text()) == json.loads(invoked("choose", "done", "--json").stdout)


def test_choose_minds_no_broken_plan_and_no_pipe(run: Path) -> None:
    (run / "plan.json").write_text("{")
    assert invoked("choose", "done").exit_code == 0
    (run / "journal.jsonl").unlink()
    os.mkfifo(run / "journal.jsonl")
    for verb in ("choose", "report"):
        refused(invoked(verb, "done"), "is not the output folder of a run")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no /dev/full")
def test_a_reader_that_has_enough_and_a_full_disk_behind_stdout(run: Path) -> None:
    """`choose | head -1` has the exit code of the limits; what can't be written is one sentence."""
    shell = (
        f"{sys.executable} -m pocketfit choose done --max-size 1kB | head -1; echo ${{PIPESTATUS[0]}}\n"
        f"{sys.executable} -m pocketfit choose done | true; echo ${{PIPESTATUS[0]}}\n"
        f"{sys.executable} -m pocketfit choose done --json >/dev/full; echo $?\n"
    )
    environment = {**os.environ, "PYTHONPATH": PATHS}
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.splitlines()[1:] == ["1", "0", "2"]
    assert done.stderr == "The result can't be written to stdout: No space left on device\n"


# --- locales and names ---


def test_every_name_is_utf8_in_any_locale(here: Path) -> None:
    """In the C locale without Python's UTF-8 mode, whose names of files are ASCII."""
    place = here / "Größe 测试"
    place.mkdir()
    for number, name in enumerate(("écureuil", "chat noir")):
        (place / "my photos" / name).mkdir(parents=True)
        for seed in range(60):
            Image.new("RGB", (8, 8), (seed, 99 * number, 7)).save(place / "my photos" / name / f"é{seed}.png")
    for name in ("net.pth", "prep.json", "nets_of_door_test.py"):
        shutil.copy(name, place)
    shutil.copy("net.pth", place / "poids é.pth")
    given = ("train", NET[0], "--weights", "poids é.pth", "--preprocess", "prep.json", "--data", "my photos")
    done = python("-m", "pocketfit", *given, "-o", "modèle", "--epochs", "0.1", folder=place, **C_LOCALE)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode("utf-8").startswith("modèle: nets_of_door_test:net for 2 classes")
    assert json.loads((place / "modèle/model.json").read_text(encoding="utf-8"))["labels"] == ["chat noir", "écureuil"]


def test_weights_under_a_name_that_is_not_utf8_are_no_damaged_file(here: Path) -> None:
    name = os.fsdecode(b"na\xefve.pth")
    shutil.copy("net.pth", name)
    result = invoked("inspect", NET[0], "--weights", name, "--input-shape", "3x8x8", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["architecture"] == NET[0]


def test_a_class_whose_name_is_not_utf8_is_trained(here: Path) -> None:
    for number, name in enumerate((b"caf\xe9", b"tea")):
        folder = Path("photos") / os.fsdecode(name)
        folder.mkdir(parents=True)
        for seed in range(60):
            Image.new("RGB", (8, 8), (seed, 99 * number, 7)).save(folder / os.fsdecode(b"\xff%d.png" % seed))
        (folder / os.fsdecode(b"\xfe.png")).write_bytes(b"broken")
    result = invoked("train", *FED, "--data", "photos", "-o", "model", "--epochs", "0.1")
    assert result.exit_code == 0, result.output
    assert "caf\\xe9/\\xfe.png (" in result.stderr
    assert load_model("model", allow_code=True).labels == ("caf\\xe9", "tea")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As containers start them: no HOME, no entry for their number."""

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    said: list[str] = []
    watch: Any = type("Watch", (), {"say": staticmethod(said.append)})
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    folder = channel_cost_table.cache_folder(watch)
    assert folder.parent.is_dir() and os.access(folder.parent, os.W_OK)
    assert said == [f"The home folder can't be written: tables of costs are kept in {folder}."]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert channel_cost_table.cache_folder(watch) == tmp_path / "pocketfit" / "costs" and len(said) == 1


# --- Ctrl-C ---


def test_ctrl_c_while_it_loads() -> None:
    """Before click is there, and in the middle of torch: 130, and no traceback."""
    for module in ("click", "torch.nn"):
        code = f"""
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
sys.argv = ["pocketfit", "inspect", "mobilenet_v2"]
runpy.run_module("pocketfit", run_name="__main__")
"""
        done = python("-c", code)
        assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"Stopped.\n"), module
