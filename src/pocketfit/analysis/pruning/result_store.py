"""The store for the results of evaluate.py, and the processes that compute them.

One file holds the results for one network, data and settings: a JSON line for each (group, channels kept). While a run
is on, each of its processes writes a file of its own beside it, so that a kill loses only evaluations in progress.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypedDict

from pocketfit.analysis.pruning import evaluate as trials
from pocketfit.analysis.pruning.evaluate import Answers, Job, Row
from pocketfit.core.model import Model
from pocketfit.core.samples import Samples
from pocketfit.core.support import user_code
from pocketfit.core.support.files import whole_or_not
from pocketfit.core.support.json_file import parse, read_bytes
from pocketfit.core.support.progress import Tick
from pocketfit.core.support.rules import Between, Count
from pocketfit.core.support.schema import checked
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.passes.graph.channel_graph import ChannelGraph
from pocketfit.processes import child_process

POLL_S = 0.2
NO_TIME_LIMIT_S = 10.0**9
MOST_BYTES = 2**28  # of a file of results
Points = Annotated[float, Between(-100, 100)]
Error = Annotated[float, Between(0)]


class Refusal(TypedDict):
    """A line of the store: why the network does not run with `kept` channels of a group."""

    group: str
    kept: Count
    why_not: str


class Outcome(TypedDict):
    """A line of the store: what the network loses with `kept` channels of a group."""

    group: str
    kept: Count
    loss: float
    loss_rise: float
    loss_rise_se: Error
    accuracy: Annotated[float, Between(0, 1)]
    drop_points: Points
    drop_points_se: Error


def evaluated(
    model: Model,
    graph: ChannelGraph,
    samples: Samples,
    whole: Answers,
    jobs: Sequence[Job],
    workers: int,
    store: Path | None,
    key: str,
    progress: Tick | None,
) -> dict[tuple[str, int], Row]:
    """The row for each (group, channels kept), from the store or computed now."""
    rows = {} if store is None else _stored(store, key)
    missing = [job for job in jobs if (job.group, job.kept) not in rows]
    if missing:
        with temporary_folder() as temporary:
            lines = Path(temporary) if store is None else store
            lines.mkdir(parents=True, exist_ok=True)
            names = [lines / f"{key}-{os.getpid()}-{number}.jsonl" for number in range(min(workers, len(missing)))]

            def tell(done: int) -> None:
                if progress:
                    progress(len(jobs) - len(missing) + done, len(jobs))

            if len(names) == 1 or model.origin.kind == "object":  # such a network can't be built again elsewhere
                found: list[Row] = []

                def keep(row: Row) -> None:
                    trials.append_line(names[0], row)
                    found.append(row)
                    tell(len(found))

                trials.carry_out(model.network, graph, samples, whole, missing, keep)
            else:
                trials.write_work(Path(temporary), model, graph, samples, whole)
                found = _in_children(model, Path(temporary), missing, names, tell)
        rows |= {(row["group"], row["kept"]): row for row in found}
    if store is not None and missing:
        _merge(store, key, rows)
    return rows


def _in_children(
    model: Model, work: Path, jobs: Sequence[Job], lines: Sequence[Path], tell: Callable[[int], None]
) -> list[Row]:
    """Share the jobs among processes. Where one fails, or the user stops, the others end after their current job."""
    stop, name = work / "stop", model.origin.name
    closed = None if model.origin.kind != "factory" else str(user_code.closed_to(name) or "")
    with ThreadPoolExecutor(len(lines)) as pool:
        futures: list[Future[Any]] = []
        for number, path in enumerate(lines):
            mine = [[job.group, job.kept, list(job.removed)] for job in jobs[number :: len(lines)]]
            payload = {"folder": str(work), "jobs": mine, "lines": str(path), "stop": str(stop), "closed": closed}
            target = "pocketfit.analysis.pruning.evaluate:in_child"
            threads = {"OMP_NUM_THREADS": "1"}
            futures.append(
                pool.submit(child_process.call, target, payload, timeout_s=NO_TIME_LIMIT_S, environment=threads)
            )
        try:
            while not all(future.done() for future in futures):
                time.sleep(POLL_S)
                if any(future.done() and future.exception() for future in futures):
                    break
                tell(sum(path.read_bytes().count(b"\n") for path in lines if path.exists()))
        finally:
            stop.touch()
        rows = [row for future in futures for row in future.result()]
    tell(len(rows))
    return rows


def _stored(store: Path, key: str) -> dict[tuple[str, int], Row]:
    """All whole rows under this key; a torn last line (a kill) is left out. Raises UserError for any other line."""
    rows: dict[tuple[str, int], Row] = {}
    for path in sorted(store.glob(f"{key}*.jsonl")):
        source, mend = f"A line of {path}", "remove the file"
        for raw in read_bytes(path, "results", MOST_BYTES).split(b"\n")[:-1]:
            found = parse(raw, source, mend)
            kind = Refusal if isinstance(found, dict) and "why_not" in found else Outcome
            row = checked(kind, found, source, mend)
            rows[(row["group"], row["kept"])] = row
    return rows


def _merge(store: Path, key: str, rows: dict[tuple[str, int], Row]) -> None:
    """Write one file in place of those of the processes."""
    parts = list(store.glob(f"{key}-*.jsonl"))
    with whole_or_not(store / f"{key}.jsonl") as partial:
        partial.write_bytes(b"".join(map(trials.line, rows.values())))
    for path in parts:
        path.unlink(missing_ok=True)
