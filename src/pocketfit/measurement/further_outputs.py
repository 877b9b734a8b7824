"""The outputs behind the first one (liveness, attributes, boxes): how near two files are in each of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit import runtimes
from pocketfit.core.runtime import Session, as_taken
from pocketfit.core.samples import Samples
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.measurement.sample_arrays import fed, read_back, stored
from pocketfit.numerics import sqnr
from pocketfit.processes import child_process

SAMPLES = 64  # that further outputs are compared on


@dataclass(frozen=True)
class OutputFidelity:
    """One further output of a file against the same of another: over all samples, SQNR in dB (inf: equal), cosine."""

    output: str
    sqnr_db: float
    cosine: float

    def to_json(self) -> dict[str, Any]:
        """JSON has no infinity: an infinite SQNR is null."""
        known = self.sqnr_db if np.isfinite(self.sqnr_db) else None
        return {"output": self.output, "sqnr_db": known, "cosine": self.cosine}


def compare_further(
    names: tuple[str, str],
    paths: tuple[Path, Path],
    samples: tuple[Samples, Samples],
    *,
    threads: int = 1,
    work: Path | None = None,
) -> tuple[OutputFidelity, ...]:
    """The outputs behind the first one, in their order; () where there is only one. The first file is the reference.

    Outputs are matched by their place. Those in integers, or of another shape in the other file, are left out.

    names    of the two files' runtimes
    samples  the same ones, as each file takes them
    """
    for name, path in zip(names, paths, strict=True):
        session = runtimes.get(name).load(path, threads=threads)
        count = len(session.signature.outputs)
        session.close()
        if count < 2:
            return ()
    with temporary_folder(work) as folder:
        taken = []
        for number, given in enumerate(samples):
            some = given.take(range(min(SAMPLES, len(given))))
            own = Path(folder, str(number))
            own.mkdir()
            taken.append(stored(some, own))
        payload = {
            "names": list(names),
            "paths": [str(path.resolve()) for path in paths],
            "samples": taken,
            "threads": threads,
        }
        found = child_process.call("pocketfit.measurement.further_outputs:compare_in_child", payload)
    return tuple(
        OutputFidelity(name, sqnr.ratio_db(signal, noise), cosine) for name, signal, noise, cosine in found["outputs"]
    )


def compare_in_child(
    *, names: list[str], paths: list[str], samples: list[dict[str, Any]], threads: int
) -> dict[str, Any]:
    """The child's side of `compare_further`: {"outputs": [[name, signal, noise, cosine], …]}."""
    told = []
    for name, path, given in zip(names, paths, samples, strict=True):
        session = runtimes.get(name).load(Path(path), threads=threads)
        told.append(_all_outputs(session, read_back(given)))
        session.close()
    outputs = []
    for (name, ours), (_, theirs) in zip(*told, strict=False):
        if ours.shape == theirs.shape and ours.dtype.kind == theirs.dtype.kind == "f":
            outputs.append([name, *sqnr.energies(ours, theirs), sqnr.cosine(ours, theirs)])
    return {"outputs": outputs}


def _all_outputs(session: Session, samples: Samples) -> list[tuple[str, NDArray[np.generic]]]:
    """(name, values [n, ...]) of each further output, row by row, as files with a batch of one take it."""
    inputs = session.signature.inputs
    rows: dict[str, list[NDArray[np.generic]]] = {one.name: [] for one in session.signature.outputs[1:]}
    repeats = inputs[0].shape[0] or 1
    for row in range(len(samples)):
        values = fed(samples, slice(row, row + 1), inputs)
        answers = session.run(as_taken(session, tuple(np.repeat(array, repeats, axis=0) for array in values)))
        for one in session.signature.outputs[1:]:
            raw = answers[one.name][:1]
            rows[one.name].append(raw.transpose(0, 3, 1, 2) if one.layout == "NHWC" and raw.ndim == 4 else raw)
    return [(name, np.concatenate(found)) for name, found in rows.items()]
