"""Losses of raw boxes: smaller where boxes are nearer, and with gradients that bring them there."""

from __future__ import annotations

import pytest
import torch

from pocketfit.tasks.common import box_losses
from pocketfit.tasks.common.boxes import FORMS

FORM = FORMS["corners"]
OBJECT = (10.0, 10.0, 30.0, 20.0)
NONE = (-1.0,) * 6


def outputs_of(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor([rows])


def test_the_distance_counts_boxes_by_their_score() -> None:
    theirs = outputs_of((*OBJECT, 0.9, 0.0), (50.0, 50.0, 60.0, 60.0, 0.001, 0.0))
    sure, unsure = theirs.clone(), theirs.clone()
    sure[0, 0, :4] += 2
    unsure[0, 1, :4] += 2
    apart = [float(box_losses.distance(x, theirs, FORM)) for x in (theirs, unsure, sure)]
    assert apart[0] == pytest.approx(0, abs=1e-5) and apart[0] < apart[1] < 0.05 < apart[2]


@pytest.mark.parametrize("name", ["corners", "nms"])
def test_training_finds_an_object(name: str) -> None:
    """A box that does not meet the object moves onto it, and its score rises; the other box's score falls."""
    places = outputs_of((36.0, 12.0, 50.0, 20.0), (90.0, 90.0, 99.0, 99.0)).requires_grad_()
    logits = torch.full((1, 2, 1 if name == "nms" else 2), -0.5, requires_grad=True)
    targets = torch.tensor([[(*OBJECT, 1.0, 0.0), NONE]])
    steps = torch.optim.Adam([{"params": [places], "lr": 0.3}, {"params": [logits], "lr": 0.05}])
    for _ in range(150):
        steps.zero_grad()
        behind = torch.ones(1, 2, 1 if name == "nms" else 0)
        box_losses.loss(torch.cat([places, logits.sigmoid(), behind], 2), targets, FORMS[name]).sum().backward()
        steps.step()
    assert places[0, 0].tolist() == pytest.approx(OBJECT, abs=1.5)
    scores = logits.detach().sigmoid()[0, :, -1]
    assert float(scores[0]) > 0.6 and float(scores[1]) < 0.2


def test_a_picture_without_objects_lowers_all_scores() -> None:
    outputs = outputs_of((*OBJECT, 0.8, 0.4)).requires_grad_()
    box_losses.loss(outputs, torch.tensor([[NONE]]), FORM).sum().backward()
    assert (outputs.grad[0, 0, 4:] > 0).all() and (outputs.grad[0, 0, :4] == 0).all()


def test_the_order_of_chosen_boxes_does_not_matter() -> None:
    rows = outputs_of((*OBJECT, 0.9, 1.0), (50.0, 50.0, 60.0, 60.0, 0.5, 0.0))
    assert float(box_losses.distance(rows.flip(1), rows, FORMS["nms"])) == pytest.approx(0, abs=1e-5)
    assert float(box_losses.influence(rows, FORMS["nms"])) > 0
