"""The networks and samples that the functions of this folder take, as a Model and a Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from pocketfit import tasks
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Watch
from pocketfit.core.support.user_code import Allowed
from pocketfit.search.run.job import read_split
from pocketfit.sources.data.dataset import Dataset, from_arrays, open_data
from pocketfit.sources.data.targets.read_targets import check_outputs
from pocketfit.sources.models.open_model import model_from_module, open_model
from pocketfit.tasks.choose_task import with_task
from pocketfit.tasks.common.class_names import about_order

if TYPE_CHECKING:
    from torch import nn

Network: TypeAlias = Union[Model, "nn.Module", str, Path]
Data: TypeAlias = Dataset | str | Path | NDArray[np.generic] | tuple[NDArray[np.generic], NDArray[np.generic]]


def as_dataset(samples: Data, watch: Watch) -> Dataset:
    """A Dataset: as it is, from a folder or a file, or from arrays: x without labels, or (x, y)."""
    if isinstance(samples, Dataset):
        return samples
    if isinstance(samples, str | Path):
        return open_data(samples, progress=watch.step("looking at the data"))
    if isinstance(samples, np.ndarray):
        return from_arrays(samples)
    if isinstance(samples, tuple) and len(samples) == 2:
        return from_arrays(*samples)
    raise UserError(
        "samples must be a Dataset, a folder, a file, an array x without labels, or a pair of arrays (x, y)"
    )


def as_model(
    model: Network, preprocess: Preprocess | None = None, labels: Sequence[str] = (), allow_code: Allowed = False
) -> Model:
    """A Model: as it is, from the name of a model folder, or around a torch.nn.Module."""
    if isinstance(model, Model):
        return model
    if isinstance(model, str | Path):
        return open_model(str(model), preprocess=preprocess, labels=tuple(labels) or None, allow_code=allow_code)
    if preprocess is None:
        raise UserError("A bare module does not say how its images are prepared: give preprocess=Preprocess(...)")
    return model_from_module(model, preprocess=preprocess, labels=tuple(labels))


def named(model: Model, data: Dataset, watch: Watch, task: str = "") -> Model:
    """The model with its task, and a label for each class of the data; what is to be said is said. Raises UserError
    where it can't be fed with the data."""
    network = with_task(model, data.form, data.class_names, task)
    data.check_fits(network.signature.inputs, network.preprocess)
    if data.form == tasks.get(network.task).FORM:
        check_outputs(data.listing, network.signature.outputs[0], network.preprocess)
    if data.form == "classes":
        for sentence in about_order(model, network, data.class_names):
            watch.say(sentence)
    return network


def split_for(model: Model, data: Dataset, name: str, limit: int | None, watch: Watch, cache: Path) -> Samples:
    """A split as the model wants it, its classes in the model's order."""
    seed = model.split_seed
    return read_split(
        data,
        name,
        model.preprocess,
        watch,
        task=model.task,
        labels=model.labels,
        split_seed=seed,
        inputs=model.signature.inputs,
        limit=limit,
        cache=cache,
    )
