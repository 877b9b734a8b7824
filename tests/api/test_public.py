"""What `import pocketfit` offers: each name is there, typed and documented, and does what the command line does."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import pocketfit
from pocketfit.api.inspect import Layers
from pocketfit.cli.main import main
from pocketfit.core.artifact import Contents
from pocketfit.measurement import latency

FUNCTIONS = ("apply", "compare", "costs", "explain", "export", "fit", "inspect", "measure", "sensitivity")
OTHERS = {
    *("Budget", "ExportSettings", "Plan", "PocketfitError", "Preprocess", "Result", "UserError", "__version__"),
    *(
        "CorrectBias",
        "Equalize",
        "Fold",
        "Piecewise",
        "Prune",
        "QuantTrain",
        "Recalibrate",
        "Resolution",
        "Round",
        "Sparsify",
        "Train",
    ),
    *("from_arrays", "load_model", "model_from_module", "open_data", "open_model", "save_model"),
}
PREPROCESS = pocketfit.Preprocess(height=16, width=16, resize="exact")


def parts(annotation: Any) -> list[Any]:
    """An annotation and all that stands in it; numpy leaves the shape of an array open."""
    if typing.get_origin(annotation) is np.ndarray:
        return [annotation]
    return [annotation, *(part for inside in typing.get_args(annotation) for part in parts(inside))]


def test_the_names_are_these() -> None:
    assert set(pocketfit.__all__) == {*FUNCTIONS, *OTHERS}
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        _ = pocketfit.fitt


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_door_is_typed_and_each_parameter_is_documented(name: str) -> None:
    function = getattr(pocketfit, name)
    assert isinstance(function, FunctionType), "a folder of the same name must not hide it"
    known = {"nn": nn, **vars(inspect.getmodule(function))}
    from pocketfit.analysis.pruning.plan_for_target import Target
    from pocketfit.analysis.pruning.sensitivity import ChannelTable

    hints = typing.get_type_hints(function, {**known, "Target": Target, "ChannelTable": ChannelTable})
    signature = inspect.signature(function)
    assert set(hints) == {*signature.parameters, "return"}
    assert not [parameter for parameter, hint in hints.items() if Any in parts(hint)]
    told = inspect.getdoc(function) or ""
    assert [parameter for parameter in signature.parameters if parameter not in told and parameter != "watch"] == []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, tuple[np.ndarray, np.ndarray]]:
    """A small network, its ONNX file made by `apply`, and images of two classes."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    network, rng = nn.Sequential(*layers), np.random.default_rng(0)
    images = rng.integers(0, 256, (120, 16, 16, 3)).astype(np.uint8)
    data = images, np.arange(120) % 2
    plan = pocketfit.Plan((), pocketfit.ExportSettings("onnxruntime"))
    out = tmp_path_factory.mktemp("applied")
    done = pocketfit.apply(plan, network, data, out, preprocess=PREPROCESS)
    return network, Path(done.artifact.path), data


def test_from_a_network_to_figures(
    made: tuple[nn.Module, Path, tuple[np.ndarray, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    brief = latency.Effort(sessions=2, seconds=0.05, min_rounds=3, max_rounds=5)
    monkeypatch.setattr(latency.latency, "__kwdefaults__", {**latency.latency.__kwdefaults__, "effort": brief})
    network, file, data = made
    measured = pocketfit.measure(file, samples=data, preprocess=PREPROCESS)
    assert measured.size_bytes == file.stat().st_size and measured.operators
    assert measured.measurements["latency_ms"].value and 0 <= (measured.measurements["accuracy"].value or -1) <= 1
    compared = pocketfit.compare(file, file, data, preprocess=PREPROCESS)
    assert compared.agreement == 1.0
    of_file = pocketfit.inspect(file)
    of_network = pocketfit.inspect(network, preprocess=PREPROCESS)
    assert isinstance(of_file, Contents) and isinstance(of_network, Layers)
    assert sum(op.macs for op in of_file.ops) == of_network.totals.macs


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("measure", "{}", "--metric", "nosuch:x"), "There is no module nosuch"),
        (("measure", "{}"), "Nothing says how images are prepared"),
        (("compare", "{}", "{}"), "Nothing says how images are prepared"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_before_data_are_read(
    made: tuple[nn.Module, Path, tuple[np.ndarray, np.ndarray]], words: tuple[str, ...], sentence: str
) -> None:
    """Data may be large, and are hashed when they are opened: these are not even there."""
    _, file, _ = made
    done = CliRunner().invoke(main, [*(word.format(file) for word in words), "--data", "large.npz"])
    assert done.exit_code == 2 and sentence in done.stderr
