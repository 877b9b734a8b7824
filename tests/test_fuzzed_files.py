"""Every file that pocketfit reads back, changed a thousand times: it is read, or refused in one sentence.

A slow twin of each test takes ten thousand. Manifests: tests/bundle/test_fuzzed_manifests.py.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from itertools import count as count_up
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save
from torch import nn

from pocketfit.cli import terminal
from pocketfit.core.errors import UserError
from pocketfit.core.plan.plan import Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.json_file import load
from pocketfit.report.page.words import plan_words
from pocketfit.report.run.render import render
from pocketfit.report.run.run_data import report_data
from pocketfit.search import journal
from pocketfit.search.decide.result import compose
from pocketfit.search.decide.result_file import read_result
from pocketfit.sources.input_contract import read_preprocess
from pocketfit.sources.models.open_model import load_model, model_from_module, save_model
from tests.mutations import COUNTS, as_text, changed, mutated, spoilt, survived
from tests.report.run import sample_ladder, sample_run

SHOWN_EACH, DRAWN_EACH = 10, 25  # pages take longer than files do to read


@pytest.mark.parametrize("count", COUNTS)
def test_plans(count: int, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    sound = [json.loads(json.dumps(trial.plan.to_json())) for trial in (*sample_run.trials(), *sample_ladder.trials())]

    def read() -> None:
        plan = Plan.from_json(load(path, "plan"), str(path))
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
        assert plan.file_stem and plan_words(plan.to_json())

    seen = survived(count, tmp_path, lambda rng: path.write_bytes(mutated(rng.choice(sound), rng)), read)
    assert seen["refused"] > count / 3


@pytest.mark.parametrize("count", COUNTS)
def test_preprocess_files(count: int, tmp_path: Path) -> None:
    path, sound = tmp_path / "prep.json", Preprocess().to_json()

    def read() -> None:
        contract, _ = read_preprocess(path, None)
        assert contract.at(32, 32).to_json()

    seen = survived(count, tmp_path, lambda rng: path.write_bytes(mutated(sound, rng)), read)
    assert seen["refused"] > count / 3


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("run", ["plain", "ladder"])
def test_journals(run: str, count: int, tmp_path: Path) -> None:
    """Read as choose and report read them; one line is changed, torn, doubled, or out of place."""
    module: Any = sample_run if run == "plain" else sample_ladder
    kept = {0, 1, 2, 4, module.CHOSEN}  # trials: fewer are read sooner
    lines = [line for line in module.lines() if line["kind"] != "trial" or line["number"] in kept]
    path = tmp_path / "journal.jsonl"
    result, budget = module.result(), sample_run.budget()
    texts = [as_text(line) for line in lines]

    def write(rng: random.Random) -> None:
        made, number = list(texts), rng.randrange(len(texts))
        made[number] = mutated(lines[number], rng).replace(b"\n", b" ")
        raw = b"\n".join(made) + b"\n"
        path.write_bytes(spoilt(raw, rng) if rng.random() < 0.1 else raw)

    turns = count_up()

    def read() -> None:
        read_back = journal.read_lines(path)
        composed = compose(journal.digest(read_back), budget, finished=True)
        drawn = report_data(read_back, result)
        if (turn := next(turns)) % SHOWN_EACH == 0:
            terminal.show_result(composed, tmp_path)
        if turn % DRAWN_EACH == 0:
            render(drawn)

    seen = survived(count if run == "plain" else count // 2, tmp_path, write, read)
    assert seen["refused"] > seen.total() / 3 and seen["read"]


@pytest.mark.parametrize("count", COUNTS)
def test_results(count: int, tmp_path: Path) -> None:
    path, lines = tmp_path / "result.json", sample_run.lines()
    sound = [json.loads(json.dumps(sample_run.result(variant))) for variant in ("met", "infeasible", "stopped")]

    turns = count_up()

    def read() -> None:
        drawn = report_data(lines, read_result(path))
        if next(turns) % DRAWN_EACH == 0:
            render(drawn)

    seen = survived(count, tmp_path, lambda rng: path.write_bytes(mutated(rng.choice(sound), rng)), read)
    assert seen["refused"] > count / 3 and seen["read"]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()


@pytest.fixture
def folder(tmp_path: Path, network: nn.Module) -> Path:
    """A model folder with everything that may stand in one."""
    model = model_from_module(network, preprocess=Preprocess(height=8, width=8), labels=("a", "b"))
    learned = {
        "ranges": {"relu": [0.0, 1.5]},
        "sparse": ["0"],
        "patterns": {"0": "2:4"},
        "normal": {"0": [[0.0] * 4, [1.0] * 4]},
    }
    save_model(model, tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    data = {**json.loads(path.read_text()), "learned": learned, "findings": ["A finding."]}
    path.write_text(json.dumps(data))
    return tmp_path / "model"


@pytest.mark.parametrize("count", COUNTS)
def test_model_files(count: int, folder: Path, network: nn.Module) -> None:
    path = folder / "model.json"
    sound = json.loads(path.read_text())
    load_model(folder, unpruned=network)
    zoo = {**sound, "origin": {"kind": "zoo", "name": "mobilenet_v2", "arguments": {"width": 0.1, "classes": 2}}}

    def write(rng: random.Random) -> None:
        path.write_bytes(mutated(sound, rng))

    def read() -> None:
        load_model(folder, unpruned=network)

    seen = survived(count, folder, write, read)
    assert seen["refused"] > count / 3 and seen["read"]
    origins = [{**zoo, "origin": changed(zoo["origin"], random.Random(seed))} for seed in range(60)]
    for origin in origins:  # without a network in its place: it is built, and the weights don't fit it
        path.write_bytes(as_text(origin))
        with pytest.raises(UserError):
            load_model(folder)


@pytest.mark.parametrize("count", COUNTS)
def test_weights(count: int, folder: Path, network: nn.Module) -> None:
    """The header of the weights, and their bytes; the description says that they are the right ones."""
    path, told = folder / "weights.safetensors", json.loads((folder / "model.json").read_text())
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]

    def write(rng: random.Random) -> None:
        text = mutated(header, rng)
        size = len(text) if rng.random() < 0.9 else rng.choice((0, 1, 2**32, 2**63 - 1, len(text) + 9))
        made = size.to_bytes(8, "little") + text + (body if rng.random() < 0.9 else spoilt(body, rng))
        path.write_bytes(made)
        told["weights_sha256"] = hashlib.sha256(made).hexdigest()
        (folder / "model.json").write_text(json.dumps(told))

    seen = survived(count, folder, write, lambda: load_model(folder, unpruned=network))
    assert seen["refused"] > count / 3


def test_a_whole_folder_is_read(folder: Path, network: nn.Module, tmp_path: Path) -> None:
    """The sound files of this test are sound: what is refused above is refused for its change."""
    assert load_model(folder, unpruned=network).labels == ("a", "b")
    out = sample_run.write(tmp_path / "out")
    assert len(journal.read(out / "journal.jsonl").trials) == len(sample_run.SPECS)
    assert read_result(out / "result.json")["status"] == "met"
    shutil.rmtree(out)
    assert save(dict(network.state_dict()))
