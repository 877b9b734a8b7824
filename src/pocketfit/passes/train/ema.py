"""A running average of everything that training changes in a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Average:
    """Exponential moving average of weights and buffers (Polyak and Juditsky 1992; its warm-up is that of TensorFlow's
    ExponentialMovingAverage):

        average = d average + (1 - d) now,   d = min(decay, (1 + t) / (10 + t))  at step t = 1, 2, …

    So even after a short training the average is one of its last steps, not of the weights before it. Integers (the
    number of batches that a batch norm has seen) are not averaged.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._now = [*network.parameters(), *network.buffers()]
        self._decay, self._steps = decay, 0
        self._average = [tensor.detach().clone() for tensor in self._now]

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a training step into the average."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for average, now in zip(self._average, self._now, strict=True):
            if average.is_floating_point():
                average.lerp_(now, 1 - decay)
            else:
                average.copy_(now)

    @torch.no_grad()
    def hand_over(self) -> None:
        """Give the network the average."""
        for average, now in zip(self._average, self._now, strict=True):
            now.copy_(average)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin the average anew, with the weights that the network has now."""
        self._steps = 0
        for average, now in zip(self._average, self._now, strict=True):
            average.copy_(now)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the network holds the average; afterwards its own weights again."""
        with torch.no_grad():
            kept = [tensor.detach().clone() for tensor in self._now]
            self.hand_over()
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, before in zip(self._now, kept, strict=True):
                    tensor.copy_(before)
