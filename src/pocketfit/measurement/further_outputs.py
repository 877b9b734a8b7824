"""The outputs behind the first one (liveness, attributes, boxes): how near two files are in each of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit import runtimes
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.runtime import Session, quantize_input
from pocketfit.core.samples import Samples
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.measurement.run_samples import array_file, fed
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
        arrays, contracts = [], []
        for number, given in enumerate(samples):
            some = given.take(range(min(SAMPLES, len(given))))
            own = Path(folder, str(number))
            own.mkdir()
            arrays.append(str(array_file(some, own)))
            contracts.append(json.dumps(some.preprocess.to_json()))
        payload = {
            "names": list(names),
            "paths": [str(path.resolve()) for path in paths],
            "arrays": arrays,
            "contracts": contracts,
            "threads": threads,
        }
        found = child_process.call("pocketfit.measurement.further_outputs:compare_in_child", payload)
    return tuple(
        OutputFidelity(name, sqnr.ratio_db(signal, noise), cosine) for name, signal, noise, cosine in found["outputs"]
    )


def compare_in_child(
    *, names: list[str], paths: list[str], arrays: list[str], contracts: list[str], threads: int
) -> dict[str, Any]:
    """The child's side of `compare_further`: {"outputs": [[name, signal, noise, cosine], …]}."""
    told = []
    for name, path, array, contract in zip(names, paths, arrays, contracts, strict=True):
        session = runtimes.get(name).load(Path(path), threads=threads)
        told.append(_all_outputs(session, array, contract))
        session.close()
    outputs = []
    for (name, ours), (_, theirs) in zip(*told, strict=False):
        if ours.shape == theirs.shape and ours.dtype.kind == theirs.dtype.kind == "f":
            outputs.append([name, *sqnr.energies(ours, theirs), sqnr.cosine(ours, theirs)])
    return {"outputs": outputs}


def _all_outputs(session: Session, array: str, contract: str) -> list[tuple[str, NDArray[np.generic]]]:
    """(name, values [n, ...]) of each further output, row by row, as files with a batch of one take it."""
    stored = np.load(array, mmap_mode="r", allow_pickle=False)
    samples = Samples(
        array=stored,
        labels=np.full(len(stored), -1, np.int64),
        names=[],
        split="",
        sha256="",
        preprocess=Preprocess.from_json(json.loads(contract)),
    )
    spec, grid = session.signature.inputs[0], session.input_quantization
    rows: dict[str, list[NDArray[np.generic]]] = {one.name: [] for one in session.signature.outputs[1:]}
    repeats = spec.shape[0] or 1
    for row in range(len(samples)):
        values = np.repeat(fed(samples, slice(row, row + 1), spec), repeats, axis=0)
        given: NDArray[np.generic] = values
        if grid is not None:
            given = quantize_input(values, spec.dtype, grid.scales[0], grid.zero_points[0])
        answers = session.run({spec.name: given})
        for one in session.signature.outputs[1:]:
            raw = answers[one.name][:1]
            rows[one.name].append(raw.transpose(0, 3, 1, 2) if one.layout == "NHWC" and raw.ndim == 4 else raw)
    return [(name, np.concatenate(found)) for name, found in rows.items()]
