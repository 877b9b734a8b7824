"""What a further limit, runtime and pass cost, in files that are touched; then the main job with all three.

A copy of the source tree is changed as docs/extending.md says, and `python -m pocketfit` is run from there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pocketfit

pytestmark = pytest.mark.slow

PACKAGE = Path(pocketfit.__file__).parent
# Each change: a file -> its new text, or pairs (what stands there, what is to stand there).
Change = dict[str, str | tuple[tuple[str, str], ...]]

LIMIT: Change = {
    "core/quantities.py": (
        (
            "_ROWS = (\n",
            """_ROWS = (
    Quantity(
        name="kernels",
        title="Kernels",
        measurement="kernel_count",
        unit="kernels",
        units={"": 1.0},
        example="40",
        meaning="How many kernels run for one image: 40.",
        exact=True,
        relative=False,
    ),
""",
        ),
    ),
    "measurement/kernel_count.py": '''"""How many kernels a file runs."""

from pathlib import Path

from pocketfit import runtimes
from pocketfit.core.artifact import Artifact
from pocketfit.core.measurement import Measurement


def kernel_count(artifact: Artifact, threads: int, processes: int) -> dict[str, Measurement]:
    found = len(runtimes.get(artifact.runtime).inspect(Path(artifact.path)).ops)
    return {"kernel_count": Measurement(quantity="kernel_count", unit="kernels", value=found)}
''',
    "search/run/file_quantities.py": (
        ("from pocketfit.measurement import memory\n", "from pocketfit.measurement import kernel_count, memory\n"),
        ("= (sizes, footprint, flash_and_ram)\n", "= (sizes, footprint, flash_and_ram, kernel_count.kernel_count)\n"),
    ),
}

PASS: Change = {
    "core/plan/rewrite.py": (
        (
            "\n\nRewriteSettings = Resolution | Piecewise | Fold\n",
            '''

@dataclass(frozen=True)
class Lift:
    """Add a constant to the bias of the last linear layer: every answer moves alike."""

    FACTS: ClassVar[PassFacts] = PassFacts(kind="lift", words="answers lifted")

    by: Annotated[float, Between(0, 10)] = 1.0

    def __post_init__(self) -> None:
        check_rules(self)

    @property
    def code(self) -> str:
        return f"lift{self.by:g}"


RewriteSettings = Resolution | Piecewise | Fold | Lift
''',
        ),
        (
            "from typing import ",
            "from typing import Annotated\n\nfrom pocketfit.core.support.rules import Between\nfrom typing import ",
        ),
    ),
    "passes/rewrite/lift.py": '''"""Answers that are all moved by a constant."""

import copy
from dataclasses import replace

import torch
from torch import nn

from pocketfit.core.model import Model
from pocketfit.core.plan.rewrite import Lift
from pocketfit.sources.models.fingerprint import fingerprint


def apply(model: Model, settings: Lift) -> Model:
    network = copy.deepcopy(model.network)
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        last.bias += settings.by
    return replace(model, network=network, sha256=fingerprint(network))
''',
    "search/run/pass_table.py": (
        ("import Fold, Piecewise, Resolution\n", "import Fold, Lift, Piecewise, Resolution\n"),
        (
            "PASSES: Mapping",
            """def _lift(settings: Lift, given: Given) -> Model:
    from pocketfit.passes.rewrite import lift

    return lift.apply(given.model, settings)


PASSES: Mapping""",
        ),
        (
            "    QuantTrain: Pass(_quant_train),\n",
            "    QuantTrain: Pass(_quant_train),\n    Lift: Pass(_lift, quick=lambda settings: True),\n",
        ),
    ),
}

RUNTIME: Change = {
    "core/plan/runtime_list.py": (('    "torch": Listed(', '    "other": Listed(".other"),\n    "torch": Listed('),),
    "runtimes/other/__init__.py": "",
    "runtimes/other/in_app.py": (PACKAGE / "runtimes/onnxruntime/in_app.py").read_text(),
    "runtimes/other/runtime.py": '''"""ONNX Runtime under another name, whose files end in .other."""

from dataclasses import replace
from pathlib import Path

from pocketfit.core.plan.rewrite import Lift
from pocketfit.runtimes.onnxruntime import runtime as theirs
from pocketfit.runtimes.onnxruntime.runtime import *
from pocketfit.runtimes.onnxruntime.runtime import (
    ACCEPTS, APP_PACKAGE, ARENA, GATHER, HOW, LAYER_OUTPUTS, LAYER_OUTPUTS_DIFFER, LIBRARY, PACKAGES, SOURCES,
    inspect, load, probe, profile, tensors_behind,
)

NAME, EXTRA, EXTENSION = "other", "other", ".other"


def why_not(plan, signature):
    return theirs.why_not(_as_theirs(plan), signature)


def recipes():
    return tuple(replace(each, runtime=NAME) for each in theirs.recipes())


def prelude(model):
    return (Lift(2.0),)


def export(model, plan, calibration, path, *, work):
    made = theirs.export(model, _as_theirs(plan), calibration, Path(path).with_suffix(".onnx"), work=work)
    Path(made.path).replace(path)
    return replace(made, path=str(path), runtime=NAME, plan=plan)


def _as_theirs(plan):
    return replace(plan, export=replace(plan.export, runtime="onnxruntime"))
''',
}


def carried_out(change: Change, package: Path) -> None:
    for name, new in change.items():
        path = package / name
        if isinstance(new, str):
            assert not path.exists()
            path.parent.mkdir(exist_ok=True)
            path.write_text(new)
            continue
        text = path.read_text()
        for before, after in new:
            assert text.count(before) == 1, (name, before)
            text = text.replace(before, after)
        path.write_text(text)


def test_each_touches_few_files() -> None:
    assert len(LIMIT) <= 3 and len(PASS) <= 3
    assert [name for name in RUNTIME if not name.startswith("runtimes/other/")] == ["core/plan/runtime_list.py"]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the changed tree, a network, its weights and data of two classes."""
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(PACKAGE, folder / "tree" / "pocketfit", ignore=shutil.ignore_patterns("__pycache__"))
    for change in (LIMIT, PASS, RUNTIME):
        carried_out(change, folder / "tree" / "pocketfit")
    (folder / "grown_net.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(),"
        " nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))\n"
    )
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    torch.save(net.state_dict(), folder / "net.pth")
    (folder / "prep.json").write_text(json.dumps({"height": 16, "width": 16, "resize": "exact"}))
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.integers(0, 256, (160, 16, 16, 3)).astype(np.uint8), y=np.arange(160) % 2)
    return folder


def pocketfit_there(grown: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(grown / "tree"), str(grown), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-m", "pocketfit", *words]
    return subprocess.run(command, cwd=grown, env=environment, capture_output=True, text=True, check=False)


def test_the_main_job_uses_all_three(grown: Path) -> None:
    assert "--max-kernels" in pocketfit_there(grown, "fit", "--help").stdout
    given = ("grown_net:net", "--weights", "net.pth", "--preprocess", "prep.json", "--data", "data.npz")
    limits = ("--max-kernels", "60", "--max-size", "0.9x", "--max-trials", "3", "--prefer", "size")
    done = pocketfit_there(grown, "fit", *given, "--runtime", "other", *limits, "-o", "out", "--json")
    assert done.returncode in (0, 1), done.stderr
    result = json.loads(done.stdout)
    limit = next(each for each in result["limits"] if each["quantity"] == "kernels")
    trials = [json.loads(line) for line in (grown / "out/journal.jsonl").read_text().splitlines()]
    tried = [line for line in trials if line["kind"] == "trial"]
    assert {line["plan"]["export"]["runtime"] for line in tried} == {"other"}
    assert all(line["status"] == "ok" and line["measurements"]["kernel_count"]["value"] > 3 for line in tried)
    assert any([p["pass"] for p in line["plan"]["passes"]] == ["lift"] for line in tried)
    assert limit["met"] and "answers lifted" in (grown / "out/report.html").read_text()
    assert "Kernels" in (grown / "out/report.html").read_text()
    proof = subprocess.run(
        [sys.executable, "out/bundle/run.py", "--selftest"], cwd=grown, capture_output=True, text=True, check=False
    )
    assert proof.returncode == 0 and "PASS" in proof.stdout, proof.stdout + proof.stderr
