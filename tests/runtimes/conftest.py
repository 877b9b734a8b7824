"""The files that were made of the tiny network, each exported once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pocketfit.core.artifact import Artifact
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.samples import Samples
from pocketfit.runtimes import get
from tests.runtimes.tiny_network import pictures, tiny_model


@pytest.fixture(scope="session")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="session")
def calibration(model: Model) -> Samples:
    labels = np.zeros(32, np.int64)
    return Samples(
        array=pictures(32, seed=1),
        labels=labels,
        names=[f"{i}" for i in range(32)],
        split="calibration",
        sha256="cal",
        preprocess=model.preprocess,
    )


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def exported(model: Model, calibration: Samples, work: Path) -> Callable[[ExportSettings], Artifact]:
    """The artifact of these settings, made when it is first asked for."""
    made: dict[ExportSettings, Artifact] = {}

    def artifact(settings: ExportSettings) -> Artifact:
        if settings not in made:
            runtime, plan = get(settings.runtime), Plan((), settings)
            path = work / "out" / f"{plan.file_stem}{runtime.EXTENSION}"
            made[settings] = runtime.export(model, plan, calibration, path, work=work)
        return made[settings]

    return artifact
