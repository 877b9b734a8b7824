"""Networks with several inputs, and with whole numbers: described, ordered, stored, opened from .onnx, trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.plan.train import Train
from pocketfit.passes.graph.feed import call, fed
from pocketfit.passes.train import fine_tune
from pocketfit.sources.data.dataset import from_arrays
from pocketfit.sources.input_contract import read_inputs
from pocketfit.sources.models.model_folder import load_model, save_model
from pocketfit.sources.models.open_model import model_from_module, open_model
from tests.brought.networks import arrays, built, opened

TOKENS, BOTH = "token ids and a mask", "two inputs"


def test_inputs_come_in_the_order_of_the_forward() -> None:
    turned = model_from_module(built(TOKENS), input_shape="attention_mask=12:int64; input_ids=12:int64")
    assert [spec.name for spec in turned.signature.inputs] == ["input_ids", "attention_mask"]
    assert turned.signature == opened(TOKENS).signature


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("input_ids=12:int64", "takes 2 inputs .input_ids, attention_mask., and 1 is described"),
        ("input_ids=12:int64,mask=12:int64", "the forward's names"),
        ("input_ids=12:float16,attention_mask=12", "networks take float32, int64, int32, bool"),
        ("input_ids=12,input_ids=12", "names an input twice"),
        ("input_ids=0x3,attention_mask=12", "cannot be read"),
    ],
)
def test_a_wrong_description_is_one_sentence(given: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        model_from_module(built(TOKENS), input_shape=given)


def test_a_description_in_words_or_as_a_mapping() -> None:
    assert read_inputs({"a": (3,), "b": "4:bool"}) == read_inputs("a=3,b=4:bool")
    assert read_inputs("3,8,8")[0].layout == "NCHW"


@pytest.mark.parametrize("name", [TOKENS, BOTH, "token ids"])
def test_a_model_folder_keeps_all_inputs(name: str, tmp_path: Path) -> None:
    model = opened(name)
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model", unpruned=built(name))
    assert loaded.signature == model.signature
    assert loaded.sha256 == model.sha256


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch, about itself
@pytest.mark.filterwarnings("ignore:.*The axis name:UserWarning")
@pytest.mark.parametrize("name", [TOKENS, BOTH])
def test_opened_from_onnx_with_all_inputs(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model, path = opened(name), tmp_path / "net.onnx"
    given = tuple(torch.ones(spec.with_batch(2), dtype=getattr(torch, spec.dtype)) for spec in model.signature.inputs)
    batch = torch.export.Dim("batch")
    names = [spec.name for spec in model.signature.inputs]
    shapes = tuple({0: batch} for _ in given)
    torch.onnx.export(model.network, given, path, dynamo=True, input_names=names, dynamic_shapes=shapes, verbose=False)
    again = open_model(path)
    assert [(s.name, s.shape, s.dtype) for s in again.signature.inputs] == [
        (s.name, s.shape, s.dtype) for s in model.signature.inputs
    ]
    with torch.no_grad():
        assert torch.allclose(again.network(*given), model.network(*given), atol=1e-4)


@pytest.mark.parametrize("name", [TOKENS, BOTH])
def test_trains_on_all_inputs(name: str) -> None:
    """Half of what there is to learn is in the further input."""
    model, (x, y) = opened(name), arrays(name, 96)
    assert isinstance(x, dict)
    samples = from_arrays(x, y).split("train", model.preprocess, split_seed=0, inputs=model.signature.inputs)
    settings: dict[str, Any] = {"steps": 30, "batch_size": 16, "learning_rate": 0.05, "alpha": 0.0}
    trained = fine_tune.apply(model, Train(**settings), samples, teacher=None)

    def loss(network: nn.Module) -> float:
        with torch.no_grad():
            answers = call(network, fed(samples, slice(None)))
        return float(nn.functional.cross_entropy(answers, torch.from_numpy(np.array(samples.labels))))

    assert loss(trained.network) < 0.9 * loss(model.network)
