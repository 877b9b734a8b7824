"""Sentences on latencies that are unreliable: because of what ran beside them, or because figures don't agree."""

from __future__ import annotations

from pocketfit.core.measurement import Measurement
from pocketfit.core.trial import Trial
from pocketfit.measurement.quiet import BASELINE
from pocketfit.search.decide.choose import Choice

BASELINE_WORTH_A_WORD = 1.1  # times the baseline's best latency in this run: slower than that is said


def doubts(final: Choice, searched: Trial | None) -> list[str]:
    """Sentences that speak against the latency of a choice.

    final     with the verdict's measurements, where there are any
    searched  the same trial as the search measured it, where `final` has a verdict
    """
    return [*_disturbed(final), *_two_ratios(final, searched), *_slow_baseline(final)]


def _disturbed(final: Choice) -> list[str]:
    why = {k: m.disturbed for k, m in final.trial.measurements.items() if k in ("latency_ratio", "latency_ms")}
    reasons = why.get("latency_ratio") or why.get("latency_ms")
    if not reasons or final.trial.artifact is None or final.baseline.artifact is None:
        return []
    against = f" --against {final.baseline.artifact.path}" if final.trial.number != final.baseline.number else ""
    return [
        f"The latency is not certified, because other work ran beside it: {'; '.join(reasons)}. To take it again on a"
        f" quiet machine, in the output folder: pocketfit measure {final.trial.artifact.path}{against}"
    ]


def _two_ratios(final: Choice, searched: Trial | None) -> list[str]:
    """A sentence where the search's ratio lies outside of the verdict's interval."""
    now = final.trial.measurements.get("latency_ratio")
    before = None if searched is None else searched.measurements.get("latency_ratio")
    if before is None or before.value is None or now is None or now.low is None or now.high is None:
        return []
    if now.low <= before.value <= now.high:
        return []
    return [f"The latency ratio was {_quoted(before)} while searching, and {_quoted(now)} in the verdict's sessions."]


def _slow_baseline(final: Choice) -> list[str]:
    """A sentence where the baseline took longer than at its best in this run, by more than its interval."""
    now = final.baseline.measurements.get("latency_ms")
    best = None if now is None else now.environment.get("best_ms", {}).get(BASELINE)
    if now is None or now.value is None or not best:
        return []
    if now.value <= BASELINE_WORTH_A_WORD * best or (now.low is not None and now.low <= best):
        return []
    return [
        f"The baseline took {now.value:.2f} ms in these sessions and {best:.2f} ms in its best ones of this run"
        f" ({now.value / best:.2f}x): a ratio from a slow moment need not hold in a fast one."
    ]


def _quoted(ratio: Measurement) -> str:
    interval = "" if ratio.low is None or ratio.high is None else f" ({ratio.low:.3g} to {ratio.high:.3g})"
    return f"{ratio.value:.3g}x{interval}"
