"""Scores of a file on samples, one a sample, taken in its own runtime."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit import runtimes, tasks
from pocketfit.core.errors import UserError
from pocketfit.core.runtime import ROWS, answer
from pocketfit.core.samples import Samples
from pocketfit.core.support import user_code
from pocketfit.core.support.progress import Tick
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.core.task.task import Task
from pocketfit.core.task.task_list import TASKS
from pocketfit.measurement.sample_arrays import fed, read_back, stored
from pocketfit.processes import child_process

BUILT_IN = tuple(name for task in TASKS for name in tasks.get(task).METRICS)
BATCH_SIZE = ROWS
POLL_S = 0.1
SECONDS_A_SAMPLE, SECONDS_AT_LEAST = 2.0, 600.0  # time for a run before it counts as hung
MOST_NUMBERS = 2**24  # of outputs that are kept beside what a task needs of them


@dataclass(frozen=True)
class Ran:
    """What is kept of a file's outputs for n samples.

    kept     [n, ...], what the task needs
    outputs  float32 [m, ...], those of the first samples: all of them where they are few numbers
    nan      bool [n], which samples got a NaN somewhere in their outputs
    """

    kept: NDArray[Any]
    outputs: NDArray[np.float32]
    nan: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of a file on n samples.

    values   float64 [n], one score a sample, whose mean is the metric
    answers  [n, ...], the answers in the form of the task's targets; negative where the outputs hold a NaN
    outputs  float32 [m, ...], those of the first samples
    nan      how many samples got a NaN somewhere in their outputs
    """

    values: NDArray[np.float64]
    answers: NDArray[Any]
    metric: str
    nan: int
    outputs: NDArray[np.float32] | None = None
    strata: NDArray[np.int64] | None = None  # [n], the classes, where these count alike
    by_class: NDArray[np.float64] | None = None  # [classes], where the metric has a number of its own for each

    @property
    def of_each(self) -> NDArray[np.float64]:
        """The score of each sample on its own, [n]."""
        return self.values if self.strata is None else self.values / alike(self.strata)

    @property
    def centred(self) -> NDArray[np.float64]:
        """Values [n] with the same mean and the variance of a stratified sample: draws keep the count of each class.

        With r of a sample, R the mean r of its class and w its weight: mean + w (r - R). The sum of squares about the
        mean is then that of a stratified sample (Cochran 1977, section 5.3).
        """
        if self.strata is None:
            return self.values
        _, place, counts = np.unique(self.strata, return_inverse=True, return_counts=True)
        recall = np.bincount(place, self.of_each) / counts
        centred: NDArray[np.float64] = self.mean + alike(self.strata) * (self.of_each - recall[place])
        return centred

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def finding(self) -> str:
        """A sentence about NaNs, "" without one."""
        if not self.nan:
            return ""
        return f"{self.nan} of {len(self.values)} samples got NaN (not a number) as an output; each counts as wrong"


def score(
    runtime_name: str,
    path: Path,
    samples: Samples,
    *,
    task: str = "classification",
    targets: NDArray[Any] | None = None,
    own: bool = False,
    threads: int = 1,
    metric: str = "accuracy",
    batch_size: int = BATCH_SIZE,
    work: Path | None = None,
    progress: Tick | None = None,
) -> Scores:
    """Run all samples through a file in a child process, and score its outputs.

    targets   what the answers are compared with, [n, ...]; None: the samples' labels
    own       compare with the file's own answers: it is the original, and the samples have no labels
    metric    one of the task's, or "package.module:function" that takes (outputs float32 [n, ...], targets [n, ...])
              and returns scores [n]
    work      a folder for the samples that are handed to the child (the system's temporary folder without one)
    progress  called with (samples done, samples in all), from another thread

    Raises UserError for samples without targets or a metric that cannot be used, CannotRunHere for a file that the
    runtime refuses, ExportFailed when the process dies.
    """
    does = tasks.get(task)
    wanted = samples.labels if targets is None else targets
    if not own:
        check_targets(does, samples, wanted, metric)
    function = None if metric in does.METRICS else load_metric(metric)
    ran = run_all(
        runtime_name,
        path,
        samples,
        task="fidelity" if function else task,  # a user's function gets the outputs themselves
        threads=threads,
        batch_size=batch_size,
        work=work,
        progress=progress,
    )
    answers = np.array(does.answers(does.kept(np.asarray(ran.outputs)) if function else ran.kept))
    wanted = answers.copy() if own else wanted
    if function is not None:
        values = _custom(metric, function, ran.outputs, wanted, ran.nan)
    else:
        values = does.scores(metric, ran.kept, wanted)
    answers[ran.nan] = -1
    values[ran.nan] = 0.0
    strata, known = None, does.METRICS.get(metric)
    if known is not None and known.alike:
        strata = np.asarray(np.rint(wanted), np.int64)  # answers may be probabilities of a class
        values = values * alike(strata)
    by_class = None if known is None or known.by_class is None else known.by_class(ran.kept, wanted)
    return Scores(
        values=values,
        answers=answers,
        metric=metric,
        nan=int(ran.nan.sum()),
        outputs=ran.outputs,
        strata=strata,
        by_class=by_class,
    )


def run_all(
    runtime_name: str,
    path: Path,
    samples: Samples,
    *,
    task: str = "fidelity",
    threads: int = 1,
    batch_size: int = BATCH_SIZE,
    work: Path | None = None,
    progress: Tick | None = None,
) -> Ran:
    """What a task keeps of a file's outputs for all samples, in their order, computed in a child process."""
    if not path.is_file():
        raise UserError(f"The file '{path}' is not there")
    if len(samples) == 0:
        raise UserError(f"There is no sample in the split '{samples.split}' to run '{path.name}' on")
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    with temporary_folder(work) as folder:
        done = Path(folder, "done")
        payload = {
            "runtime": runtime_name,
            "path": str(path.resolve()),
            "given": stored(samples, Path(folder)),
            "task": task,
            "threads": threads,
            "batch_size": batch_size,
            "folder": str(folder),
        }
        timeout_s = SECONDS_AT_LEAST + SECONDS_A_SAMPLE * len(samples)
        with _reported(done, len(samples), progress):
            child_process.call("pocketfit.measurement.run_samples:run_in_child", payload, timeout_s=timeout_s)
        kept = np.load(Path(folder, "kept.npy"), allow_pickle=False)
        nan = np.load(Path(folder, "nan.npy"), allow_pickle=False)
        written = Path(folder, "outputs.npy")
        outputs = np.load(written, allow_pickle=False) if written.exists() else kept
    return Ran(kept, outputs, nan)


def run_in_child(
    *,
    runtime: str,
    path: str,
    given: dict[str, Any],
    task: str,
    threads: int,
    batch_size: int,
    folder: str,
) -> None:
    """The child's side of `run_all`. It writes into `folder` kept.npy, nan.npy, outputs.npy where the task does not
    keep the outputs themselves, and `done`: how many samples are done."""
    samples = read_back(given)
    n, does, place = len(samples), tasks.get(task), Path(folder)
    session = runtimes.get(runtime).load(Path(path), threads=threads)
    inputs = session.signature.inputs
    fixed = inputs[0].shape[0]
    step = fixed or batch_size
    nan = np.zeros(n, bool)
    kept: np.memmap[Any, Any] | None = None
    some: np.memmap[Any, Any] | None = None
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        values = fed(samples, rows, inputs)
        short = 0 if fixed is None else fixed - len(values[0])
        if short:  # a file with a fixed batch takes nothing less: repeat the last sample
            values = tuple(np.concatenate([one, np.repeat(one[-1:], short, axis=0)]) for one in values)
        outputs = answer(session, values)[: rows.stop - start]
        found = does.kept(outputs)
        if kept is None:
            kept = _array(place / "kept.npy", found, n)
            if found is not outputs:
                some = _array(
                    place / "outputs.npy", outputs, min(n, max(step, MOST_NUMBERS // max(1, outputs[0].size)))
                )
        kept[rows] = found
        nan[rows] = np.isnan(outputs.reshape(len(outputs), -1)).any(axis=1)
        if some is not None and start < len(some):
            some[rows] = outputs[: len(some) - start]
        (place / "done").write_text(str(rows.stop))
    session.close()
    np.save(place / "nan.npy", nan)
    for array_ in (kept, some):
        if array_ is not None:
            array_.flush()


def _array(path: Path, like: NDArray[np.generic], rows: int) -> np.memmap[Any, Any]:
    """A new .npy file for `rows` rows of this kind."""
    return np.lib.format.open_memmap(path, "w+", like.dtype, (rows, *like.shape[1:]))


def alike(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights [n] of mean 1 with which all classes that occur count alike: n / (classes * samples of its class).

    >>> alike(np.array([0, 0, 0, 1])).round(3).tolist()
    [0.667, 0.667, 0.667, 2.0]
    """
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights: NDArray[np.float64] = len(labels) / (len(counts) * counts[place])
    return weights


def try_metric(metric: str, targets: NDArray[np.generic], shape: Sequence[int]) -> None:
    """Refuse, before any work, a user's own metric that can't score outputs of this shape against these targets."""
    outputs = np.random.default_rng(0).normal(size=(len(targets), *shape)).astype(np.float32)
    _custom(metric, load_metric(metric), outputs, targets, np.zeros(len(targets), bool))


def check_metric(metric: str) -> None:
    """Refuse, before any work, a metric that no task has and that can't be imported. "": the task's own."""
    if metric and metric not in BUILT_IN:
        load_metric(metric)


def load_metric(metric: str) -> Callable[[NDArray[np.float32], NDArray[np.int64]], Any]:
    """The function behind "package.module:function"; raises UserError with what is wrong with the name."""
    module_name, colon, name = metric.partition(":")
    if not (colon and name and module_name.strip(".") == module_name != ""):
        raise UserError(f"There is no metric '{metric}': known are {', '.join(BUILT_IN)}, or package.module:function")
    return user_code.function(metric, "metric")


def check_targets(task: Task, samples: Samples, targets: NDArray[np.generic], metric: str) -> None:
    """Raises UserError where a sample has no target."""
    known = task.has_target(targets)
    if missing := int(np.sum(~known)):
        first = samples.names[int(np.argmin(known))] if len(samples.names) else "a sample"
        raise UserError(f"{missing} samples have no label ('{first}' is the first), which '{metric}' needs")


def _custom(
    metric: str,
    function: Callable[..., Any],
    outputs: NDArray[np.float32],
    targets: NDArray[np.generic],
    nan: NDArray[np.bool_],
) -> NDArray[np.float64]:
    try:
        values = np.array(function(outputs, targets), np.float64)
    except Exception as error:  # whatever a user's function raises is told to that user
        raise UserError(f"The metric '{metric}' failed with {type(error).__name__}: {error}") from error
    if values.shape != (len(targets),):
        raise UserError(
            f"The metric '{metric}' gave scores {list(values.shape)}; one a sample, [{len(targets)}], is needed"
        )
    if not np.all(np.isfinite(values[~nan])):
        raise UserError(f"The metric '{metric}' gave a score that is NaN or infinite")
    return values


@contextmanager
def _reported(done: Path, total: int, progress: Tick | None) -> Iterator[None]:
    """Tell `progress` what the child has written to `done`, until the block ends."""
    if progress is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            if done.exists() and (text := done.read_text()):
                progress(int(text), total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    progress(total, total)
