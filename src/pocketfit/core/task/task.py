"""The interface of a task: a module of `pocketfit.tasks` with these names is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec
from pocketfit.core.task.task_list import TaskName

Tensor = Any  # of torch, which core doesn't need
Form = Literal[  # of the targets that come with data
    "classes", "texts", "masks", "identities", "boxes", "tags", "numbers", "pictures", "none"
]
Kept = NDArray[Any]
Targets = NDArray[Any]


@dataclass(frozen=True)
class Metric:
    """A score of one sample whose mean over all samples is reported; higher is better, 1 is the best.

    title    its name in tables and pages: "Exact match"
    meaning  what it counts, as the end of a sentence
    alike    whether every class counts alike, however many samples it has
    of       what it compares with: the data's targets, the original network's answers, or either
    whole    whether it is a number of all samples at once. Scores of samples are then pseudo-values: their mean is the
             metric and their variance that of the metric, and single ones may lie beyond 0 and 1
    by_class  (kept, targets) -> float [classes], the metric of each class, NaN where there is none; None: a class's is
             the mean over its samples
    """

    title: str
    meaning: str
    alike: bool = False
    of: Literal["labels", "original", "either"] = "either"
    whole: bool = False
    by_class: Callable[[Kept, Targets], NDArray[np.float64]] | None = None


@dataclass(frozen=True)
class Group:
    """Samples that a report shows together, such as a class or a kind of text line; rows: int64 [n]."""

    name: str
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Figure:
    """What a file's answers are worth in another unit than that of the metrics, such as the user's own.

    unit  "share" (0.93 is 93 %), "dB", or "" (that of the data)
    """

    name: str
    value: float
    unit: str = ""


@runtime_checkable
class HasFigures(Protocol):
    """What a task's file may offer beside `Task`."""

    def figures(self, answers: Targets, targets: Targets, labels: Sequence[str]) -> list[Figure]:
        """Figures over all samples, which have targets; the same ones for each file."""
        ...


class Task(Protocol):
    """The functions that a task's file offers. n is the number of samples.

    outputs  of the network, float [n, ...]
    kept     what of the outputs is kept of each sample, [n, ...]: enough for answers and scores, and no more
    targets  what answers are compared with, [n, ...], negative where a sample has none: read from the data, or, where
             the data have none, the answers of the original network
    """

    NAME: TaskName
    TITLE: str  # in tables and pages: "Text lines"
    ANSWERS: str  # what it calls its answers: "texts"
    FORM: Form  # of the data's targets that it reads; "none": it reads none
    METRICS: Mapping[str, Metric]  # the first one is the default
    SOFTMAX: bool  # whether outputs are logits, or their softmax, over the last axis; temperatures and scales need that

    def why_not(self, outputs: Sequence[TensorSpec], labels: Sequence[str]) -> str:
        """Why networks with these outputs can't have this task, as a sentence; "" where they can."""
        ...

    def read_targets(self, samples: Samples, labels: Sequence[str]) -> Samples:
        """The samples, whose `labels` are this task's targets. Raises UserError where they don't fit the network's."""
        ...

    def kept(self, outputs: NDArray[np.float32]) -> Kept: ...

    def answers(self, kept: Kept) -> Targets:
        """The network's answers, in the form of targets."""
        ...

    def has_target(self, targets: Targets) -> NDArray[np.bool_]:
        """Which samples have a target, [n]."""
        ...

    def scores(self, metric: str, kept: Kept, targets: Targets) -> NDArray[np.float64]:
        """The metric's score of each sample, [n]; all have a target."""
        ...

    def same(self, one: Targets, other: Targets) -> NDArray[np.bool_]:
        """Where two networks give the same answer, [n]."""
        ...

    def words(self, target: Targets, labels: Sequence[str]) -> str:
        """A target or an answer of one sample, as a person reads it."""
        ...

    def groups(self, samples: Samples, labels: Sequence[str]) -> list[Group]:
        """The rows of a report's table, for samples with targets."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The loss of each sample, [n]; all have a target."""
        ...

    def distance(self, outputs: Tensor, theirs: Tensor, temperature: float = 1.0) -> Tensor:
        """The distance of each sample's outputs to a teacher's, [n]; a gradient's size does not depend on the
        temperature."""
        ...

    def influence(self, outputs: Tensor) -> Tensor:
        """A loss of each sample, [n], that needs no target: its gradient says what changes the answers."""
        ...
