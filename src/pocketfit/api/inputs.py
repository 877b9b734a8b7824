"""The networks and samples that the functions of this folder take, as a Model and a Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.user_code import Allowed
from pocketfit.sources.data.dataset import Dataset, from_arrays, open_data
from pocketfit.sources.models.open_model import model_from_module, open_model

if TYPE_CHECKING:
    pass


def as_dataset(samples: Any) -> Dataset:
    """A Dataset from any form of samples that `fit` takes."""
    if isinstance(samples, Dataset):
        return samples
    if isinstance(samples, str | Path):
        return open_data(samples)
    if isinstance(samples, tuple) and len(samples) == 2:
        return from_arrays(*samples)
    raise UserError("samples must be a Dataset, a folder, an .npz file, or a pair of arrays (x, y)")


def as_model(model: Any, preprocess: Preprocess | None, labels: Sequence[str], allow_code: Allowed = False) -> Model:
    """A Model from any form of network that `fit` takes."""
    if isinstance(model, Model):
        return model
    if isinstance(model, str | Path):
        return open_model(str(model), preprocess=preprocess, labels=tuple(labels) or None, allow_code=allow_code)
    if preprocess is None:
        raise UserError("A bare module does not say how its pictures are prepared: give preprocess=Preprocess(...)")
    return model_from_module(
        model,
        preprocess=preprocess,
        labels=tuple(labels),
    )
