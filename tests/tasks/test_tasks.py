"""What every task promises: targets are read, scores lie where they should, losses have gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketfit import tasks
from pocketfit.core.errors import UserError
from pocketfit.core.task.task_list import TASKS
from pocketfit.tasks import fidelity, segmentation, text
from pocketfit.tasks.choose_task import metric_of, with_task
from tests.tasks.examples import EXAMPLES, data_of, model_of, pictures

every_task = pytest.mark.parametrize("name", TASKS)


def outputs_of(name: str, count: int = 12) -> torch.Tensor:
    model = model_of(name)
    inputs = torch.from_numpy(pictures(count)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        found = model.network(inputs)
    return found["points"] if isinstance(found, dict) else found


def test_every_task_has_an_example() -> None:
    assert set(EXAMPLES) == set(TASKS)


@every_task
def test_a_network_is_right_by_its_own_answers_in_every_metric(name: str) -> None:
    task, outputs = tasks.get(name), outputs_of(name).numpy()
    kept = task.kept(outputs)
    answers = task.answers(kept)
    assert task.has_target(answers).all() and task.same(answers, answers).all()
    for metric in task.METRICS:
        scores = task.scores(metric, kept, answers)
        assert scores.shape == (len(outputs),) and scores == pytest.approx(np.ones(len(outputs)))


@every_task
def test_noise_lowers_the_scores_and_never_lifts_them_above_one(name: str) -> None:
    task, outputs = tasks.get(name), outputs_of(name)
    outputs = outputs - outputs.mean(0) if name != "segmentation" else outputs  # an untrained network has one answer
    answers = task.answers(task.kept(outputs.numpy()))
    noise = torch.rand(outputs.shape, generator=torch.Generator().manual_seed(1))
    noise = noise[:, :1] - 0.5 if name == "ordinal" else noise  # its steps go on falling
    noisy = task.kept((outputs + 20 * noise).numpy() if name != "segmentation" else noise.numpy())
    for metric in task.METRICS:
        scores = task.scores(metric, noisy, answers)
        assert (scores.mean() if task.METRICS[metric].whole else scores.max()) <= 1 and (
            scores.mean() < 0.99 or metric == "top5"
        )  # of four classes


@every_task
def test_the_distance_to_itself_is_zero_and_to_others_is_not(name: str) -> None:
    task, outputs = tasks.get(name), outputs_of(name)
    assert task.distance(outputs, outputs).numpy() == pytest.approx(np.zeros(len(outputs)), abs=1e-5)
    moved = outputs.roll(1, 0).requires_grad_()
    apart = task.distance(moved, outputs, 2.0)
    assert apart.shape == (len(outputs),) and float(apart.detach().mean()) > 0
    apart.mean().backward()
    assert torch.isfinite(moved.grad).all() and moved.grad.abs().max() > 0


@every_task
def test_influence_has_a_gradient_without_targets(name: str) -> None:
    outputs = outputs_of(name).requires_grad_()
    tasks.get(name).influence(outputs).sum().backward()
    assert torch.isfinite(outputs.grad).all() and outputs.grad.abs().max() > 0


@every_task
def test_samples_without_targets_are_in_groups_by_kind_or_in_none(name: str, tmp_path: Path) -> None:
    model, data = model_of(name), data_of(name, tmp_path, labelled=False, count=200)
    samples = data.split("search", model.preprocess, split_seed=0)
    assert tasks.get(name).groups(samples, model.labels) == []
    kinds = [f"kind {row % 2}" for row in range(len(samples))]
    found = tasks.get(name).groups(replace(samples, kinds=kinds), model.labels)
    assert [group.name for group in found] in ([], ["kind 0", "kind 1"])


@pytest.mark.parametrize("name", [name for name in TASKS if EXAMPLES[name].targets is not None])
def test_targets_of_the_data_give_a_loss_that_training_lowers(name: str, tmp_path: Path) -> None:
    task, data = tasks.get(name), data_of(name, tmp_path, labelled=True, count=200)
    assert data.form == task.FORM
    asked = name if name == "ordinal" else ""  # its data are classes
    model = with_task(model_of(name), data.form, data.class_names, asked)
    assert model.task == name
    raw = data.split("train", model.preprocess, split_seed=0)
    samples = task.read_targets(raw, model.labels)
    assert task.has_target(samples.labels).all()
    outputs = outputs_of(name, 8).clone().requires_grad_()
    targets = torch.from_numpy(np.ascontiguousarray(samples.labels[:8]))
    loss = task.loss(outputs, targets)
    assert loss.shape == (8,) and torch.isfinite(loss).all()
    loss.mean().backward()
    with torch.no_grad():
        better = outputs - 1e-3 * outputs.grad / outputs.grad.abs().max()
        assert float(task.loss(better, targets).mean()) < float(loss.detach().mean())
    assert task.words(samples.labels[0], model.labels)


@every_task
def test_data_without_labels_leave_the_task_to_the_outputs(name: str, tmp_path: Path) -> None:
    data = data_of(name, tmp_path, labelled=False)
    assert data.form == "none"
    assert with_task(model_of(name), data.form, asked=name if EXAMPLES[name].asked else "").task == name
    assert with_task(model_of(name), data.form, asked="fidelity").task == "fidelity"


def test_what_does_not_fit_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no task 'boxes': known are classification, text"):
        with_task(model_of("text"), "none", asked="boxes")
    with pytest.raises(UserError, match=r"a classifier gives \[batch, classes\]: say with --task"):
        with_task(model_of("segmentation"), "none", asked="classification")
    with pytest.raises(UserError, match="reads texts, and the data have classes: give --task classification"):
        with_task(model_of("text"), "classes", asked="text")
    with pytest.raises(UserError, match="There is no metric 'iou' for the task 'text'"):
        metric_of(tasks.get("text"), "iou")


def test_a_line_is_read_by_its_best_path_and_its_edits_are_counted() -> None:
    """The character error rate of three lines of 4, 4 and 2 characters with 0, 1 and 1 edits is 2 / 10."""
    kept = np.array([[1, 1, 0, 1, 2, 3], [0, 1, 2, 2, 0, 4], [5, 0, 0, 0, 0, 0]])
    targets = np.array([[1, 1, 2, 3], [1, 2, 3, 4], [5, 4, -1, -1]])
    assert text.scores("exact-match", kept, targets).tolist() == [1, 0, 0]
    assert 1 - text.scores("character-accuracy", kept, targets).mean() == pytest.approx(0.2)


@pytest.mark.parametrize("metric", segmentation.METRICS)
def test_places_to_be_ignored_do_not_count(metric: str) -> None:
    kept = np.array([[[1, 1], [0, 0]]], np.uint8)
    assert segmentation.scores(metric, kept, np.array([[[1, -1], [0, -1]]])).tolist() == [1]
    assert segmentation.scores(metric, kept, np.array([[[1, 0], [0, 0]]])).tolist() == [
        0.5 if metric == "iou" else 0.75
    ]


def test_a_cosine_does_not_mind_the_scale_and_nearness_does() -> None:
    outputs = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    assert fidelity.scores("cosine", 2 * outputs, outputs) == pytest.approx(np.ones(3))
    assert fidelity.scores("nearness", 1.25 * outputs, outputs) == pytest.approx(np.full(3, 0.75))
