"""The interface of a task: a module of `pocketfit.tasks` with these names is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec

Tensor = Any  # of torch, which core doesn't need
Form = Literal["classes", "texts", "masks", "none"]  # of the targets that come with data
Kept = NDArray[np.generic]
Targets = NDArray[np.generic]


@dataclass(frozen=True)
class Metric:
    """A score of one sample whose mean over all samples is reported; higher is better, 1 is the best.

    title    its name in tables and pages: "Exact match"
    meaning  what it counts, as the end of a sentence
    """

    title: str
    meaning: str


@dataclass(frozen=True)
class Group:
    """Samples that a report shows together, such as a class or a kind of text line.

    rows  int64 [n], the rows of its samples
    """

    name: str
    rows: NDArray[np.int64]


class Task(Protocol):
    """The functions that a task's file offers. n is the number of samples.

    kept     what of the outputs is kept of each sample, [n, ...]: enough for answers and scores, and no more
    targets  what the outputs are compared with, [n, ...], negative where a sample has none: read from the data, or,
             where the data have none, the answers of the original network
    """

    NAME: str
    TITLE: str  # in tables and pages: "Text lines"
    ANSWERS: str  # what it calls its answers: "texts"
    FORM: Form  # of the data's targets that it reads; "none": it reads none
    METRICS: Mapping[str, Metric]  # the first one is the default

    def why_not(self, outputs: Sequence[TensorSpec], labels: Sequence[str]) -> str:
        """Why networks with these outputs can't have this task, as a sentence; "" where they can."""
        ...

    def read_targets(self, samples: Samples, labels: Sequence[str]) -> Samples:
        """The samples with `labels` as this task's targets. Raises UserError where the data's fit no network with these
        labels."""
        ...

    def kept(self, outputs: NDArray[np.float32]) -> Kept:
        """What is kept of outputs [n, ...]; rows with a NaN may hold anything."""
        ...

    def answers(self, kept: Kept) -> Targets:
        """The network's answers, in the form of targets."""
        ...

    def has_target(self, targets: Targets) -> NDArray[np.bool_]:
        """Which samples have a target, [n]."""
        ...

    def scores(self, metric: str, kept: Kept, targets: Targets) -> NDArray[np.float64]:
        """The metric's score of each sample, [n]."""
        ...

    def same(self, one: Targets, other: Targets) -> NDArray[np.bool_]:
        """Where two networks agree, [n]."""
        ...

    def words(self, target: Targets, labels: Sequence[str]) -> str:
        """A target or an answer of one sample, as a person reads it."""
        ...

    def groups(self, samples: Samples, labels: Sequence[str]) -> list[Group]:
        """The rows of a report's table."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The loss of each sample that has a target, [n]; the caller leaves the others out."""
        ...

    def distance(self, outputs: Tensor, theirs: Tensor, temperature: float = 1.0) -> Tensor:
        """The distance of each sample's outputs to a teacher's, [n]."""
        ...
