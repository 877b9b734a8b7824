"""Groups of options as one argument each: a network (Source), its Teacher, Pruning, Files; and checks that several
verbs share.

The values stay as they were typed. When they are opened or checked, they raise UserError, whose sentence names the
option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pocketfit.core.errors import UserError
from pocketfit.core.plan.runtime_list import EVERY, for_apps
from pocketfit.core.support.user_code import Allowed, consent

if TYPE_CHECKING:
    from pocketfit.core.model import Model
    from pocketfit.core.support.progress import Watch
    from pocketfit.sources.data.dataset import Dataset


@dataclass(frozen=True)
class Source:
    """A network (a model folder, an .onnx file, a name of the zoo, or package.module:factory) with the options about
    it."""

    model: str
    weights: Path | None = None
    preprocess: str | None = None  # "imagenet", "log-mel", …, or a JSON file
    labels: Path | None = None
    input_shape: str | None = None
    allow_code: bool = False

    def agreed(self, *typed: str | None) -> Allowed:
        """Which names in files may be imported: any with --allow-code, else those that were typed."""
        return True if self.allow_code else consent(False, self.model, *typed).names

    def open(self, *typed: str | None) -> Model:
        """The network; `typed`: other values on the command line that may be names of functions."""
        from pocketfit.sources.models.open_model import open_model

        return open_model(
            self.model,
            weights=self.weights,
            preprocess=self.preprocess,
            labels=self.labels,
            input_shape=self.input_shape,
            allow_code=self.agreed(*typed),
        )


@dataclass(frozen=True)
class Teacher:
    """The network from which pruned ones learn; without a name it is the student itself, unpruned."""

    model: str | None = None
    weights: Path | None = None

    def open(self, student: Model, agreed: Allowed = False) -> Model | None:
        """The teacher, None without a name. A factory's network gets the student's preprocessing."""
        from pocketfit import zoo
        from pocketfit.sources.models.open_model import open_model

        name, weights = self.model, self.weights
        if name is None:
            if weights is not None:
                raise UserError("--teacher-weights is for a teacher: say with --teacher which network they belong to")
            return None
        if name in zoo.ARCHITECTURES and weights is None:
            raise UserError(f"A teacher that knows nothing teaches nothing: give --teacher-weights for {name}")
        named = ":" not in name and not name.lower().endswith(".onnx")
        if named or Path(name).is_dir():
            return open_model(name, weights=weights, allow_code=agreed)
        shape = [size or 1 for size in student.signature.inputs[0].shape[1:]]
        return open_model(name, weights=weights, preprocess=student.preprocess, input_shape=shape)


@dataclass(frozen=True)
class Pruning:
    """How `fit` prunes channels."""

    rounds: int  # rounds of pruning and recovery
    ratios: tuple[str, ...]  # REGEX=SHARE
    criterion: str
    allocation: Literal["macs", "latency", "uniform"]

    def layer_ratios(self) -> tuple[tuple[str, float], ...]:
        """
        >>> Pruning(1, ("layer4.*=0.6",), "taylor", "macs").layer_ratios()
        (('layer4.*', 0.6),)
        """
        return tuple(_layer_ratio(text) for text in self.ratios)


@dataclass(frozen=True)
class Files:
    """The kind of files that `fit` makes."""

    runtimes: str  # names with commas
    io: Literal["float32", "uint8", "int8"]
    layout: Literal["NHWC", "NCHW"] | None  # None: the runtime's own
    keep_resolution: bool
    keep_float: str  # names with commas

    def runtime_names(self) -> tuple[str, ...]:
        """
        >>> Files("onnxruntime, litert", "float32", None, False, "").runtime_names()
        ('onnxruntime', 'litert')
        """
        names = listed(self.runtimes)
        if names == (EVERY,):
            return names
        if not names or any(name not in for_apps() for name in names):
            raise UserError(
                f"--runtime '{self.runtimes}' is not known: give one or more of {', '.join(for_apps())}, with commas,"
                f" or {EVERY}"
            )
        return names


def listed(text: str) -> tuple[str, ...]:
    """
    >>> listed("conv1, fc,,conv1")
    ('conv1', 'fc')
    """
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def dataset(data: Path | None, watch: Watch, *, labels: Sequence[str] = (), cache: Path | None = None) -> Dataset:
    """The data at this path; without one, a Dataset that has the model's labels and no samples."""
    from pocketfit.sources.data.dataset import no_data, open_data

    if data is None:
        return no_data(labels)
    return open_data(data, cache=cache, progress=watch.step("looking at the data"))


def _layer_ratio(text: str) -> tuple[str, float]:
    pattern, _, share = text.rpartition("=")
    try:
        ratio = float(share)
    except ValueError:
        pattern = ""
    if not pattern:
        raise UserError(f"--ratio '{text}' cannot be read: give REGEX=SHARE, such as 'layer4.*=0.6'")
    if not 0 <= ratio < 1:
        raise UserError(f"--ratio '{text}': a share from 0 up to, but not including, 1 of the channels can be pruned")
    return pattern, ratio
