"""Latencies beside other work: which trials are timed again, with what patience, and that it is done once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pocketfit.core.errors import ExportFailed
from pocketfit.core.measurement import Measurement
from pocketfit.core.support.progress import Silent
from pocketfit.core.trial import Trial
from pocketfit.devices import local
from pocketfit.measurement import latency
from pocketfit.measurement.latency import LatencyComparison
from pocketfit.search import journal
from pocketfit.search.decide.choose import choose
from pocketfit.search.decide.result import compose
from pocketfit.search.run.verdict import disturbed_latencies
from tests.search import builders

BESIDE = ("other processes used up to 1.00 of 2 cores (in 4 of 4 sessions)",)
LIMITS = builders.budget(max_latency="0.6x", max_drop="1pt")
BASE = builders.baseline()
SLOW = builders.trial(1, latency=0.61, precision="int8", disturbed=BESIDE)
QUIET = builders.trial(2, latency=0.7, precision="float16")
LOSSY = builders.trial(3, latency=0.3, drop=4.0, precision="int8", activations="uint8", disturbed=BESIDE)


def compared(baseline: Path, candidate: Path, ratio: float) -> LatencyComparison:
    ms = {name: Measurement(quantity=name, unit="ms", value=10.0 * ratio) for name in ("latency_ms", "latency_p95_ms")}
    ratios = {
        "latency_ratio": Measurement(
            quantity="latency_ratio", unit="x", value=ratio, low=ratio - 0.02, high=ratio + 0.02
        )
    }
    bounds = dict.fromkeys((*ms, *ratios), ratio + 0.01)
    base = {"latency_ms": Measurement(quantity="latency_ms", unit="ms", value=10.0)}
    return LatencyComparison(
        runtime="litert",
        baseline_path=str(baseline),
        candidate_path=str(candidate),
        baseline=base,
        candidate=ms,
        ratios=ratios,
        upper_one_sided=bounds,
        sessions=(ratio,),
        between=0.0,
        within=0.01,
    )


def test_those_that_could_be_chosen_count() -> None:
    assert disturbed_latencies.disturbed([BASE, SLOW, QUIET, LOSSY], LIMITS) == [SLOW]
    assert disturbed_latencies.disturbed([BASE, SLOW, QUIET, LOSSY], builders.budget(max_latency="0.6x")) == [
        LOSSY,
        SLOW,
    ]
    assert disturbed_latencies.disturbed([BASE, SLOW], builders.budget(max_size="0.5x", prefer="size")) == []
    assert disturbed_latencies.disturbed([BASE, SLOW], LIMITS, {1}) == [], "once is enough, whatever came of it"
    control = builders.trial(5, latency=0.5, stage="control", disturbed=BESIDE)
    assert disturbed_latencies.disturbed([BASE, control], LIMITS) == [], "it is compared with, never handed over"
    assert disturbed_latencies.disturbed([SLOW, builders.failed(4)], LIMITS) == [], (
        "without a baseline there is nothing to time against"
    )
    many = [builders.trial(n, latency=1 - n / 100, precision="int8", disturbed=BESIDE) for n in range(1, 20)]
    assert [t.number for t in disturbed_latencies.disturbed([BASE, *many], LIMITS)] == [19, 18, 17, 16, 15, 14]


def test_they_are_timed_in_turns_with_the_baseline_and_the_choice_goes_by_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def compare(runtime: str, baseline: Path, files: list[Path], **settings: Any) -> list[LatencyComparison]:
        asked.append((runtime, baseline, files, settings["effort"], settings["best"]))
        return [compared(baseline, file, 0.5) for file in files]

    monkeypatch.setattr(latency, "compare_latency", compare)
    budget = replace(LIMITS, max_time_s=100.0)
    job: Any = SimpleNamespace(out=tmp_path, budget=budget, threads=1)
    before = [builders.start(LIMITS), *map(builders.line, [BASE, SLOW, QUIET, LOSSY])]
    assert disturbed_latencies.timing_lines(job, journal.digest(before), Silent(), left_s=0.0) == [] == asked
    lines = disturbed_latencies.timing_lines(job, journal.digest(before), Silent(), left_s=7.0)
    ((runtime, baseline, files, effort, best),) = asked
    assert (runtime, baseline, best) == ("litert", tmp_path / BASE.artifact.path, {})  # type: ignore[union-attr]
    assert files == [tmp_path / SLOW.artifact.path]  # type: ignore[union-attr]
    assert effort == replace(latency.QUICK, patience_s=7.0)
    assert [(line["kind"], line["trial"]) for line in lines] == [("timing", 0), ("timing", 1)]

    record = journal.digest([*before, *lines])
    assert compose(journal.digest(before), LIMITS, finished=True)["status"] == "infeasible"
    data = compose(record, LIMITS, finished=True)
    assert (data["status"], data["chosen"]["trial"]) == ("met", 1)
    assert record.trial(1).value("latency_p95_ms") == 5.0 and record.trial(1).value("size_bytes") == 300_000
    assert record.calmer == {0, 1} and record.measured_again == set()
    assert disturbed_latencies.timing_lines(job, record, Silent(), left_s=7.0) == [] and len(asked) == 1


def test_a_timing_that_fails_leaves_the_first_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: Any, **__: Any) -> None:
        raise ExportFailed("The step measure.cost.session died with exit status -9", "")

    monkeypatch.setattr(latency, "compare_latency", dies)
    job: Any = SimpleNamespace(out=tmp_path, budget=LIMITS, threads=1)
    record = journal.digest([builders.start(LIMITS), *map(builders.line, [BASE, SLOW])])
    assert disturbed_latencies.timing_lines(job, record, Silent(), left_s=7.0) == []


@pytest.mark.parametrize(
    ("max_time", "left_s", "expected"),
    [(None, float("inf"), 60.0), ("2min", 100.0, 12.0), ("1h", 9.0, 9.0), ("1h", -3.0, 0.0)],
)
def test_patience_is_bounded_by_the_time_limit_and_by_what_is_left(
    max_time: str | None, left_s: float, expected: float
) -> None:
    budget = builders.budget(max_time=max_time)
    assert disturbed_latencies.patient(replace(latency.CAREFUL, patience_s=60.0), budget, left_s).patience_s == expected


def known(number: int, best: dict[str, float], cpu: str = "", **settings: Any) -> Trial:
    trial = builders.trial(number, **settings)
    where = {"cpu": cpu or local.describe().name, "best_ms": best}
    found = {**trial.measurements, "latency_ms": replace(trial.measurements["latency_ms"], environment=where)}
    return replace(trial, measurements=found)


def test_the_best_times_are_this_processors_and_the_baselines_of_the_runtime() -> None:
    trials = [
        known(0, {"core": 1.0, "memory": 3.0, "baseline": 4.0}, stage="baseline"),
        known(1, {"core": 1.1, "memory": 2.0, "baseline": 12.0}),
        known(2, {"core": 0.9, "baseline": 0.5}, runtime="onnxruntime"),
        known(3, {"core": 0.1}, cpu="another processor"),
        builders.failed(4),
    ]
    assert disturbed_latencies.best_times(trials, "litert") == {"core": 0.9, "memory": 2.0, "baseline": 4.0}
    assert disturbed_latencies.best_times(trials, "onnxruntime")["baseline"] == 0.5


def test_a_disturbed_trial_is_chosen_like_another_by_its_bounds() -> None:
    """On a machine that is never quiet the search must still find what would be certified by its bounds."""
    sure = builders.trial(2, latency=0.5, drop=0.1, sure=0.1, precision="float16", disturbed=BESIDE)
    fast = builders.trial(1, latency=0.4, drop=0.9, sure=0.5, precision="int8", disturbed=BESIDE)
    chosen = choose([BASE, fast, sure], LIMITS)
    assert chosen is not None and chosen.trial.number == 2
