"""Scores of a file on labelled samples, one a sample, taken in its own runtime."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit import runtimes
from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.runtime import ROWS, answer
from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec
from pocketfit.core.support import user_code
from pocketfit.core.support.progress import Tick
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.processes import child_process

BUILT_IN = ("accuracy", "top5", "balanced-accuracy")
BATCH_SIZE = ROWS
POLL_S = 0.1
SECONDS_A_SAMPLE, SECONDS_AT_LEAST = 2.0, 600.0  # time for a run before it counts as hung


@dataclass(frozen=True)
class Scores:
    """The scores of a file on n samples.

    values       float64 [n], one score a sample, whose mean is the metric: 1 or 0 for right or wrong, these times the
                 weights of `alike`, or the values of the metric's function
    predictions  int64 [n], the top class; -1 where the outputs hold a NaN, or aren't [n, classes]
    outputs      float32 [n, ...], where they were asked for
    nan          how many samples got a NaN somewhere in their outputs
    """

    values: NDArray[np.float64]
    predictions: NDArray[np.int64]
    metric: str
    nan: int
    outputs: NDArray[np.float32] | None = None
    strata: NDArray[np.int64] | None = None  # [n], the classes, where these count alike

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


@dataclass(frozen=True)
class ClassScore:
    """Mean score of one class; `candidate` and `drop_points` are None without a second file."""

    name: str
    n: int
    baseline: float
    candidate: float | None = None
    drop_points: float | None = None


def score(
    runtime_name: str,
    path: Path,
    samples: Samples,
    *,
    threads: int = 1,
    metric: str = "accuracy",
    batch_size: int = BATCH_SIZE,
    work: Path | None = None,
    keep_outputs: bool = False,
    progress: Tick | None = None,
) -> Scores:
    """Run all samples through a file in a child process, and score its outputs.

    metric    "accuracy" (top class right), "top5", "balanced-accuracy" (the mean over classes), or
              "package.module:function" that takes (outputs float32 [n, classes], labels int64 [n]) and returns scores
              [n]
    work      a folder for the samples that are handed to the child (the system's temporary folder without one)
    progress  called with (samples done, samples in all), from another thread

    Raises UserError for samples without labels or a metric that cannot be used, CannotRunHere for a file that the
    runtime refuses, ExportFailed when the process dies.
    """
    check_labels(samples, metric)
    function = None if metric in BUILT_IN else load_metric(metric)
    outputs = run_all(runtime_name, path, samples, threads=threads, batch_size=batch_size, work=work, progress=progress)
    nan_rows = np.isnan(outputs.reshape(len(outputs), -1)).any(axis=1)
    predictions = np.full(len(outputs), -1, np.int64)
    if outputs.ndim == 2:
        predictions[~nan_rows] = outputs[~nan_rows].argmax(axis=1)
    values = _graded(metric, function, outputs, samples.labels)
    values[nan_rows] = 0.0
    strata = samples.labels if metric == "balanced-accuracy" else None
    return Scores(values, predictions, metric, int(nan_rows.sum()), outputs if keep_outputs else None, strata)


def run_all(
    runtime_name: str,
    path: Path,
    samples: Samples,
    *,
    threads: int = 1,
    batch_size: int = BATCH_SIZE,
    work: Path | None = None,
    progress: Tick | None = None,
) -> NDArray[np.float32]:
    """Outputs float32 [n, ...] of a file for all samples, in their order, computed in a child process."""
    if not path.is_file():
        raise UserError(f"The file '{path}' is not there")
    if len(samples) == 0:
        raise UserError(f"There is no sample in the split '{samples.split}' to run '{path.name}' on")
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    with temporary_folder(work) as folder:
        done, results = Path(folder, "done"), Path(folder, "outputs.npy")
        payload = {
            "runtime": runtime_name,
            "path": str(path.resolve()),
            "array": str(array_file(samples, Path(folder))),
            "preprocess": json.dumps(samples.preprocess.to_json()),
            "threads": threads,
            "batch_size": batch_size,
            "outputs": str(results),
            "done": str(done),
        }
        timeout_s = SECONDS_AT_LEAST + SECONDS_A_SAMPLE * len(samples)
        with _reported(done, len(samples), progress):
            child_process.call("pocketfit.measurement.run_samples:run_in_child", payload, timeout_s=timeout_s)
        outputs: NDArray[np.float32] = np.load(results, allow_pickle=False)
    return outputs


def array_file(samples: Samples, folder: Path) -> Path:
    """An .npy file of the samples' array: the one behind its memory map where that is all of it, else a copy."""
    array = samples.array
    if isinstance(array, np.memmap):
        name = str(array.filename)
        if name.endswith(".npy") and Path(name).is_file():  # the cache may have made room for newer arrays
            stored = np.load(name, mmap_mode="r", allow_pickle=False)
            same = (stored.shape, stored.dtype, stored.strides) == (array.shape, array.dtype, array.strides)
            if same and isinstance(stored, np.memmap) and stored.offset == array.offset:
                return Path(name)
    path = folder / "samples.npy"
    np.save(path, np.asarray(array), allow_pickle=False)
    return path


def run_in_child(
    *,
    runtime: str,
    path: str,
    array: str,
    preprocess: str,
    threads: int,
    batch_size: int,
    outputs: str,
    done: str,
) -> None:
    """The child's side of `run_all`: writes `outputs` (.npy), and how many samples are done to `done`."""
    stored = np.load(array, mmap_mode="r", allow_pickle=False)
    n = len(stored)
    nothing = np.full(n, -1, np.int64)
    samples = Samples(
        array=stored,
        labels=nothing,
        names=[],
        split="",
        sha256="",
        preprocess=Preprocess.from_json(json.loads(preprocess)),
    )
    session = runtimes.get(runtime).load(Path(path), threads=threads)
    spec = session.signature.inputs[0]
    fixed = spec.shape[0]
    step = fixed or batch_size
    results: np.memmap[Any, np.dtype[np.float32]] | None = None
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        values = fed(samples, rows, spec)
        short = 0 if fixed is None else fixed - len(values)
        if short:  # a file with a fixed batch takes nothing less: repeat the last sample
            values = np.concatenate([values, np.repeat(values[-1:], short, axis=0)])
        answers = answer(session, values)[: rows.stop - start]
        if results is None:
            results = np.lib.format.open_memmap(outputs, "w+", np.float32, (n, *answers.shape[1:]))
        results[rows] = answers
        Path(done).write_text(str(rows.stop))
    session.close()
    assert results is not None
    results.flush()


def fed(samples: Samples, rows: slice, spec: TensorSpec) -> NDArray[np.float32]:
    """These rows as the file takes them: images in its layout, or in the layout that fits where the file states none;
    ready tensors [n, C, H, W] are transposed to it if they fit."""
    wanted = tuple(spec.shape[1:])
    for layout in (spec.layout,) if spec.layout else ("NCHW", "NHWC"):
        values = samples.inputs(rows, layout)
        if values.shape[1:] == wanted:
            return values
    if values.ndim == 4:
        for order in ((0, 2, 3, 1), (0, 3, 1, 2)):
            if tuple(values.shape[axis] for axis in order[1:]) == wanted and samples.array.dtype != np.uint8:
                return np.ascontiguousarray(values.transpose(order))
    raise UserError(
        f"The file takes inputs of shape {list(wanted)} ({spec.layout or 'no image'}), the samples are"
        f" {list(values.shape[1:])}: prepare them with the preprocess that the network expects"
    )


def alike(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights [n] of mean 1 with which all classes that occur count alike: n / (classes * samples of its class).

    >>> alike(np.array([0, 0, 0, 1])).round(3).tolist()
    [0.667, 0.667, 0.667, 2.0]
    """
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights: NDArray[np.float64] = len(labels) / (len(counts) * counts[place])
    return weights


def try_metric(metric: str, labels: NDArray[np.int64], classes: int) -> None:
    """Refuse, before any work, a user's own metric that can't score outputs [n, classes] against these labels [n]."""
    if metric not in BUILT_IN:
        outputs = np.random.default_rng(0).normal(size=(len(labels), classes)).astype(np.float32)
        _custom(metric, load_metric(metric), outputs, labels)


def check_metric(metric: str) -> None:
    """Refuse, before any work, a metric that is neither built in nor can be imported."""
    if metric not in BUILT_IN:
        load_metric(metric)


def load_metric(metric: str) -> Callable[[NDArray[np.float32], NDArray[np.int64]], Any]:
    """The function behind "package.module:function"; raises UserError with what is wrong with the name."""
    module_name, colon, name = metric.partition(":")
    if not (colon and name and module_name.strip(".") == module_name != ""):
        raise UserError(f"There is no metric '{metric}': known are {', '.join(BUILT_IN)}, or package.module:function")
    return user_code.function(metric, "metric")


def check_labels(samples: Samples, metric: str) -> None:
    """Raises UserError where a sample has no label."""
    if missing := int(np.sum(samples.labels < 0)):
        first = samples.names[int(np.argmax(samples.labels < 0))] if len(samples.names) else "a sample"
        raise UserError(f"{missing} samples have no label ('{first}' is the first), which '{metric}' needs")


def per_class(
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    baseline: NDArray[np.float64],
    candidate: NDArray[np.float64] | None = None,
) -> list[ClassScore]:
    """Mean score of every class that has samples; with a candidate, the classes that lost most come first.

    >>> rows = per_class(np.array([0, 0, 1]), ("cat", "dog"), np.array([1.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0]))
    >>> [(row.name, row.drop_points) for row in rows]
    [('dog', 100.0), ('cat', 0.0)]
    """
    rows = []
    for label in np.unique(labels[labels >= 0]):
        here = labels == label
        name = class_names[label] if label < len(class_names) else str(label)
        before = float(baseline[here].mean())
        after = None if candidate is None else float(candidate[here].mean())
        drop = None if after is None else 100 * (before - after)
        rows.append(ClassScore(name, int(here.sum()), before, after, drop))
    return rows if candidate is None else sorted(rows, key=lambda row: -(row.drop_points or 0.0))


def _graded(
    metric: str, function: Callable[..., Any] | None, outputs: NDArray[np.float32], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    if function is not None:
        return _custom(metric, function, outputs, labels)
    top = _top(outputs, labels, 5 if metric == "top5" else 1)
    return top * alike(labels) if metric == "balanced-accuracy" else top


def _top(outputs: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """1 where the label is among the k largest outputs; equal outputs rank in the order of their classes."""
    if outputs.ndim != 2:
        raise UserError(f"Accuracy needs outputs [n, classes]; this file gives {list(outputs.shape)}")
    if int(labels.max()) >= outputs.shape[1]:
        raise UserError(f"A sample has label {int(labels.max())}, but the file names {outputs.shape[1]} classes only")
    own = np.take_along_axis(outputs, labels[:, None], axis=1)
    earlier = np.arange(outputs.shape[1])[None, :] < labels[:, None]
    rank: NDArray[np.int64] = np.sum((outputs > own) | ((outputs == own) & earlier), axis=1)
    return (rank < k).astype(np.float64)


def _custom(
    metric: str, function: Callable[..., Any], outputs: NDArray[np.float32], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    try:
        values = np.array(function(outputs, labels), np.float64)
    except Exception as error:  # whatever a user's function raises is told to that user
        raise UserError(f"The metric '{metric}' failed with {type(error).__name__}: {error}") from error
    if values.shape != labels.shape:
        raise UserError(
            f"The metric '{metric}' gave scores {list(values.shape)}; one a sample, {list(labels.shape)}, is needed"
        )
    usable = ~np.isnan(outputs.reshape(len(outputs), -1)).any(axis=1)
    if not np.all(np.isfinite(values[usable])):
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
