"""Pruned networks, handed over: loaded in a process that has no pocketfit they answer alike, and they train on.

Every network of the zoo and of the table of brought networks, and networks that came from .onnx files; a new row joins
by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.prune import Prune
from pocketfit.core.preprocess import Preprocess
from pocketfit.handover.folder import SOURCE, hand_over
from pocketfit.handover.source import source_of
from pocketfit.passes.graph.layers.layered import OTHERWISE, layered
from pocketfit.passes.prune import prune_channels
from pocketfit.sources.models.check_network import example
from pocketfit.sources.models.open_model import model_from_module, open_model
from pocketfit.zoo import ARCHITECTURES
from tests.brought.networks import NETWORKS, opened
from tests.everything import everything
from tests.handover import alone
from tests.sources.models.onnx_zoo import write, zoo_network

# Rows that the suite of every day runs; the others take minutes together.
QUICK = {
    *("in place", "tied weights", "transformer encoder", "vit", "convolutions then lstm", "mask", "googlenet"),
    *("train returns nothing", "dict of outputs", "weight standardization", "transposed convolutions"),
}
ROWS = [name for name, row in NETWORKS.items() if not {"open", "trace"} & set(row.refused)]
ONNX = ("mobilenet_v3_small", "attention", "channel shuffle", "gru of two layers")
SLOW = (pytest.mark.slow, everything)
CASES = [
    *(pytest.param(f"zoo {name}", marks=SLOW) for name in ARCHITECTURES),
    *(pytest.param(name, marks=() if name in QUICK else SLOW) for name in ROWS),
    *(pytest.param(f"onnx {name}", marks=() if name == "attention" else SLOW) for name in ONNX),
]


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen[str]]:
    """The process that has no pocketfit."""
    with subprocess.Popen(
        [sys.executable, alone.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.home()
    ) as started:
        yield started
        assert started.stdin is not None
        started.stdin.close()


def model_of(case: str, folder: Path) -> Model:
    kind, _, name = case.partition(" ")
    if kind == "zoo":
        return from_zoo(name)
    if kind != "onnx":
        return opened(case)
    pytest.importorskip("onnxscript")
    model = from_zoo(name) if name in ARCHITECTURES else opened(name)
    write(model.network, model.signature.inputs[0].with_batch(1)[1:], folder / "net.onnx")
    return open_model(str(folder / "net.onnx"), preprocess=model.preprocess)


def from_zoo(name: str) -> Model:
    network, (_, height, width) = zoo_network(name)
    return model_from_module(network, preprocess=Preprocess(height=height, width=width, resize="none"))


def noise(model: Model, count: int) -> tuple[Tensor, ...]:
    return tuple(example(spec.with_batch(count), spec.dtype) for spec in model.signature.inputs)


@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")  # torch's, of recurrent layers
@pytest.mark.parametrize("case", CASES)
def test_a_pruned_network_runs_and_trains_without_pocketfit(
    case: str, process: subprocess.Popen[str], tmp_path: Path
) -> None:
    model = model_of(case, tmp_path)
    pruned = prune_channels.apply(model, Prune(0.5, multiple=4))
    handed = hand_over(pruned, tmp_path / "handed", unpruned=model.network)
    assert SOURCE in handed.files and "pocketfit" not in (handed.folder / SOURCE).read_text().partition('"""\n')[2]
    narrower = [row.layer for row in prune_channels.kept(model, pruned) if row.after < row.before]
    assert bool(narrower) <= any("was" in row for row in handed.layers)
    inputs, told = noise(pruned, 4), OTHERWISE not in handed.findings
    facts = {f"input_{i}": x for i, x in enumerate(inputs)}
    with torch.no_grad():
        facts |= {f"answer_{i}": x for i, x in enumerate(pytree.tree_leaves(pruned.network(*inputs)))}
        if told:  # dropout draws the same numbers, batch norms see the same batch
            pruned.network.train()
            torch.manual_seed(0)
            facts |= {f"training_{i}": x for i, x in enumerate(pytree.tree_leaves(pruned.network(*inputs)))}
    save_file({name: x.clone().contiguous() for name, x in facts.items()}, handed.folder / "given.safetensors")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{handed.folder}\n")
    process.stdin.flush()
    said = process.stdout.readline().strip()
    assert not said, said.replace("\\n", "\n")


def test_without_source_the_program_and_the_widths_are_there(tmp_path: Path) -> None:
    class Cond(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.cond(self.fc.weight.sum() > 0, lambda x: x * 2.0, lambda x: x * 1.0, (x,)))

    model = model_from_module(Cond().eval(), preprocess=Preprocess(resize="none"), input_shape=(8,))
    handed = hand_over(model, tmp_path / "handed")
    assert SOURCE not in handed.files and not (handed.folder / SOURCE).exists()
    assert any(s.startswith("No network.py was written: ") and "graph" in s for s in handed.findings)
    rows = json.loads((handed.folder / "layers.json").read_text())["layers"]
    assert {"tensor": "fc.weight", "layer": "Linear", "shape": [3, 8]} in rows
    (given,) = noise(model, 5)
    program = torch.export.load(handed.folder / "network.pt2").module()
    assert torch.equal(program(given), model.network(given))


def test_other_behaviour_in_training_is_said(tmp_path: Path) -> None:
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) / 2 if self.training else self.fc(x)

    model = model_from_module(Halved().eval(), preprocess=Preprocess(resize="none"), input_shape=(8,))
    assert OTHERWISE in hand_over(model, tmp_path / "handed").findings


def test_names_from_elsewhere_are_text_and_never_code(tmp_path: Path) -> None:
    """Names of layers come from files of strangers: they stand in quotes."""
    network = nn.Sequential()
    network.add_module("a');import os;('", nn.Linear(8, 8))
    network.add_module("class", nn.ReLU())
    network.add_module("self", nn.Linear(8, 3))
    model = model_from_module(network.eval(), preprocess=Preprocess(resize="none"), input_shape=(8,))
    model = replace(model, origin=replace(model.origin, name='net"""\nimport os\n"""'))
    handed = hand_over(model, tmp_path / "handed")
    assert SOURCE in handed.files and "\nimport os" not in (handed.folder / SOURCE).read_text()


def test_the_source_has_a_line_for_each_layer() -> None:
    model = opened("in place")
    found = layered(model.network, model.signature)
    text = source_of(found, "a network", {"x": (3, 32, 32)})
    for name, call in found.layers.items():
        assert f"self.put({name!r}, {call.code})" in text.replace('"', "'")


def test_what_torch_export_cannot_follow_is_refused_and_nothing_written(tmp_path: Path) -> None:
    model = opened("branch on values")
    with pytest.raises(UserError, match=r"torch\.export cannot follow"):
        hand_over(model, tmp_path / "handed")
    assert not (tmp_path / "handed").exists()
