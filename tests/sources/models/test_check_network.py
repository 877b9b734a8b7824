"""What is wrong with a network is one sentence when it is opened, and names the layer. The table of networks as people
bring them has a row for each kind; here are the finer points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.sources.models.check_network import signature_of
from pocketfit.sources.models.open_model import model_from_module, open_model

SMALL = Preprocess(height=8, width=8, resize="none")


class Head(nn.Module):
    """A body that a test gives, and a classifier behind it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.fc = body, nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


class Does(nn.Module):
    def __init__(self, run: object) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)  # type: ignore[operator]


def refusal(body: nn.Module) -> str:
    with pytest.raises(UserError) as error:
        model_from_module(Head(body), preprocess=SMALL)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_layer_whose_dropout_stays_on_is_named() -> None:
    text = refusal(nn.Sequential(nn.ReLU(), Does(lambda _, x: F.dropout(x, 0.5))))
    assert "dropout in layer 'body.1' stays on" in text and "training=self.training" in text


def test_chance_that_changes_no_answer_is_no_fault() -> None:
    model_from_module(Head(Does(lambda _, x: x + 0 * torch.rand_like(x))), preprocess=SMALL)


def test_a_forward_that_remembers_is_told_apart_from_chance() -> None:
    def counted(layer: nn.Module, x: Tensor) -> Tensor:
        layer.calls = getattr(layer, "calls", 0) + 1
        return x * layer.calls

    assert "keeps something from one call to the next" in refusal(Does(counted))


def test_the_layer_in_which_samples_mix_is_named() -> None:
    text = refusal(nn.Sequential(nn.ReLU(), Does(lambda _, x: x.softmax(0))))
    assert "depends on what else is in the batch, from layer 'body.1' (Does) on" in text


@pytest.mark.parametrize(
    ("wrap", "names", "shapes"),
    [
        (lambda a, b: a, ["logits"], [(None, 4)]),
        (lambda a, b: b, ["output_0"], [(None, 3, 8, 8)]),
        (lambda a, b: (b, a), ["output_0", "output_1"], [(None, 3, 8, 8), (None, 4)]),
        (lambda a, b: [a], ["output_0"], [(None, 4)]),
        (lambda a, b: {"scores": a, "map": b}, ["scores", "map"], [(None, 4), (None, 3, 8, 8)]),
    ],
)
def test_outputs_have_names_and_shapes(wrap: Any, names: list[str], shapes: list[tuple[int | None, ...]]) -> None:
    network = Does(lambda layer, x: wrap(layer.head(x), x * 0.5))
    network.head = Head(nn.ReLU())
    model = model_from_module(network, preprocess=SMALL)
    assert [spec.name for spec in model.signature.outputs] == names
    assert [spec.shape for spec in model.signature.outputs] == shapes
    assert all(spec.dtype == "float32" for spec in model.signature.outputs)
    assert signature_of(network, (3, 8, 8)) == model.signature


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda x: (x.mean((1, 2, 3)), x.sum()), r"the shape \(\) in its output 'output_1'"),
        (lambda x: {"a": x.mean((1, 2, 3)), "b": None}, "a NoneType in its output 'b'"),
        (lambda x: x.flatten(), r"the shape \(384,\)"),
        (lambda x: (), "gives a tuple"),
        (lambda x: (x.mean((1, 2, 3)), x.flatten(1).argmax(1)), r"\(2,\) of int64 in its output 'output_1'"),
        (lambda x: (x.mean((1, 2, 3)), x.softmax(0)), "depends on what else is in the batch"),
        (lambda x: {"a": x, "b": x + torch.randn_like(x)}, "gives different outputs for the same input"),
    ],
)
def test_outputs_that_are_no_tensors_of_a_batch(wrap: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        model_from_module(Does(lambda _, x: wrap(x)), preprocess=SMALL)


@pytest.mark.parametrize(
    ("shape", "fits"), [((4,), True), ((6, 4), True), ((5,), False), ((6, 5), True), ((5, 6, 5), True)]
)
def test_labels_are_counted_where_the_last_axis_is_that_of_classes(shape: tuple[int, ...], fits: bool) -> None:
    network = Does(lambda _, x: x.mean((1, 2, 3)).view(-1, *[1] * len(shape)).expand(-1, *shape))
    if fits:
        assert len(model_from_module(network, preprocess=SMALL, labels=list("abcd")).labels) == 4
        return
    with pytest.raises(UserError, match="There are 4 labels, but the network has 5 outputs"):
        model_from_module(network, preprocess=SMALL, labels=list("abcd"))


def test_an_error_of_the_forward_names_its_layer_and_line() -> None:
    def raising(layer: nn.Module, x: Tensor) -> Tensor:
        raise KeyError("scale")

    text = refusal(nn.Sequential(nn.ReLU(), Does(raising)))
    assert "raises KeyError: 'scale' (layer 'body.1', test_check_network.py, line" in text


def test_another_size_is_asked_for_where_the_input_does_not_fit() -> None:
    with pytest.raises(UserError, match=r"does not run on an input of 3x8x8 \(.*layer '1'.*\): say with --input-shape"):
        model_from_module(nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), preprocess=SMALL)


def test_a_batch_size_that_is_written_down_is_found_at_one_sample() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)).reshape(2, 3)

    with pytest.raises(UserError, match="3x8x8, batch 1"):
        model_from_module(Fixed(), preprocess=SMALL)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_precisions_are_refused_by_the_name_of_the_tensor(kind: torch.dtype) -> None:
    with pytest.raises(UserError, match=r"tensor fc.weight of the network is (float64|bfloat16): .* call \.float\(\)"):
        model_from_module(Head(nn.ReLU()).to(kind), preprocess=SMALL)


def test_weights_without_values_are_refused() -> None:
    with torch.device("meta"):
        network = Head(nn.ReLU())
    with pytest.raises(UserError, match="is on 'meta'"):
        model_from_module(network, preprocess=SMALL)


def test_a_module_of_an_exported_program_is_refused() -> None:
    program = torch.export.export(Head(nn.ReLU()).eval(), (torch.zeros(2, 3, 8, 8),))
    with pytest.raises(UserError, match=r"cannot be put into eval mode .*: hand over the torch.nn.Module"):
        model_from_module(program.module(), preprocess=SMALL)


def test_the_random_numbers_of_the_caller_go_on_undisturbed() -> None:
    network = Head(Does(lambda _, x: x + 0 * torch.rand_like(x))).eval()
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    signature_of(network, (3, 8, 8))
    assert torch.equal(torch.rand(1), wanted)


def test_a_factory_whose_weights_are_normed_is_opened_with_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file holds the norm's own tensors; the model holds the weight that they make."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("normed_factory.py").write_text(
        "from torch import nn\nfrom torch.nn.utils.parametrizations import weight_norm\n"
        "def net():\n"
        "    conv = weight_norm(nn.Conv2d(3, 4, 3))\n"
        "    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    namespace: dict[str, object] = {}
    exec(Path("normed_factory.py").read_text(), namespace)
    original = namespace["net"]()  # type: ignore[operator]
    torch.save(original.state_dict(), "w.pth")
    model = open_model("normed_factory:net", weights="w.pth", preprocess=SMALL)
    assert sorted(model.network.state_dict()) == ["0.bias", "0.weight"]
    given = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model.network(given), original.eval()(given))
