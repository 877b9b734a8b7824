"""Names that stand in files call nothing that the user has not agreed to; a stranger's folder runs no code at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import pocketfit
from pocketfit.cli import main
from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support import user_code
from pocketfit.processes import child_process
from pocketfit.sources.models.open_model import model_from_module, open_model, save_model
from tests.report.run import sample_run

EVIL = "from pathlib import Path\nPath({sign!r}).write_text('it ran')\n" + (
    "from torch import nn\n"
    "def build(*given, **more):\n"
    "    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))\n"
    "class Box:\n"
    "    build = staticmethod(build)\n"
)
PATHS = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
SHADOWS = ("torch", "json", "numpy", "click", "safetensors", "__future__", "typing", "sitecustomize", "usercustomize")
DATA = ("--data", "data.npz")
THEIRS = ("evil", "stranger", "link", "nets_of_mine")
Write = Callable[["Place"], None]


class Place:
    """The user's current directory, and in it `stranger/`: a model folder somebody has sent, with code beside it."""

    def __init__(self, here: Path) -> None:
        self.here, self.stranger, self.sign = here, here / "stranger", here / "sign"

    def names(self, factory: str, folder: str = "stranger") -> None:
        path = self.here / folder / "model.json"
        data = json.loads(path.read_text())
        path.write_text(json.dumps({**data, "origin": {"kind": "factory", "name": factory, "arguments": {}}}))

    def evil(self, name: str = "stranger/evil.py") -> None:
        (self.here / name).write_text(EVIL.format(sign=str(self.sign)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model folder of the network that EVIL builds."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    model = model_from_module(network, preprocess=Preprocess(height=8, width=8), labels=("0", "1"))
    save_model(model, tmp_path_factory.mktemp("sound") / "model")
    return tmp_path_factory.getbasetemp() / "sound0" / "model"


@pytest.fixture
def place(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    shutil.copytree(folder, tmp_path / "stranger")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.integers(0, 256, (80, 8, 8, 3), np.uint8), y=np.arange(80) % 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(user_code, "_found", {})
    for name in [name for name in sys.modules if name.split(".")[0] in THEIRS]:
        monkeypatch.delitem(sys.modules, name)
    made = Place(tmp_path)
    made.evil()
    return made


def invoked(*arguments: str) -> Result:
    return CliRunner().invoke(main.main, list(arguments))


def plan(place: Place, criterion: str) -> None:
    passes = [{"pass": "prune", "ratio": 0.5, "criterion": criterion}]
    text = json.dumps({"plan_version": 1, "passes": passes, "export": {"runtime": "onnxruntime"}})
    (place.stranger / "plan.json").write_text(text)


def named(name: str, folder: str = "stranger") -> Write:
    return lambda place: place.names(name, folder)


def inside(name: str) -> Write:
    def write(place: Place) -> None:
        place.names(name)
        os.chdir(place.stranger)

    return write


def linked(place: Place) -> None:
    (place.here / "link").symlink_to(place.stranger)
    place.names("link.evil:build")


def nested(place: Place) -> None:
    shutil.copytree(place.stranger, place.stranger / "deeper" / "model")
    place.names("stranger.deeper.model.evil:build", "stranger/deeper/model")


def on_the_path(place: Place) -> None:
    place.names("evil:build")
    sys.path.append(str(place.stranger))


def zoo_teacher(place: Place) -> None:
    """The user's own network is sound, the teacher is the stranger's."""
    torch.save(pocketfit.open_model("mobilenet_v2", classes=2).network.state_dict(), place.here / "w.pth")
    place.names("evil:build")


FIT = (*DATA, "--runtime", "onnxruntime", "-o", "out")
TEACHER = ("fit", "mobilenet_v2", "--weights", "w.pth", "--teacher", "stranger", *FIT)
APPLY = ("apply", "stranger/plan.json", "mobilenet_v2", *DATA, "-o", "out")
ATTEMPTS: dict[str, tuple[Write, Sequence[str]]] = {
    "a module in the folder": (named("stranger.evil:build"), ("inspect", "stranger")),
    "the folder is the current one": (inside("evil:build"), ("inspect", ".")),
    "a function of a class": (named("stranger.evil:Box.build"), ("inspect", "stranger")),
    "the standard library": (named("os:system"), ("inspect", "stranger")),
    "builtins": (named("builtins:exec"), ("inspect", "stranger")),
    "the main module": (named("__main__:main"), ("inspect", "stranger")),
    "an installed package": (named("pip._internal.cli.main:main"), ("inspect", "stranger")),
    "torch itself": (named("torch.utils.collect_env:main"), ("inspect", "stranger")),
    "a relative name": (inside(".evil:build"), ("inspect", ".")),
    "a path": (named("stranger/evil:build"), ("inspect", "stranger")),
    "a name with spaces": (inside("evil :build"), ("inspect", ".")),
    "a name with a null byte": (inside("evil\0:build"), ("inspect", ".")),
    "a name with a call": (inside("evil:build()"), ("inspect", ".")),
    "a look-alike of a name that was typed": (named("n\u0435ts_of_mine:build"), ("inspect", "stranger")),
    "no module": (named(":build"), ("inspect", "stranger")),
    "a nested folder": (nested, ("inspect", "stranger/deeper/model")),
    "a linked folder": (linked, ("inspect", "link")),
    "a folder on the Python path": (on_the_path, ("inspect", "stranger")),
    "fit": (named("stranger.evil:build"), ("fit", "stranger", *FIT)),
    "train": (named("stranger.evil:build"), ("train", "stranger", *DATA, "-o", "out")),
    "explain": (named("stranger.evil:build"), ("explain", "stranger", *DATA)),
    "sensitivity": (named("stranger.evil:build"), ("sensitivity", "stranger", *DATA)),
    "costs": (named("stranger.evil:build"), ("costs", "stranger")),
    "a teacher": (zoo_teacher, TEACHER),
    "a plan's criterion": (lambda place: plan(place, "stranger.evil:build"), APPLY),
    "an installed criterion of a plan": (lambda place: plan(place, "torch.utils.collect_env:main"), APPLY),
    "a criterion with a path": (lambda place: plan(place, "stranger/evil:build"), APPLY),
}


def refused(place: Place, result: Result) -> str:
    """Exit code 2, one sentence, nothing on stdout, nothing ran and nothing was written."""
    assert result.exit_code == 2, (result.output, result.exception)
    (line,) = result.stderr.splitlines()
    assert result.stdout == "" and "Traceback" not in line
    assert not place.sign.exists() and not (place.here / "out").exists()
    loaded = [module for name, module in sys.modules.items() if name.split(".")[0] in THEIRS]
    assert not [module for module in loaded if getattr(module, "__file__", None)], "a folder without code is no harm"
    return line


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_strangers_files_run_no_code(name: str, place: Place) -> None:
    before, (write, arguments) = set(sys.modules), ATTEMPTS[name]
    write(place)
    line = refused(place, invoked(*arguments))
    assert "--allow-code" in line or "names no " in line or "no pruning criterion" in line
    assert not {m for m in sys.modules.keys() - before if m.startswith(("pip.", "torch.utils.collect_env"))}


@pytest.mark.parametrize("name", [name for name, (_, given) in ATTEMPTS.items() if given[0] == "inspect"])
def test_with_consent_nothing_is_taken_from_the_folder_itself(name: str, place: Place) -> None:
    """And nothing from the standard library: none of it is a factory."""
    write, arguments = ATTEMPTS[name]
    write(place)
    if name in ("an installed package", "torch itself"):  # what the user agreed to, then
        return
    refused(place, invoked(*arguments, "--allow-code"))


def test_with_consent_a_criterion_is_not_taken_from_beside_its_plan(place: Place) -> None:
    plan(place, "stranger.evil:build")
    line = refused(place, invoked(*APPLY, "--allow-code"))
    assert "beside the file that names it" in line


def test_with_consent_the_users_own_code_is_called(place: Place) -> None:
    place.evil("nets_of_mine.py")
    place.names("nets_of_mine:build")
    line = refused(place, invoked("inspect", "stranger"))
    assert 'stranger/model.json names the factory "nets_of_mine:build"' in line and "--allow-code" in line
    done = invoked("inspect", "stranger", "--allow-code", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["architecture"] == "nets_of_mine:build"
    assert place.sign.exists()
    assert str(place.here) not in sys.path, "the current directory was on the path for the call only"


def test_a_name_that_was_typed_is_consent_to_that_very_name(place: Place) -> None:
    """As a teacher, here; the model folder names the same function."""
    place.evil("nets_of_mine.py")
    place.names("nets_of_mine:build")
    options = ("--teacher", "nets_of_mine:build", *DATA, "--runtime", "onnxruntime", "-o", "out")
    result = invoked("fit", "stranger", *options, "--keep-float", "no such layer")
    assert result.exit_code == 2 and "no such layer" in result.stderr, "both were opened first"
    assert place.sign.exists()


def test_from_python(place: Place) -> None:
    place.names("stranger.evil:build")
    for call in (
        lambda: open_model("stranger"),
        lambda: pocketfit.fit("stranger", "data.npz", pocketfit.Budget(), out="out"),
        lambda: open_model("stranger", allow_code=["nets_of_mine:build"]),
    ):
        with pytest.raises(UserError, match="allow_code=True"):
            call()
    with pytest.raises(UserError, match="beside the file that names it"):
        open_model("stranger", allow_code=True)
    wanted: dict[str, Any] = {"plan_version": 1, "passes": [], "export": {"runtime": "litert"}}
    wanted["passes"] = [{"pass": "prune", "ratio": 0.5, "criterion": "stranger.evil:build"}]
    with pytest.raises(UserError, match="give allow_code=True"):
        pocketfit.Plan.from_json(wanted)
    assert pocketfit.Plan.from_json(wanted, allow_code=True).called == ("stranger.evil:build",)
    assert not place.sign.exists()


def test_a_journal_calls_no_code(place: Place) -> None:
    """Neither the metric nor a criterion that stand in it: looking at a run imports nothing."""
    out = sample_run.write(place.here / "theirs")
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    lines[0]["inputs"]["metric"] = lines[-1]["metric"] = "stranger.evil:build"
    chosen = next(line for line in lines if line.get("number") == sample_run.CHOSEN)
    chosen["plan"]["passes"][0]["criterion"] = "stranger.evil:build"
    (out / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert invoked("choose", "theirs").exit_code == 0
    assert invoked("report", "theirs").exit_code == 0
    assert not place.sign.exists()


def python(place: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=place, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **known}
    )


def shadows(place: Place) -> None:
    """Modules that bear the names of packages, and what Python runs when it starts."""
    for name in SHADOWS:
        place.evil(f"stranger/{name}.py")
    (place.stranger / "evil.pth").write_text("import evil\n")
    (place.stranger / "pyvenv.cfg").write_text("home = .\n")


def test_started_in_a_strangers_folder(place: Place) -> None:
    """By the console script, and as a module, which Python starts with the current directory on its path."""
    place.names("evil:build")
    shadows(place)
    (place.here / "bin").mkdir()
    (place.here / "bin" / "pocketfit").write_text("from pocketfit.cli.main import main\nmain()\n")
    script = str(place.here / "bin" / "pocketfit")
    for start, verb, word in (
        (("-m", "pocketfit"), "inspect", "--allow-code"),
        ((script,), "choose", "no journal.jsonl"),
    ):
        done = python(place.stranger, *start, verb, ".")
        assert (done.returncode, done.stdout) == (2, "") and word in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not place.sign.exists()


def test_child_processes_import_nothing_from_the_current_directory(place: Place) -> None:
    shadows(place)
    os.chdir(place.stranger)
    assert child_process.call("ntpath:splitext", {"p": "a.b"}, timeout_s=60) == ["a", ".b"]
    assert not place.sign.exists()
