"""The additive angular margin (ArcFace, Deng et al. 2019, equation 3): cross-entropy of s cos(angle) to each identity's
direction, where the angle to the own one has m added.

Here the loss is divided by s, so that its gradient does not depend on it. The directions are weights of a Head that
lives only while a network trains.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

SCALE, MARGIN = 64.0, 0.5  # s and m of Deng et al. 2019, section 3.1
FEW, SCALE_OF_FEW = 100, 30.0  # identities: fewer are told apart at a smaller scale


def loss(cosines: Tensor, own: Tensor, scale: float = SCALE, margin: float = MARGIN) -> Tensor:
    """The loss of each sample, [n], from its cosines to the identities [n, identities] and the place of its own."""
    rows = torch.arange(len(own), device=own.device)
    mine = cosines[rows, own].clamp(-1 + 1e-6, 1 - 1e-6)
    turned = mine * math.cos(margin) - (1 - mine.square()).sqrt() * math.sin(margin)  # cos(angle + m)
    # Beyond pi - m the cosine would grow again: from there on a straight line falls on, as in the authors' code.
    turned = torch.where(mine > math.cos(math.pi - margin), turned, mine - margin * math.sin(margin))
    logits = scale * cosines.index_put((rows, own), turned)
    return cross_entropy(logits, own, reduction="none") / scale


def among_means(outputs: Tensor, identities: Tensor, margin: float = MARGIN) -> Tensor:
    """The loss of each sample, [n], where a batch [n, width] is all there is: an identity's direction is the mean of
    its embeddings in the batch."""
    ours = normalize(outputs)
    found, own = torch.unique(identities, return_inverse=True)
    means = torch.zeros(len(found), ours.shape[1], dtype=ours.dtype, device=ours.device)
    means = normalize(means.index_add(0, own, ours.detach()))
    return loss(ours @ means.T, own, scale_for(len(found)), margin)


def scale_for(identities: int) -> float:
    """s: that of the paper, or a smaller one where there are few identities."""
    return SCALE if identities >= FEW else SCALE_OF_FEW


class Head(nn.Module):
    """A direction for each identity, [identities, width].

    identities  int64 [identities], ascending: the targets that they have
    """

    known: Tensor

    def __init__(self, directions: Tensor, identities: Tensor, margin: float = MARGIN) -> None:
        super().__init__()
        self.directions, self.margin = nn.Parameter(normalize(directions)), margin
        self.register_buffer("known", identities)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample, [n], of outputs [n, width] and targets [n]."""
        cosines = normalize(outputs) @ normalize(self.directions).T
        own = torch.searchsorted(self.known, targets.contiguous())
        return loss(cosines, own, scale_for(len(self.known)), self.margin)


def head_of(embeddings: Tensor, identities: Tensor, every: Tensor, seed: int = 0) -> Head:
    """A Head that begins with the mean directions of some embeddings [n, width]; the mean of all is taken off first,
    which an untrained network's embeddings share.

    every  int64: all targets that there are; those without an embedding begin with a random direction
    """
    known = torch.unique(every)
    random = torch.Generator().manual_seed(seed)
    directions = torch.randn(len(known), embeddings.shape[1], generator=random)
    if len(embeddings):
        ours = normalize(embeddings)
        ours = ours - ours.mean(0)
        place = torch.searchsorted(known, identities.contiguous())
        sums = torch.zeros_like(directions).index_add(0, place, ours)
        seen = torch.zeros(len(known)).index_add(0, place, torch.ones(len(place))) > 0
        seen &= sums.norm(dim=1) > 1e-6
        directions[seen] = sums[seen]
    return Head(directions, known)
