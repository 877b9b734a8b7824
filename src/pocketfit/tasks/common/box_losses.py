"""Losses of a detector's raw outputs [n, ...], in torch: one number a sample.

Boxes are compared by 1 - IoU, and by their offsets as shares of the box's size, which have a gradient where boxes do
not meet. Scores are compared by binary cross-entropy. Both are sums over the boxes, over the number of objects: the sum
of the scores that are to be.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, smooth_l1_loss

from pocketfit.tasks.common import boxes
from pocketfit.tasks.common.boxes import Form

LEAST = 1e-4  # a probability nearer to 0 or 1 counts as this near
BOX_WEIGHT = 2.0  # of boxes against scores
BEST = 10  # boxes that learn one object (Feng et al. 2021, TOOD, section 3.2: at most 13)
SCORE_POWER, OVERLAP_POWER = 0.5, 6.0  # of the alignment score ** a * IoU ** b (TOOD's metric, as YOLOv8 sets it)
LEAST_WANTED = 0.1  # score of the best box of an object, however far away it is
FOCUS = 2.0  # power of a wrong score in its weight (Zhang et al. 2021, VarifocalNet, equation 2)
NEGATIVE = 0.75  # weight of boxes without an object (ibid.)


def distance(outputs: Tensor, theirs: Tensor, form: Form, temperature: float = 1.0) -> Tensor:
    """To a teacher's outputs. Its boxes count by their best score; scores by T² KL(theirs_T || outputs_T)."""
    if form.selected:
        return _selected_distance(outputs, theirs)
    corners, scores = boxes.decoded(outputs, form, torch)
    wanted, their_scores = boxes.decoded(theirs, form, torch)
    weights = their_scores.amax(-1).clamp(0, 1)
    p, q = (torch.sigmoid(_logits(s) / temperature) for s in (scores, their_scores))
    apart: Tensor = binary_cross_entropy(p, q, reduction="none") - binary_cross_entropy(q, q, reduction="none")
    found: Tensor = temperature**2 * apart.sum((1, 2)) + BOX_WEIGHT * (weights * _box_distance(corners, wanted)).sum(1)
    objects: Tensor = weights.sum(1).clamp(min=1)
    return found / objects


def loss(outputs: Tensor, targets: Tensor, form: Form) -> Tensor:
    """To targets [n, k, 6]: x1, y1, x2, y2, class (-1: none), crowd (left out).

    Each object is learned by the boxes that are aligned best with it (TOOD); where none meets it, by the nearest one.
    """
    each = []
    for own, given in zip(outputs, targets.to(outputs.dtype), strict=True):
        objects = given[(given[:, 4] >= 0) & (given[:, 5] < 1)]
        if form.selected:
            each.append(_selected_loss(own, objects))
            continue
        corners, scores = (part[0] for part in boxes.decoded(own[None], form, torch))
        each.append(_assigned_loss(corners, scores.clamp(0, 1), objects))
    return torch.stack(each)


def influence(outputs: Tensor, form: Form) -> Tensor:
    """A loss without targets: boxes that move or grow by a share of their size, weighted by their scores, and the
    cross-entropy of the scores against what they say."""
    if form.selected:
        corners, scores = outputs[..., :4], outputs[..., 4:5]
    else:
        corners, scores = boxes.decoded(outputs, form, torch)
    p = torch.sigmoid(_logits(scores))
    weights = p.detach().amax(-1)
    moved = (corners / _sizes(corners.detach())[..., None]).sum(-1)
    said = binary_cross_entropy(p, (p.detach() > 0.5).to(p.dtype), reduction="none").sum((1, 2))
    return (said + BOX_WEIGHT * (weights * moved).sum(1)) / weights.sum(1).clamp(min=1)


def _logits(scores: Tensor) -> Tensor:
    return scores.clamp(LEAST, 1 - LEAST).logit()


def _sizes(corners: Tensor) -> Tensor:
    """Half of width and height together, at least a pixel: [..., 4] -> [...]."""
    return ((corners[..., 2:] - corners[..., :2]).sum(-1) / 2).clamp(min=1)


def _box_distance(corners: Tensor, wanted: Tensor) -> Tensor:
    """[..., 4] and [..., 4] -> [...]."""
    offsets = (corners - wanted) / _sizes(wanted)[..., None]
    return 1 - _overlap(corners, wanted) + smooth_l1_loss(offsets, torch.zeros_like(offsets), reduction="none").sum(-1)


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    """IoU of corners [..., 4], which broadcast; 1 for two empty boxes in one place."""
    first, last = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    both = (last - first).clamp(min=0).prod(-1)
    areas = [(b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) for b in (one, other)]
    either = areas[0] + areas[1] - both
    return torch.where(either > 0, both / either.clamp(min=1e-9), (one == other).all(-1).to(both.dtype))


def _assigned_loss(corners: Tensor, scores: Tensor, objects: Tensor) -> Tensor:
    """corners [A, 4], scores [A, C], objects [G, 6] -> a number."""
    wanted = torch.zeros_like(scores)
    if not len(objects):
        return _score_loss(scores, wanted)
    labels = objects[:, 4].long().clamp(max=scores.shape[1] - 1)
    with torch.no_grad():
        overlap = _overlap(corners[None], objects[:, None, :4])  # [G, A]
        aligned = scores.T[labels].clamp(min=LEAST) ** SCORE_POWER * overlap**OVERLAP_POWER
        best = aligned.topk(min(BEST, aligned.shape[1]), dim=1)
        chosen = torch.zeros_like(aligned).scatter_(1, best.indices, 1.0) * (overlap > 0)
        for lonely in torch.nonzero(chosen.sum(1) == 0).flatten().tolist():  # no box meets this object
            nearest = _box_distance(corners, objects[lonely, :4].expand_as(corners)).argmin()
            chosen[lonely, nearest], aligned[lonely, nearest] = 1.0, 1.0
        owner = (chosen * (overlap + LEAST)).argmax(0)  # a box learns one object
        rows = torch.nonzero(chosen.sum(0)).flatten()
        owner = owner[rows]
        top, reached = aligned.amax(1).clamp(min=1e-12), overlap.amax(1).clamp(min=LEAST_WANTED)
        weights = (aligned[owner, rows] / top[owner] * reached[owner]).clamp(min=LEAST, max=1)
        wanted[rows, labels[owner]] = weights
    apart = (weights * _box_distance(corners[rows], objects[owner, :4])).sum() / weights.sum().clamp(min=1)
    return _score_loss(scores, wanted) + BOX_WEIGHT * apart


def _score_loss(scores: Tensor, wanted: Tensor) -> Tensor:
    weights = torch.where(wanted > 0, wanted, NEGATIVE * scores.detach() ** FOCUS)
    p = torch.sigmoid(_logits(scores))
    found: Tensor = (weights * binary_cross_entropy(p, wanted, reduction="none")).sum() / wanted.sum().clamp(min=1)
    return found


def _selected_distance(outputs: Tensor, theirs: Tensor) -> Tensor:
    """Each of the teacher's boxes against the nearest one, as the order may be another."""
    return torch.stack(
        [
            _to_nearest(own, known[known[:, 4] >= boxes.LEAST_SCORE])[0]
            for own, known in zip(outputs, theirs, strict=True)
        ]
    )


def _selected_loss(outputs: Tensor, objects: Tensor) -> Tensor:
    known = torch.cat([objects[:, :4], torch.ones_like(objects[:, :1]), objects[:, 4:5]], 1)
    found, nearest = _to_nearest(outputs, known)
    others = torch.ones(len(outputs), dtype=torch.bool, device=outputs.device)
    others[nearest] = False
    return found + outputs[others, 4].clamp(0, 1).square().sum() / max(len(objects), 1)


def _to_nearest(outputs: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """(the loss of boxes [k, 6] against those that are known [m, 6], the row that is nearest to each)."""
    if not len(known):
        return 0 * outputs.sum(), torch.zeros(0, dtype=torch.long, device=outputs.device)
    with torch.no_grad():
        apart = (outputs[None, :, :4] - known[:, None, :4]).abs().sum(-1) / _sizes(known[:, :4])[:, None]
        apart = (
            apart
            + (outputs[None, :, 5] - known[:, None, 5]).abs().clamp(max=1)
            + (outputs[None, :, 4] - known[:, None, 4]).abs() * LEAST
        )
        nearest = apart.argmin(1)
    own = outputs[nearest]
    each = _box_distance(own[:, :4], known[:, :4]) * BOX_WEIGHT + (own[:, 4] - known[:, 4]).abs()
    weights = known[:, 4]
    return (weights * each).sum() / weights.sum().clamp(min=1), nearest
