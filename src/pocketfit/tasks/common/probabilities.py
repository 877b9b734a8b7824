"""Outputs are logits, or their softmax over classes, or the sigmoid of each. Networks end in any of these."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

APART = 1e-3  # how far the sum of probabilities may be from 1: half precision gives as much
LEAST = 1e-8  # a probability below it counts as this
NEAR = 1e-4  # a sigmoid nearer to 0 or 1 counts as this near
BEYOND = 0.01  # how far beyond 0 and 1 a grid of integers may put a sigmoid


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


def are_sigmoids(lowest: float, highest: float) -> bool:
    """Whether outputs between these are sigmoids: logits of some tens of samples do not all lie from 0 to 1."""
    return not (lowest < -BEYOND or highest > 1 + BEYOND)


def sigmoids(outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probability of each output, which is one already or a logit.

    >>> sigmoids(np.array([-4.0, 0.0])).round(2).tolist(), sigmoids(np.array([0.25, 1.0])).tolist()
    ([0.02, 0.5], [0.25, 1.0])
    """
    if are_sigmoids(float(np.min(outputs, initial=0.5)), float(np.max(outputs, initial=0.5))):
        return np.clip(outputs, 0, 1)
    return np.asarray(0.5 + 0.5 * np.tanh(outputs / 2), outputs.dtype)


def sigmoid_logits(outputs: Tensor) -> Tensor:
    """The logit of each output, which is one already or a sigmoid."""
    seen = outputs.detach()
    if not are_sigmoids(float(seen.min()), float(seen.max())):
        return outputs
    return outputs.clamp(NEAR, 1 - NEAR).logit()


def sigmoid_divergence(outputs: Tensor, theirs: Tensor, temperature: float) -> Tensor:
    """T² KL(theirs_T || outputs_T), each output a distribution over yes and no, of its own: [...]."""
    from torch.nn.functional import logsigmoid

    ours, wanted = (sigmoid_logits(x) / temperature for x in (outputs, theirs))
    share = wanted.sigmoid()
    yes = share * (logsigmoid(wanted) - logsigmoid(ours))
    return temperature**2 * (yes + (1 - share) * (logsigmoid(-wanted) - logsigmoid(-ours)))
