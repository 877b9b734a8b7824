"""Distillation: PyTorch's kl_div is the oracle, and a teacher that does not fit is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model, Origin
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.passes.train import distillation
from pocketfit.sources.models.open_model import model_from_module

PREPROCESS = Preprocess(height=8, width=8, resize_px=8)


def logits(seed: int, rows: int, classes: int, size: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """A student's, a teacher's, and labels."""
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.normal(scale=size, size=(2, rows, classes)))
    return values[0], values[1], torch.from_numpy(rng.integers(0, classes, rows))


def divergences(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of each row, in PyTorch's words."""
    return nn.functional.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none").sum(1)


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(2, 12), st.sampled_from([0.1, 3.0, 20.0]))
def test_the_parts_add_up_to_hintons_divergence(seed: int, rows: int, classes: int, size: float) -> None:
    """KD = TCKD + (1 - p_t) NCKD exactly (Zhao et al. 2022, equation 6)."""
    student, teacher, labels = logits(seed, rows, classes, size)
    target, others = distillation.target_parts(student, teacher, labels)
    p_t = teacher.softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(target + (1 - p_t) * others, divergences(student, teacher), rtol=1e-8, atol=1e-10)
    assert (target > -1e-9).all() and (others > -1e-9).all()
    if classes == 2:
        assert (others.abs() < 1e-9).all(), "one class alone has no distribution"


@given(st.integers(0, 10**6), st.floats(0.05, 0.95))
def test_decoupled_is_hintons_where_beta_is_what_the_teacher_leaves(seed: int, p_t: float) -> None:
    """A teacher that is equally sure of every sample, beta = 1 - p_t: the two losses are one, and so are gradients."""
    student, teacher, labels = logits(seed, 6, 5)
    rest = teacher.masked_fill(nn.functional.one_hot(labels, 5).bool(), -torch.inf).softmax(1) * (1 - p_t)
    teacher = rest.scatter(1, labels[:, None], p_t).log()
    gradients = []
    for words in (
        lambda s: distillation.divergence(s, teacher),
        lambda s: distillation.decoupled(s, teacher, labels, 1 - p_t),
    ):
        leaf = student.clone().requires_grad_()
        value = words(leaf)
        torch.testing.assert_close(value.detach(), divergences(student, teacher).mean())
        value.backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_decoupled_weighs_the_other_classes() -> None:
    student, teacher, labels = logits(0, 7, 4)
    target, others = distillation.target_parts(student, teacher, labels)
    torch.testing.assert_close(distillation.decoupled(student, teacher, labels, 8.0), (target + 8 * others).mean())
    two = torch.stack([teacher.softmax(1).gather(1, labels[:, None])[:, 0]] * 2, 1)
    two[:, 1] = 1 - two[:, 0]
    ours = student.softmax(1).gather(1, labels[:, None])[:, 0]
    binary = (two * (two.log() - torch.stack([ours, 1 - ours], 1).log())).sum(1)
    torch.testing.assert_close(target, binary)


def test_samples_without_a_label_count_whole() -> None:
    student, teacher, labels = logits(1, 6, 4)
    labels[2:] = -1
    target, others = distillation.target_parts(student[:2], teacher[:2], labels[:2])
    wanted = ((target + 3 * others).sum() + divergences(student[2:], teacher[2:]).sum()) / 6
    torch.testing.assert_close(distillation.decoupled(student, teacher, labels, 3.0), wanted)
    nobody = torch.full((6,), -1)
    torch.testing.assert_close(
        distillation.decoupled(student, teacher, nobody, 3.0), divergences(student, teacher).mean()
    )


def test_very_sure_answers_stay_finite() -> None:
    student = torch.tensor([[80.0, -80.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[90.0, -20.0, -90.0]])
    value = distillation.decoupled(student, teacher, torch.tensor([0]), 8.0)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(student.grad).all()  # type: ignore[arg-type]


def test_attention_is_that_of_the_paper() -> None:
    """Squares over channels, length one; half the mean square of the difference, summed over layers."""
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 4, 5, generator=rng), torch.randn(2, 7, 4, 5, generator=rng)
    total, wanted = torch.zeros(()), torch.zeros(())
    for one, two in ((a, b), (a[:, :2], b[:, :1])):
        total = total + distillation.attention_loss([distillation.attention(one)], [distillation.attention(two)])
        for sample in range(2):
            maps = [(x[sample] ** 2).sum(0).flatten() for x in (one, two)]
            wanted = wanted + sum((maps[0] / maps[0].norm() - maps[1] / maps[1].norm()) ** 2) / 2 / (2 * 20)
    torch.testing.assert_close(total, wanted)
    assert distillation.attention(a).shape == (2, 20)
    torch.testing.assert_close(distillation.attention(a), distillation.attention(-3 * a)), "size and sign do not count"


class Net(nn.Module):
    def __init__(self, channels: int = 4, classes: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, stride, 1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.body = nn.Conv2d(channels, channels, 3, padding=1)
        self.head = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(self.stem(image)).mean((2, 3)))


def model(*sizes: int, labels: tuple[str, ...] = ("ant", "bee", "cat"), seed: int = 0, **changed: Any) -> Model:
    torch.manual_seed(seed)
    preprocess = replace(PREPROCESS, **changed)
    return model_from_module(Net(*sizes), preprocess=preprocess, labels=labels)


def test_classes_are_matched_by_name_where_both_have_names() -> None:
    student, teacher = model(), model(labels=("cat", "ant", "bee"), seed=1)
    inputs = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        raw = teacher.network(inputs)
    answers = distillation.teacher_of(student, teacher)(inputs)
    assert torch.equal(answers, raw[:, [1, 2, 0]])
    assert not answers.is_inference()
    for unnamed in ((), ("0", "1", "2")):
        assert distillation.teacher_of(student, replace(teacher, labels=unnamed)).order == ()
        assert distillation.teacher_of(replace(student, labels=unnamed), teacher).order == ()
    assert distillation.teacher_of(student, teacher).key != distillation.teacher_of(teacher, teacher).key


def test_answers_hold_the_maps_of_named_layers() -> None:
    student, teacher = model(4), model(7, seed=1)
    inputs = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        wanted = [teacher.network(inputs)]
        seen = teacher.network.stem(inputs)
        wanted += [distillation.attention(seen), distillation.attention(teacher.network.body(seen))]
    answers = distillation.teacher_of(student, teacher, ("stem.1", "body"))(inputs)
    torch.testing.assert_close(answers, torch.cat(wanted, 1))  # stem.1 as the ReLU that works in place left it
    assert not teacher.network.body._forward_hooks


def test_gradients_reach_a_layer_whose_output_is_changed_in_place() -> None:
    network = model().network.train()
    _, maps = distillation.watched(network, ("stem.1", "body"), torch.randn(2, 3, 8, 8))
    (maps[0].sum() + maps[1].sum()).backward()
    assert network.stem[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (("stemm",), r"student has no layer 'stemm' .* near it are stem"),
        (("body.conv",), r"student has no layer 'body.conv' .* near it are body"),
        (("head",), r"student's layer 'head' gives no image"),
    ],
)
def test_layers_that_cannot_be_compared_are_named(features: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        distillation.teacher_of(model(), model(), features)


def test_a_layer_that_only_one_has_and_maps_of_other_sizes() -> None:
    teacher = model()
    del teacher.network.body
    teacher.network.trunk = nn.Conv2d(4, 4, 3, padding=1)
    with pytest.raises(UserError, match=r"The teacher has no layer 'body' .*; near it are"):
        distillation.teacher_of(model(), teacher, ("body",))
    with pytest.raises(UserError, match="'body' gives 8x8 positions in the student and 4x4 in the teacher"):
        distillation.teacher_of(model(), model(4, 3, 2), ("body",))


def signed(labels: tuple[str, ...] = ("ant", "bee", "cat"), side: int = 8, **changed: Any) -> Model:
    """A Model without a network: checks read the contract alone."""
    preprocess = replace(PREPROCESS.at(side, side), **changed)
    inputs = TensorSpec("image", (None, preprocess.channels, side, side), "float32", "NCHW")
    outputs = TensorSpec("logits", (None, len(labels)))
    return Model(
        network=None,
        signature=Signature((inputs,), (outputs,)),
        preprocess=preprocess,
        labels=labels,
        origin=Origin("object", "net"),
    )


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (signed(("ant", "bee")), "teacher knows 2 classes and the student 3"),
        (signed(("ant", "bee", "dog")), r"student's class 'cat' \(and the student not the teacher's 'dog'\)"),
        (signed(side=9), "teacher takes an input of 3x9x9 and the student one of 3x8x8"),
        (signed(colour="GRAY", mean=(0.5,), std=(0.5,)), "teacher takes an input of 1x8x8"),
        (signed(mean=(0.5, 0.5, 0.5)), "its mean is 0.5, 0.5, 0.5, the student's 0.485, 0.456, 0.406"),
        (signed(colour="BGR"), "its colour is BGR, the student's RGB"),
        (signed(scale=1.0), "its scale is 1"),
    ],
)
def test_a_teacher_that_does_not_fit(teacher: Model, words: str) -> None:
    with pytest.raises(UserError, match=words):
        distillation.check_teacher(teacher, signed())


def test_a_teacher_whose_pictures_are_cut_otherwise_fits() -> None:
    distillation.check_teacher(signed(("cat", "bee", "ant"), resize="exact", filter="bicubic"), signed())
    vectors = Signature((TensorSpec("input", (None, 6)),), (TensorSpec("logits", (None, 3)),))
    plain = replace(signed(), signature=vectors)
    (
        distillation.check_teacher(replace(plain, preprocess=replace(PREPROCESS, scale=1.0)), plain),
        "no picture, no values",
    )
