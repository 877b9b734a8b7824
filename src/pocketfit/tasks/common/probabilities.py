"""Outputs over classes: logits, or the softmax of logits. Networks end in either."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

APART = 1e-3  # how far the sum of probabilities may be from 1: half precision gives as much
LEAST = 1e-8  # a probability below it counts as this


def as_logits(outputs: Tensor) -> Tensor:
    """Logits as they are, and the logarithms of probabilities (up to a constant, their logits): [..., classes].

    >>> import torch
    >>> as_logits(torch.tensor([[0.5, 0.5], [0.75, 0.25]])).softmax(-1).mul(4).round().tolist()
    [[2.0, 2.0], [3.0, 1.0]]
    """
    seen = outputs.detach()
    if outputs.shape[-1] < 2 or float(seen.min()) < 0 or float((seen.sum(-1) - 1).abs().max()) > APART:
        return outputs
    return outputs.clamp(min=LEAST).log()
