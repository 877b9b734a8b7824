"""Every network of the table through both runtimes: the float file answers as torch does, alone and in a batch of
samples that differ; static int8 and, in turns, every other recipe give a file that runs and is near the float one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_leaves

from pocketfit.core.errors import ExportFailed
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.runtime import ROWS, Session, answer
from pocketfit.core.samples import Samples
from pocketfit.measurement.sample_arrays import fed
from pocketfit.runtimes import get
from pocketfit.runtimes.common import agreement
from pocketfit.sources.data.dataset import from_arrays
from tests.brought.networks import NETWORKS, arrays, opened

pytest.importorskip("litert_torch")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")  # torch's, of recurrent layers
# Rows whose operators are those of another row: what differs is what training may do.
SAME_FILE = {
    *(
        "frozen vit",
        "frozen transformer encoder",
        "all but the head frozen",
        "train returns nothing",
        "two filters a channel",
    ),
    *("weight norm of old", "spectral norm of old", "side head", "kept a graph", "keeps what it saw", "data parallel"),
    *("torch.compile", "dead scale live shift padded", "vgg with norms", "narrow"),
}
RUNTIMES = {"litert": "int8", "onnxruntime": "uint8"}  # activations of the static int8 file
OTHERS: dict[str, list[dict[str, object]]] = {
    "litert": [
        *({"precision": "float16"}, {"precision": "dynamic-int8"}, {"precision": "weight-only"}),
        *({"precision": "int8", "ranges": "mse"}, {"precision": "int8", "weights": "int4"}),
        *({"precision": "int8", "io": "int8"}, {"precision": "int8", "activations": "int16"}),
        *({"precision": "int8", "ranges": "percentile"}, {"precision": "dynamic-int8", "weights": "int4"}),
    ],
    "onnxruntime": [
        *({"precision": "float16"}, {"precision": "dynamic-int8"}, {"precision": "weight-only", "weights": "int4"}),
        *(
            {"precision": "int8", "activations": "int8"},
            {"precision": "int8", "activations": "uint8", "weights": "int7"},
        ),
        *({"precision": "int8", "activations": "uint8", "ranges": "kl"}, {"precision": "weight-only"}),
    ],
}
IN_TURNS = {"litert": 1, "onnxruntime": 2}  # further recipes of each network
LEAST_DB = 12.0  # of an integer file against the float answers on the samples that it was calibrated with
# Below that by nature: values to 600 beside values to 1 in one tensor; 4 bits; kl, which cuts off what is rare.
HARD = {"unequal concatenation": 0.0}
NARROW_DB = 3.0
TURNS = {name: itertools.cycle(recipes) for name, recipes in OTHERS.items()}
CASES = [
    (runtime, name, [next(TURNS[runtime]) for _ in range(IN_TURNS[runtime])])
    for name, row in NETWORKS.items()
    if name not in SAME_FILE and not {"open", "trace"} & set(row.refused)
    for runtime in RUNTIMES
]


@cache
def given(name: str) -> tuple[Model, Samples, tuple[NDArray[np.generic], ...]]:
    """The network, samples to calibrate with, and inputs that differ from one another."""
    model, (x, y) = opened(name), arrays(name, 48)
    samples = from_arrays(x, y).split("train", model.preprocess, split_seed=0, inputs=model.signature.inputs)
    return model, samples, tuple(agreement.samples(model.signature.inputs))


def by_torch(model: Model, values: tuple[NDArray[np.generic], ...]) -> list[NDArray[np.float32]]:
    with torch.no_grad():
        found = model.network(*(torch.from_numpy(np.array(array, order="C")) for array in values))
    return [value.numpy() for value in tree_leaves(found)]


def by_file(model: Model, session: Session, values: tuple[NDArray[np.generic], ...]) -> NDArray[np.float32]:
    named = {spec.name: array for spec, array in zip(model.signature.inputs, values, strict=True)}
    turned = []
    for spec in session.signature.inputs:
        array = named[spec.name].astype(spec.dtype)
        fits = array.shape[1:] == spec.shape[1:]
        turned.append(np.ascontiguousarray(array if fits else array.transpose(0, 2, 3, 1)))
    return answer(session, tuple(turned))


def sqnr_db(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.sum(wanted.astype(np.float64) ** 2) / max(np.sum((wanted - found) ** 2.0), 1e-30)))


@pytest.mark.parametrize(("runtime", "name", "others"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_every_network_in_every_runtime(
    runtime: str, name: str, others: list[dict[str, object]], tmp_path: Path
) -> None:
    model, samples, values = given(name)
    module, settings = get(runtime), ExportSettings(runtime)  # type: ignore[arg-type]
    if words := NETWORKS[name].refused.get(runtime):
        with pytest.raises(ExportFailed) as caught:
            module.export(model, Plan((), settings), samples, tmp_path / f"x{module.EXTENSION}", work=tmp_path)
        assert all(word in str(caught.value) for word in words)
        return

    def session_of(which: ExportSettings) -> Session:
        path = tmp_path / f"{which.code}{module.EXTENSION}"
        artifact = module.export(model, Plan((), which), samples, path, work=tmp_path)
        assert all(len(note) < 500 and "\n" not in note for note in artifact.notes)
        return module.load(path)

    session, (wanted, *_) = session_of(settings), by_torch(model, values)
    for rows in (1, ROWS):
        some = tuple(array[:rows] for array in values)
        np.testing.assert_allclose(by_file(model, session, some), wanted[:rows], atol=1e-4 * np.abs(wanted).max())
    session.close()
    count = min(ROWS, len(samples))
    (calibrated, *_) = by_torch(model, samples.feeds(slice(0, count)))
    static = replace(settings, precision="int8", activations=RUNTIMES[runtime])
    for which in (static, *(replace(settings, **other) for other in others)):
        session = session_of(which)
        assert np.isfinite(by_file(model, session, values)).all()
        found = answer(session, fed(samples, slice(0, count), session.signature.inputs))
        narrow = which.weights == "int4" or which.ranges == "kl"
        least_db = NARROW_DB if narrow else HARD.get(name, LEAST_DB)
        assert sqnr_db(calibrated, found) > least_db, which.code
        session.close()
