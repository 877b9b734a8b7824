"""`pocketfit.compare`: how alike two files answer."""

from __future__ import annotations

from pathlib import Path

from pocketfit.api.file_inputs import check_files, contract_of, inputs_of, samples_of
from pocketfit.api.inputs import Data
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.progress import Silent, Watch
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.measurement import compare_files
from pocketfit.measurement.compare_files import Fidelity


def compare(
    a: str | Path,
    b: str | Path,
    samples: Data,
    *,
    model: str | Path | None = None,
    preprocess: Preprocess | str | Path | None = None,
    split: str = "search",
    limit: int = 1000,
    task: str = "",
    threads: int = 1,
    watch: Watch | None = None,
) -> Fidelity:
    """Where two files differ: agreement, accuracy, SQNR and cosine of the outputs, the first layer that drifts.

    a, b        two files of any runtime; layers are compared where both have the same one
    samples     the data to compare them on, of which `limit` samples of `split` are looked at
    model, preprocess  what says how images are prepared, as for `measure`
    task        what the outputs mean; "": as the bundle says, or the data
    threads     of the runtimes
    Raises UserError for files and data that do not fit together.
    """
    first, second = Path(a), Path(b)
    watch = watch or Silent()
    check_files(first, second)
    contract = contract_of(model, preprocess, first)
    fed = inputs_of(first), inputs_of(second)
    with temporary_folder() as work:
        given, task = samples_of(samples, contract, split, limit, watch, *fed, task=task)
        watch.step(f"comparing on {len(given)} samples")
        return compare_files.compare(first, second, given, task=task, threads=threads, work=Path(work))
