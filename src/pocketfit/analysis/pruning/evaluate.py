"""Loss and accuracy of a network without some of its channels, in eager torch: the work behind channel_sensitivity.

Channels are sliced off, not masked: pruning does the same, whatever the layers are, and a smaller network runs faster.
Everything runs on one thread and in batches of one size, so that the numbers are the same to the last bit wherever they
are computed.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.samples import Samples
from pocketfit.core.support import user_code
from pocketfit.passes.graph.channel_graph import ChannelGraph, Slice
from pocketfit.passes.graph.feed import call, each, fed
from pocketfit.passes.prune import subnetworks
from pocketfit.passes.train.answers import move
from pocketfit.sources.input_contract import check_preprocess
from pocketfit.sources.models.open_model import load_model, save_model

BATCH = 64
RAISED = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)  # by a forward with constant sizes
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Channels to remove: `removed` holds their ids in the graph; group and kept are copied into the row."""

    group: str
    kept: int
    removed: tuple[int, ...]


@dataclass(frozen=True)
class Answers:
    """A network's predictions for N samples, C classes.

    log_probabilities  float64 [N, C]
    losses             float64 [N]: cross-entropy with the labels, or KL divergence from a reference network
    right              float64 [N]: 1 where the predicted class is the label, or the reference's prediction
    """

    log_probabilities: NDArray[np.float64]
    losses: NDArray[np.float64]
    right: NDArray[np.float64]


def answers(network: nn.Module, samples: Samples, reference: Answers | None = None) -> Answers:
    """The Answers of a network for all samples. Samples without labels are judged by `reference` (None: by itself).

    Raises what the forward raises, and ArithmeticError where outputs are not finite.
    """
    faster = copy.deepcopy(network)
    move(faster, None, torch.channels_last)
    found = []
    with torch.inference_mode(), one_thread():
        for start in range(0, len(samples), BATCH):
            inputs = each(fed(samples, slice(start, start + BATCH)), _channels_last)
            found.append(call(faster, inputs).double().log_softmax(-1).numpy())
    logs = np.concatenate(found)
    if not np.isfinite(logs).all():
        raise ArithmeticError("its outputs are not finite")
    rows = np.arange(len(logs))
    if is_labelled(samples):
        wanted, losses = samples.labels, -logs[rows, samples.labels]
    else:
        sure = logs if reference is None else reference.log_probabilities
        wanted, losses = sure.argmax(1), (np.exp(sure) * (sure - logs)).sum(1)
    return Answers(logs, losses, (logs.argmax(1) == wanted).astype(np.float64))


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def is_labelled(samples: Samples) -> bool:
    return bool(len(samples)) and bool((samples.labels >= 0).all())


def carry_out(
    network: nn.Module,
    graph: ChannelGraph,
    samples: Samples,
    whole: Answers,
    jobs: Sequence[Job],
    done: Callable[[Row], None],
) -> list[Row]:
    """One row for each job, in their order; `done` is called with each as soon as it is there."""
    rows = []
    for job in jobs:
        row = {"group": job.group, "kept": job.kept, **_outcome(network, graph, samples, whole, job)}
        done(row)
        rows.append(row)
    return rows


def _outcome(network: nn.Module, graph: ChannelGraph, samples: Samples, whole: Answers, job: Job) -> Row:
    try:
        smaller = subnetworks.without(network, graph, np.array(job.removed, np.int64))
        found = answers(smaller, samples, whole)
    except (*RAISED, ArithmeticError, UserError) as error:
        return {"why_not": (str(error) or type(error).__name__).splitlines()[0][:200]}
    if found.log_probabilities.shape != whole.log_probabilities.shape:
        return {"why_not": "the number of its outputs changes"}
    rise, rise_se = mean_and_error(found.losses - whole.losses)
    drop, drop_se = mean_and_error(100 * (whole.right - found.right))
    return {
        "loss": float(found.losses.mean()),
        "loss_rise": rise,
        "loss_rise_se": rise_se,
        "accuracy": float(found.right.mean()),
        "drop_points": drop,
        "drop_points_se": drop_se,
    }


def mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """The mean of paired differences, and its standard error; that of one value is 0.

    >>> mean_and_error(np.array([1.0, 3.0]))
    (2.0, 1.0)
    """
    count = len(values)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(count)) if count > 1 else 0.0


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch uses one thread, so that sums are the same in every process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_work(folder: Path, model: Model, graph: ChannelGraph, samples: Samples, whole: Answers) -> None:
    """Write what a child needs: the model folder, and arrays that numpy reads without unpickling."""
    save_model(model, folder / "model")
    np.savez(folder / "ids.npz", *(part.ids for part in graph.slices))
    np.save(folder / "samples.npy", samples.array)
    for number, further in enumerate(samples.more.values()):
        np.save(folder / f"more-{number}.npy", further)
    np.savez(folder / "whole.npz", logs=whole.log_probabilities, losses=whole.losses, right=whole.right)
    np.save(folder / "labels.npy", samples.labels)
    places = [[part.parameter, part.dim] for part in graph.slices]
    told = {
        "places": places,
        "preprocess": samples.preprocess.to_json(),
        "split": samples.split,
        "more": list(samples.more),
    }
    (folder / "work.json").write_text(json.dumps(told))


def in_child(folder: str, jobs: list[list[Any]], lines: str, stop: str, closed: str | None) -> list[Row]:
    """The child's side of `carry_out`: each row is also a line of `lines`; ends early once the file `stop` exists.

    closed  for a network from a factory that the parent may call: the folder from which its code must not come, ""
            where the user gave the name
    """
    work = Path(folder)
    if closed is not None:
        name = json.loads((work / "model" / "model.json").read_text(encoding="utf-8"))["origin"]["name"]
        user_code.function(name, "factory", Path(closed) if closed else None)
    told = json.loads((work / "work.json").read_text())
    with np.load(work / "ids.npz", allow_pickle=False) as stored:
        ids = [stored[f"arr_{number}"] for number in range(len(told["places"]))]
    with np.load(work / "whole.npz", allow_pickle=False) as stored:
        whole = Answers(stored["logs"], stored["losses"], stored["right"])
    labels = np.load(work / "labels.npy", allow_pickle=False)
    array = np.load(work / "samples.npy", mmap_mode="r", allow_pickle=False)
    preprocess = check_preprocess(told["preprocess"], work / "work.json")
    samples = Samples(
        array=array,
        more={
            name: np.load(work / f"more-{number}.npy", mmap_mode="r", allow_pickle=False)
            for number, name in enumerate(told["more"])
        },
        labels=labels,
        names=[""] * len(labels),
        split=told["split"],
        sha256="",
        preprocess=preprocess,
    )
    slices = tuple(Slice(name, dim, part) for (name, dim), part in zip(told["places"], ids, strict=True))
    graph = ChannelGraph(slices=slices, groups=(), layers=())
    network = load_model(work / "model", allow_code=closed is not None).network
    rows: list[Row] = []
    for group, kept, removed in jobs:
        if Path(stop).exists():
            break
        job = Job(group, kept, tuple(removed))
        rows += carry_out(network, graph, samples, whole, [job], lambda row: append_line(Path(lines), row))
    return rows


def append_line(path: Path, row: Row) -> None:
    """One JSON line, on the disk before this returns."""
    with path.open("ab") as file:
        file.write(line(row))
        file.flush()
        os.fsync(file.fileno())


def line(row: Row) -> bytes:
    """As JSON, with its end."""
    return json.dumps(row, separators=(",", ":"), allow_nan=False).encode() + b"\n"
