"""The commands of each page in docs/tasks/ run as they stand there, in a folder with a small network and small data."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pocketfit
from benchmarks.sound import words
from pocketfit.core.model import Model
from pocketfit.core.preprocess import MFCC
from pocketfit.core.task.task_list import TASKS
from pocketfit.measurement import latency
from pocketfit.sources.data.dataset import Dataset, from_arrays, open_data
from pocketfit.sources.models.open_model import model_from_module
from pocketfit.zoo.ds_cnn import ds_cnn_s
from tests.end_to_end.test_sound import Windows, motions
from tests.tasks.examples import SIDE, data_of, model_of

PAGES = Path(__file__).parents[2] / "docs" / "tasks"
COMMANDS = re.compile(r"```console\n(.*?)```", re.DOTALL)


def _images(folder: Path, names: list[str]) -> None:
    draw = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(folder / name)


def _network(name: str, folder: Path) -> None:
    """The task's example as network.onnx, and how it is fed as prep.json."""
    model = model_of(name)
    (folder / "prep.json").write_text(json.dumps(model.preprocess.to_json()))
    _export(model, from_arrays(np.zeros((8, SIDE, SIDE, 3), np.uint8)), folder / "network.onnx", name)


def _export(model: Model, data: Dataset, file: Path, task: str) -> None:
    plan = pocketfit.Plan((), pocketfit.ExportSettings("onnxruntime"))
    made = pocketfit.apply(plan, model, data, file.parent / f"made-{file.stem}", task=task)
    shutil.copy(made.artifact.path, file)


def _embedding(folder: Path) -> None:
    _images(folder, [f"people/{who}/{n}.png" for who in ("ann", "bob", "cy", "dee") for n in range(60)])
    _images(folder, [f"images/{n}.png" for n in range(200)])
    pairs = [f"images/{n}.png,images/{n + 1}.png,{n % 4 // 2},test" for n in range(0, 100, 2)]
    (folder / "pairs.csv").write_text("\n".join(["path_a,path_b,same,split", *pairs]))


def _detection(folder: Path) -> None:
    data_of("detection", folder, labelled=True)
    (folder / "coco").rename(folder / "shapes")
    _images(folder, [f"images/{n}.png" for n in range(200)])


def _sound(folder: Path) -> None:
    for name in ("iso", "otu"):
        for row in range(60):
            for path in (folder / "words" / name / f"{row}.wav", folder / "recordings" / f"{name}{row}.wav"):
                path.parent.mkdir(parents=True, exist_ok=True)
                words.save(path, words.recording(name, np.random.default_rng(row)))
    words.save(folder / "new.wav", words.recording("iso", np.random.default_rng(99)))
    data = open_data(motions(folder, True))
    np.save(folder / "window.npy", np.zeros((1, 3, 64), np.float32))
    keywords = model_from_module(ds_cnn_s(2).eval(), preprocess=MFCC)
    _export(keywords, open_data(folder / "words"), folder / "network.onnx", "classification")
    windows = model_from_module(Windows().eval(), input_shape=(3, 64))
    _export(windows, data, folder / "motion.onnx", "classification")


# page -> what makes its data; the network of a task is that of tests/tasks/examples.py
FOLDERS = {"detection": _detection, "embedding": _embedding, "sound": _sound}


def test_every_page_of_a_task_has_its_folder_here() -> None:
    assert (
        {page.stem for page in PAGES.glob("*.md") if COMMANDS.search(page.read_text())}
        <= set(FOLDERS)
        <= {*TASKS, "sound"}
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_the_commands_of_a_page_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FOLDERS[name](tmp_path)
    if name in TASKS:
        _network(name, tmp_path)
    monkeypatch.chdir(tmp_path)
    commands = [line for block in COMMANDS.findall((PAGES / f"{name}.md").read_text()) for line in block.splitlines()]
    assert commands
    for command in commands:
        parts = [found for word in shlex.split(command) for found in (sorted(map(str, Path().glob(word))) or [word])]
        program = [sys.executable, "-c", BRIEF] if parts[0] == "pocketfit" else [sys.executable]
        more = ["--max-trials", "2"] if parts[:2] == ["pocketfit", "fit"] else []
        done = subprocess.run(
            [*program, *parts[1:], *more], capture_output=True, text=True, check=False, env=dict(os.environ)
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


BRIEF = f"""
from {latency.__name__} import Effort
import {latency.__name__} as latency, sys
for effort in ("QUICK", "CAREFUL"):
    setattr(latency, effort, Effort(sessions=2, seconds=0.02, min_rounds=2, max_rounds=3))
from pocketfit.cli.main import main
sys.argv[0] = "pocketfit"
main()
"""
