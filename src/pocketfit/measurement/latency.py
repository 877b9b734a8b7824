"""Latency, measured so that two files can be compared on a machine on which other work runs, too.

Sessions. A session is a fresh process that loads all files of one runtime, warms them up and then times them round by
round, in a new random order for each round. So whatever the machine does meanwhile hits all files alike. Sessions on
one machine differ by more than the noise inside them. So several are taken, and the two kinds of noise are separated.
The file that is loaded first is slower by a few per cent (seen with one file against itself), so every other session
loads the files in the opposite order; the number of sessions is therefore even.

Loads that last. They hit all files, but not alike: a file whose weights don't fit the caches is slowed down by other
users of the memory, a small one is not. So each session records what else ran, and how fast small fixed works were in
turns with the files; quiet.py decides which sessions count.

Interruptions. An invocation of under 20 ms in which the kernel gave the core to other work is timed again, up to three
times. Longer networks hardly ever run without interruption on a busy machine. So an invocation that takes longer, or is
interrupted each time, counts by its processor time if one thread works. Percentiles are therefore those of the network,
not of a busy machine; the environment says how many invocations were timed again.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit import runtimes
from pocketfit.core.errors import UserError
from pocketfit.core.measurement import Measurement
from pocketfit.core.quantities import PERCENTILES
from pocketfit.core.runtime import Session
from pocketfit.core.signature import Signature
from pocketfit.core.support.progress import Tick
from pocketfit.devices import load, local
from pocketfit.devices.load import Load
from pocketfit.measurement import quiet
from pocketfit.measurement.canary import Canary
from pocketfit.measurement.environment import environment
from pocketfit.numerics import latency_intervals
from pocketfit.numerics.latency_intervals import OverSessions
from pocketfit.processes import child_process

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]  # hints know the module on every system

ROUND_MS = 2.0  # a file's share of a round is at least this long: far above what the clock and the loop cost
MAX_CALLS = 64
WARM_UP_S = 0.05
STEADY_BELOW_MS = 20.0  # shorter networks first run once untimed (another file has filled the caches), and are retried
TRIES = 4  # how often an invocation of a short network is timed at most, if it is interrupted each time
SONGS = 4  # how often the canary is timed during a session; once more before it, and once after
PROCESS_S = 300.0  # time for starting, loading and compiling before a session counts as hung


@dataclass(frozen=True)
class Effort:
    """How much to measure: `sessions` processes, each for about `seconds` or `max_rounds`, at least `min_rounds`.

    patience_s  how long, in all, to wait for a quiet machine and to take disturbed sessions again
    """

    sessions: int
    seconds: float
    min_rounds: int
    max_rounds: int
    patience_s: float = 0.0


QUICK = Effort(sessions=4, seconds=0.4, min_rounds=5, max_rounds=60, patience_s=1.0)  # to rank trials while searching
CAREFUL = Effort(sessions=6, seconds=3.0, min_rounds=8, max_rounds=400, patience_s=60.0)  # for verdicts


@dataclass(frozen=True, kw_only=True)
class LatencyComparison:
    """One candidate against the baseline, interleaved.

    baseline, candidate  latency_ms (p50), latency_p90_ms, latency_p95_ms, latency_p99_ms, per invocation at batch 1
    ratios               latency_ratio (of the p50), latency_p90_ratio, … : candidate / baseline
    upper_one_sided      one-sided 95 % bound of each of the candidate's latencies and ratios
    sessions             the p50 ratio of each session
    between, within      spread of the p50 ratio from session to session, and its standard error inside one, as shares;
                         between is None with one session, whose interval then lacks it
    """

    runtime: str
    baseline_path: str
    candidate_path: str
    baseline: Mapping[str, Measurement]
    candidate: Mapping[str, Measurement]
    ratios: Mapping[str, Measurement]
    upper_one_sided: Mapping[str, float]
    sessions: tuple[float, ...]
    between: float | None
    within: float

    @property
    def ratio(self) -> Measurement:
        return self.ratios["latency_ratio"]

    def to_json(self) -> dict[str, Any]:
        return {
            "runtime": self.runtime,
            "baseline_path": self.baseline_path,
            "candidate_path": self.candidate_path,
            **{
                part: {k: m.to_json() for k, m in getattr(self, part).items()}
                for part in ("baseline", "candidate", "ratios")
            },
            "upper_one_sided": dict(self.upper_one_sided),
            "sessions": list(self.sessions),
            "between": self.between,
            "within": self.within,
        }


def compare_latency(
    runtime_name: str,
    baseline: Path,
    candidates: Sequence[Path],
    *,
    threads: int = 1,
    effort: Effort = CAREFUL,
    seed: int = 0,
    best: Mapping[str, float] | None = None,
    progress: Tick | None = None,
) -> list[LatencyComparison]:
    """Time files of one runtime against a baseline, all interleaved; one comparison a candidate, in their order.

    best      best_ms in the environment of earlier measurements of the same run, by which slow sessions are recognised
    progress  called with (sessions done, sessions in all)

    Where too few sessions were quiet, all measurements say so: Measurement.disturbed.

    Raises UserError for a file that is not there, CannotRunHere for one that the runtime refuses, and ExportFailed
    when the process dies or hangs.
    """
    paths = [baseline, *candidates]
    sessions, where, how = _take(runtime_name, paths, threads, effort, seed, best, progress)
    theirs = [session[0] for session in sessions]
    baseline_ms, _ = _latencies(theirs, where, how, seed)
    comparisons = []
    for index, path in enumerate(candidates, start=1):
        ours = [session[index] for session in sessions]
        candidate_ms, bounds = _latencies(ours, where, how, seed)
        ratios: dict[str, Measurement] = {}
        for percent in PERCENTILES:
            name = _name(percent, "ratio")
            over = latency_intervals.ratio_of_sessions(ours, theirs, percent=percent, seed=seed)
            ratios[name] = _measurement(name, over, ours, where, how)
            bounds[name] = over.upper_one_sided
            if percent == 50:
                median = over
        comparisons.append(
            LatencyComparison(
                runtime=runtime_name,
                baseline_path=str(baseline),
                candidate_path=str(path),
                baseline=baseline_ms,
                candidate=candidate_ms,
                ratios=ratios,
                upper_one_sided=bounds,
                sessions=tuple(part.value for part in median.sessions),
                between=median.between,
                within=median.within,
            )
        )
    return comparisons


def latency(
    runtime_name: str,
    path: Path,
    *,
    threads: int = 1,
    effort: Effort = CAREFUL,
    seed: int = 0,
    best: Mapping[str, float] | None = None,
    progress: Tick | None = None,
) -> dict[str, Measurement]:
    """latency_ms (p50), latency_p90_ms, latency_p95_ms and latency_p99_ms of one file, per invocation at batch 1.

    best, progress: see compare_latency; the file is its own baseline.
    """
    sessions, where, how = _take(runtime_name, [path], threads, effort, seed, best, progress)
    return _latencies([session[0] for session in sessions], where, how, seed)[0]


def random_inputs(signature: Signature, seed: int) -> dict[str, NDArray[np.generic]]:
    """Plausible values at batch 1: standard normal floats (as after normalization), 8- and 16-bit integers over
    their whole range, 1 for wider ones, which number the rows of a table or say what counts.

    >>> from pocketfit.core.signature import Signature, TensorSpec
    >>> signature = Signature((TensorSpec("x", (None, 2), "uint8"),), ())
    >>> random_inputs(signature, 0)["x"].shape
    (1, 2)
    """
    random = np.random.default_rng(seed)
    values: dict[str, NDArray[np.generic]] = {}
    for spec in signature.inputs:
        shape, dtype = spec.with_batch(1), np.dtype(spec.dtype)
        if dtype.kind == "b" or (dtype.kind in "iu" and dtype.itemsize > 2):
            values[spec.name] = np.ones(shape, dtype)
        elif dtype.kind in "iu":
            limits = np.iinfo(dtype)
            values[spec.name] = random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
        elif dtype.kind == "f":
            values[spec.name] = random.standard_normal(shape, np.float32).astype(dtype, copy=False)
        else:
            raise UserError(f"The input '{spec.name}' has dtype {spec.dtype}; timing takes floats and integers")
    return values


def session(
    *, runtime: str, paths: list[str], threads: int, seed: int, effort: dict[str, Any], root: int
) -> dict[str, Any]:
    """Take one session in this process: {"calls_ms": [rounds][calls] for each file, "cores", "taken_again", "load",
    "times_ms": of the canary's works}. `root` is the process id of the pocketfit that the user started."""
    with local.pin(threads) as cores:
        canary = Canary()
        module = runtimes.get(runtime)
        files = [_File(module.load(Path(path), threads=threads), seed, threads) for path in paths]
        gc.collect()
        gc.disable()
        try:
            before = load.snapshot(root)
            calls_ms = _rounds(files, canary, np.random.default_rng(seed), Effort(**effort))
            ran = load.between(before, load.snapshot(root))
        finally:
            gc.enable()
        for file in files:
            file.loaded.close()
    return {
        "calls_ms": calls_ms,
        "cores": list(cores),
        "taken_again": sum(file.taken_again for file in files),
        "load": asdict(ran),
        "times_ms": canary.medians_ms(),
    }


def _rounds(
    files: Sequence[_File], canary: Canary, random: np.random.Generator, effort: Effort
) -> list[list[list[float]]]:
    """Milliseconds [rounds][calls] of each file; the canary is timed before, after, and between rounds."""
    calls_ms: list[list[list[float]]] = [[] for _ in files]
    begin, songs = time.monotonic(), 1
    canary.sing()
    for done in range(effort.max_rounds):
        spent = time.monotonic() - begin
        if done >= effort.min_rounds and spent > effort.seconds:
            break
        if spent > songs * effort.seconds / (SONGS + 1) and songs <= SONGS:
            canary.sing()
            songs += 1
        for index in random.permutation(len(files)):
            calls_ms[index].append(files[index].round())
    canary.sing()
    return calls_ms


class _File:
    """A loaded file that has been warmed up, with how many invocations it takes to fill its share of a round."""

    def __init__(self, loaded: Session, seed: int, threads: int = 1) -> None:
        self._alone = threads == 1
        self.loaded, self.inputs, self.taken_again = loaded, random_inputs(loaded.signature, seed), 0
        times: list[float] = []
        begin = time.monotonic()
        while len(times) < 2 or (time.monotonic() - begin < WARM_UP_S and times[-1] < 1000 * WARM_UP_S):
            times.append(self._invoke())
        self.short = min(times) < STEADY_BELOW_MS
        self.calls = max(1, min(MAX_CALLS, math.ceil(ROUND_MS / min(times))))

    def round(self) -> list[float]:
        """Milliseconds of each of `calls` invocations."""
        if not self.short:
            return [self._by_work() for _ in range(self.calls)]
        self.loaded.run(self.inputs)
        return [self._undisturbed() for _ in range(self.calls)]

    def _undisturbed(self) -> float:
        for _ in range(TRIES - 1):
            before = _interruptions()
            taken_ms = self._invoke()
            if _interruptions() == before:
                return taken_ms
            self.taken_again += 1
        return self._by_work()

    def _by_work(self) -> float:
        """Milliseconds of an invocation: by the clock, or by processor time where it was interrupted and has one
        thread."""
        before, begin = _interruptions(), time.process_time_ns()
        taken_ms = self._invoke()
        if not self._alone or _interruptions() == before:
            return taken_ms
        return min(taken_ms, (time.process_time_ns() - begin) / 1e6)

    def _invoke(self) -> float:
        start = time.perf_counter_ns()
        self.loaded.run(self.inputs)
        return (time.perf_counter_ns() - start) / 1e6


def _interruptions() -> int:
    """How often the kernel has taken a core from one of this process's threads; 0 where it doesn't say (Windows)."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _take(
    runtime_name: str,
    paths: Sequence[Path],
    threads: int,
    effort: Effort,
    seed: int,
    best: Mapping[str, float] | None,
    progress: Tick | None,
) -> tuple[list[tuple[NDArray[np.float64], ...]], dict[str, Any], str]:
    """(milliseconds [rounds, calls] of each session that counts, for each file; the environment; "measured" or
    "estimated")."""
    how = runtimes.get(runtime_name).HOW
    for path in paths:
        if not path.is_file():
            raise UserError(f"The file '{path}' is not there")
    where = environment(threads)
    resolved = [str(path.resolve()) for path in paths]

    def take(number: int, turn: int) -> quiet.Session:
        found = child_process.call(
            "pocketfit.measurement.latency:session",
            {
                "runtime": runtime_name,
                "paths": resolved[::turn],
                "threads": threads,
                "seed": seed + number,
                "effort": asdict(effort),
                "root": os.getpid(),
            },
            timeout_s=PROCESS_S + 10 * effort.seconds,
        )
        calls_ms = tuple(np.asarray(calls, np.float64) for calls in found["calls_ms"][::turn])
        times_ms = {**found["times_ms"], quiet.BASELINE: float(np.median(calls_ms[0]))}
        ran = Load(**found["load"])
        return quiet.Session(calls_ms, ran, times_ms, turn, tuple(found["cores"]), found["taken_again"])

    kept = quiet.collect(take, effort.sessions, quiet.Patience(effort.patience_s), best or {}, progress)
    return [each.calls_ms for each in kept.sessions], {**where, "batch": 1, **kept.to_json()}, how


def _latencies(
    sessions: Sequence[NDArray[np.float64]], where: Mapping[str, Any], how: str, seed: int
) -> tuple[dict[str, Measurement], dict[str, float]]:
    found, bounds = {}, {}
    for percent in PERCENTILES:
        name = _name(percent, "ms")
        over = latency_intervals.latency_of_sessions(sessions, percent=percent, seed=seed)
        found[name] = _measurement(name, over, sessions, where, how)
        bounds[name] = over.upper_one_sided
    return found, bounds


def _measurement(
    name: str, over: OverSessions, sessions: Sequence[NDArray[np.float64]], where: Mapping[str, Any], how: str
) -> Measurement:
    """A Measurement over sessions: `samples` are the sessions' values, `n` is the number of invocations behind them.

    Only the two headline quantities get the whole environment, because a journal has many such lines. All get what
    disturbed the sessions.
    """
    brief = {key: where[key] for key in ("threads", "disturbed") if key in where}
    full = dict(where) if name in ("latency_ms", "latency_ratio") else brief
    if name == "latency_ms":
        full |= {"rounds": [each.shape[0] for each in sessions], "calls_a_round": [each.shape[1] for each in sessions]}
    return Measurement(
        quantity=name,
        unit="ms" if name.endswith("ms") else "x",
        value=over.interval.value,
        n=sum(each.size for each in sessions),
        low=over.interval.low,
        high=over.interval.high,
        how="estimated" if how == "estimated" else "measured",
        reason="timed in eager PyTorch, which is not what ships" if how == "estimated" else "",
        samples=tuple(part.value for part in over.sessions),
        environment=full,
    )


def _name(percent: int, unit: str) -> str:
    return f"latency_{unit}" if percent == 50 else f"latency_p{percent}_{unit}"
