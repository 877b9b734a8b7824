"""The Pareto plots as data: which axes, which points, where the limits lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pocketfit.core.budget import Budget, Limit
from pocketfit.core.trial import Trial
from pocketfit.report.page import words
from pocketfit.report.page.svg import SHAPES, nice_ticks
from pocketfit.search.decide.pareto import pareto_front

WHISKERS_UP_TO = 40  # trials; with more, their intervals would cover the plot
LABELS_BEYOND_UP_TO = 5  # so many points above the axis are labelled with their value


def plots(
    trials: Sequence[Trial],
    base: Mapping[str, Trial],
    budget: Budget,
    *,
    chosen: int | None,
    reference: int | None,
    missed: Mapping[int, Sequence[str]],
) -> list[dict[str, Any]]:
    """One plot with the size on x and one with the latency, both with the drop on the search split on y.

    chosen, reference  numbers of the chosen trial and of its baseline
    missed             by number, the limits that a trial does not meet
    """
    limits = {limit.quantity: limit for limit in budget.limits}
    made = []
    for key in ("size", "latency"):
        limit = limits.get(key)
        axis = _axis_words(key, limit)
        entries = [
            (t, x, y)
            for t in trials
            if t.status == "ok"
            and t.stage != "control"
            and (x := _across(t, base, limit, key)) is not None
            and (y := _drop(t)) is not None
        ]
        if entries:
            y_limit = limits.get("drop")
            made.append(
                _plot(
                    key,
                    axis,
                    entries,
                    x_limit=limit,
                    y_limit=y_limit,
                    chosen=chosen,
                    reference=reference,
                    missed=missed,
                )
            )
    return made


def _axis_words(key: str, limit: Limit | None) -> tuple[str, str]:
    """Title of the x axis and the unit of its values."""
    if key == "size":
        relative = limit is not None and limit.relative
        return ("Model size, as a ratio to float32 in the same runtime", "x") if relative else ("Model size", "B")
    if limit is not None and not limit.relative:
        return f"Latency (p{limit.percentile})", "ms"
    return "Latency, as a ratio to float32 in the same runtime", "x"


def _across(trial: Trial, base: Mapping[str, Trial], limit: Limit | None, key: str) -> float | None:
    """The trial's value on the x axis, in the unit of the limit, so that the limit is one line."""
    if key == "size":
        value, reference = trial.value("size_bytes"), base.get(trial.runtime)
        if limit is None or not limit.relative:
            return value
        whole = reference.value("size_bytes") if reference else None
        return value / whole if value is not None and whole else None
    percentile = limit.percentile if limit else 50
    if limit is not None and not limit.relative:
        return trial.value("latency_ms" if percentile == 50 else f"latency_p{percentile}_ms")
    ratio = trial.value("latency_ratio" if percentile == 50 else f"latency_p{percentile}_ratio")
    return 1.0 if ratio is None and trial.stage == "baseline" else ratio


def _drop(trial: Trial) -> float | None:
    value = trial.value("drop_points")
    return 0.0 if value is None and trial.stage == "baseline" else value


def _plot(
    key: str,
    axis: tuple[str, str],
    entries: Sequence[tuple[Trial, float, float]],
    *,
    x_limit: Limit | None,
    y_limit: Limit | None,
    chosen: int | None,
    reference: int | None,
    missed: Mapping[int, Sequence[str]],
) -> dict[str, Any]:
    runtimes = sorted({t.runtime for t, _, _ in entries})
    across, down = [x for _, x, _ in entries], [y for _, _, y in entries]
    x = _axis(axis[0], axis[1], across, x_limit, from_zero=True)
    y = _axis("Drop", "pt", down, y_limit, from_zero=False)
    whiskers = len(entries) <= WHISKERS_UP_TO
    front = pareto_front(np.array([across, down], dtype=np.float64).T)
    points: list[dict[str, Any]] = []
    labelled = sum(height > y["high"] for height in down) <= LABELS_BEYOND_UP_TO
    for trial, left, height in entries:
        kinds = ["chosen"] if trial.number == chosen else ["reference"] if trial.number == reference else []
        kinds.append("outside" if missed.get(trial.number) else "within")
        measured = trial.measurements.get("drop_points")
        known = measured if measured and (whiskers or trial.number == chosen) else None
        points.append(
            {
                "x": left,
                "y": height,
                "low": known.low if known else None,
                "high": known.high if known else None,
                "shape": runtimes.index(trial.runtime),
                "css": " ".join(kinds + (["estimated"] if _estimated(trial) else [])),
                "title": _title(trial, left, height, axis[1], missed.get(trial.number, ())),
                "label": _label(trial.number, chosen, reference, height, height > y["high"] and labelled),
            }
        )
    # the chosen one last, on top of the others
    points.sort(key=lambda p: ("chosen" in p["css"], "reference" in p["css"]))
    beyond = sum(a > x["high"] or b > y["high"] for _, a, b in entries)
    return {
        "key": key,
        "name": key.capitalize(),
        "x": x,
        "y": y,
        "points": points,
        "front": sorted({(a, b) for (_, a, b), keep in zip(entries, front, strict=True) if keep}),
        "runtimes": [{"name": name, "shape": SHAPES[i % len(SHAPES)]} for i, name in enumerate(runtimes)],
        "beyond": beyond,
        "count": len(entries),
        "aria": f"{len(entries)} trials: {axis[0].lower()} rightwards, drop in points upwards;"
        " the table of trials has the numbers",
    }


def _label(number: int, chosen: int | None, reference: int | None, drop: float, beyond: bool) -> str:
    if number == chosen:
        return f"chosen: {number}"
    if number == reference:
        return "float32"
    return f"↑ {words.format_points(drop)}" if beyond else ""


def _axis(title: str, unit: str, values: Sequence[float], limit: Limit | None, *, from_zero: bool) -> dict[str, Any]:
    """An axis that shows the limit and most trials: a ruined trial (85 points lost) must not flatten the others."""
    bound = limit.value if limit else None
    typical = float(np.quantile(values, 0.75))
    ceiling = max(4 * (bound or 0.0), 1.6 * typical, 1e-9)
    highest = max(min(max(values), ceiling), bound or 0.0)
    lowest = 0.0 if from_zero else min(0.0, *values, highest)
    if highest <= lowest:
        highest = lowest + 1.0
    margin = 0.06 * (highest - lowest)
    low, high = (0.0 if from_zero else lowest - margin), highest + margin
    return {
        "title": title,
        "low": low,
        "high": high,
        "ticks": [(t, _tick(t, unit)) for t in nice_ticks(low, high, 5)],
        "limit": bound,
        "limit_label": "" if limit is None else f"limit {words.format_limit(limit.to_json())}",
    }


def _tick(value: float, unit: str) -> str:
    """
    >>> _tick(2_500_000.0, "B"), _tick(0.25, "x"), _tick(-1.0, "pt")
    ('2.5 MB', '0.25x', '-1')
    """
    if unit == "B":
        step, name = (1e6, "MB") if value >= 1e6 else (1e3, "kB")
        return f"{value / step:g} {name}" if value else "0"
    return f"{value:g}" + {"x": "x", "ms": " ms", "pt": ""}[unit]


def _estimated(trial: Trial) -> bool:
    return any(m.how == "estimated" for m in trial.measurements.values())


def _title(trial: Trial, x: float, y: float, unit: str, missed: Sequence[str]) -> str:
    parts = [
        f"Trial {trial.number}: {trial.plan.code} ({trial.runtime})",
        words.format_value(x, unit),
        f"drop {words.format_points(y, 2)}",
    ]
    if _estimated(trial):
        parts.append("estimated")
    if missed:
        parts.append(f"misses {', '.join(missed)}")
    return " · ".join(parts)
