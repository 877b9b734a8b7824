"""The section on accuracy: what plain int8 lost, which layers cause it, what was done, and what that gained. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pocketfit.core.budget import Budget
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.quantize import Equalize, QuantTrain, Round
from pocketfit.core.plan.rewrite import Fold, Piecewise
from pocketfit.core.trial import Trial
from pocketfit.report.page import words
from pocketfit.report.run.limit_bars import cell
from pocketfit.search.decide.check_limits import accurate
from pocketfit.search.decide.choose import baselines
from pocketfit.search.journal import Record
from pocketfit.search.run.layer_sensitivity import sets_in_float

Json = Mapping[str, Any]
NAMED, STANDS_OUT = 2, 0.5  # culprits that are named, at most; least share of the first one's noise to be named
NARROWER = 0.8  # equalization has helped a layer whose widest channel stands out by less than this share of before


def where_it_went(record: Record, budget: Budget, chosen: int | None) -> list[dict[str, Any]]:
    """One entry for each runtime that has a plain static int8 file, the chosen trial's runtime first."""
    made = [t.runtime for t in record.trials if t.number == chosen] + [t.runtime for t in record.trials]
    entries = (_entry(record, budget, chosen, runtime) for runtime in dict.fromkeys(made))
    return [entry for entry in entries if entry is not None]


def _entry(record: Record, budget: Budget, chosen: int | None, runtime: str) -> dict[str, Any] | None:
    known = [t for t in record.trials if t.runtime == runtime and t.plan.export.precision == "int8"]
    recipes = [t for t in known if t.stage == "recipe" and t.status == "ok"]
    plain = min(recipes, key=lambda t: (len(t.plan.export.keep_float), _loss(t), t.number), default=None)
    if plain is None or _drop(plain) is None:
        return None
    rungs = [t for t in known if t.stage == "ladder"]
    done = [t for t in rungs if t.status == "ok" and _drop(t) is not None]
    line: Json = record.sensitivity.get((runtime, False), {})
    mended = next((t for t in known if t.number == chosen), None) or min(done, key=_loss, default=None)
    base, kept = baselines(record.trials).get(runtime), _keep_float(line, mended, rungs)
    enough = [t for t in recipes if base is not None and accurate(t, base, budget)]
    return {
        "runtime": runtime,
        "sentences": [
            *_opening(plain, budget, enough, climbed=bool(rungs)),
            *_culprits(line),
            *_bought(plain, done),
        ],
        "rungs": [_rung(t, plain, chosen) for t in (plain, *rungs)] if rungs else [],
        "layers": _layers(line, mended, chosen),
        "keep_float": ",".join(kept),
        "worth": _worth(line, runtime),
        "explain": f"pocketfit explain MODEL --data DATA --runtime {runtime} -o OUT",
    }


def rung_name(plan: Plan) -> str:
    """What a static int8 plan does beyond plain int8.

    >>> from pocketfit.core.plan.export import ExportSettings
    >>> rung_name(Plan((Equalize(), Round()), ExportSettings("litert", "int8", ranges="mse", keep_float=("a", "b"))))
    'channels equalized, weights rounded by learning, 2 layers in float'
    >>> rung_name(Plan((Round(),), ExportSettings("litert", "int8", weights="int4", keep_int8=("stem",))))
    '4-bit weights, weights rounded by learning, 8 bits for 1 layer'
    """
    export = plan.export
    parts = ["4-bit weights"] if export.weights == "int4" else []
    for settings in plan.passes:
        if isinstance(settings, QuantTrain):
            parts.append(f"trained for {settings.steps:,} steps on the grid")
        elif settings.FACTS.words and not isinstance(settings, Fold | Piecewise):  # plain int8 has these as well
            parts.append(settings.FACTS.words)
    if export.ranges != "min-max" and not parts:
        parts.append(f"ranges by {words.RANGE_WORDS[export.ranges]}")
    if kept := export.keep_float:
        parts.append(f"{len(kept)} layer{'s' if len(kept) > 1 else ''} in float")
    if export.weights == "int4" and (kept := export.keep_int8):
        parts.append(f"8 bits for {len(kept)} layer{'s' if len(kept) > 1 else ''}")
    return ", ".join(parts) or "plain int8"


def _opening(plain: Trial, budget: Budget, enough: Sequence[Trial], *, climbed: bool) -> list[str]:
    """Sentences on what plain int8 lost, and on whether repairs were needed."""
    interval = words.format_interval(
        plain.measurements["drop_points"].low, plain.measurements["drop_points"].high, "pt"
    )
    told = f"Static int8 as it is ({plain.plan.code}) loses {_points(plain)} on the validation split"
    told += f" (95 % interval {interval})" if interval else ""
    limits = [words.limit_words(limit.to_json()) for limit in budget.limits if limit.about.of_answers]
    if climbed:
        return [f"{told}{f'; the limit is {limits[0]}' if limits else ''}."]
    if not limits:
        return [f"{told}. No limit was set on the accuracy, so nothing had to be done about it."]
    if plain in enough:
        return [f"{told}, which is within the limit ({limits[0]}): no repair was needed."]
    if enough:
        other = min(enough, key=_loss)
        return [f"{told}; {other.plan.code} loses {_points(other)} and is within the limit ({limits[0]}): no repair."]
    return [f"{told}; the limit is {limits[0]}, and no repair has been tried."]


def _culprits(line: Json) -> list[str]:
    if "error" in line:
        return [f"Which layers cost it could not be told: {str(line['error']).rstrip('.')}."]
    found = []
    if plain := line.get("plain"):
        found.append(f"Of its noise (estimated), {_named(plain['rows'])}.")
    if rows := line.get("rows"):
        known = "" if line.get("whole_db") is None else f", which leave {line['whole_db']:.1f} dB"
        found.append(f"Of the noise after the first repairs ({line['plan']}{known}), {_named(rows)}.")
    return found


def _named(rows: Sequence[Json]) -> str:
    """
    >>> _named([{"layer": "a", "share": 0.3}, {"layer": "b", "share": 0.5, "cause": "two of its 16 channels …"}])
    '50 % come from b (two of its 16 channels …), 30 % from a'
    """
    guilty = sorted(rows, key=lambda row: -row["share"])[:NAMED]
    guilty = [row for row in guilty if row["share"] >= STANDS_OUT * guilty[0]["share"]]
    told = []
    for number, row in enumerate(guilty):
        why = f" ({row['cause']})" if row.get("cause") else ""
        told.append(f"{100 * row['share']:.0f} % {'come ' if number == 0 else ''}from {row['layer']}{why}")
    return ", ".join(told)


def _bought(plain: Trial, done: Sequence[Trial]) -> list[str]:
    """Sentences on what the rung with the smallest loss has gained."""
    if not done:
        return []
    best = min(done, key=_loss)
    if _loss(best) >= _loss(plain):
        return [f"No repair brought the loss down; the best has {_points(best)}: {rung_name(best.plan)}."]
    return [f"The best repair brought the loss from {_points(plain)} to {_points(best)}: {rung_name(best.plan)}."]


def _rung(trial: Trial, plain: Trial, chosen: int | None) -> dict[str, Any]:
    measured = {name: m.to_json() for name, m in trial.measurements.items()}
    lost, gain = _drop(trial), ""
    if trial is not plain and lost is not None:
        gain = f"{lost - _loss(plain):+.2f} pt"
    return {
        "number": trial.number,
        "name": rung_name(trial.plan),
        "code": trial.plan.code,
        "chosen": trial.number == chosen,
        "failed": trial.status == "failed",
        "cells": [cell(measured.get(name)) for name in ("drop_points", "size_bytes", "latency_ratio")],
        "gain": gain,
        "gain_sort": "" if not gain or lost is None else lost - _loss(plain),
    }


def _keep_float(line: Json, mended: Trial | None, rungs: Sequence[Trial]) -> tuple[str, ...]:
    """The layers in float of the mended file, else of the last rung, else the layers with most noise."""
    plans = [t.plan.export.keep_float for t in (*rungs, *([] if mended is None else [mended]))]
    tried = [kept for kept in plans if kept]
    if tried:
        return tried[-1]
    sets = sets_in_float(line, {}) if line else ()
    return sets[0] if sets else ()


def _worth(line: Json, runtime: str) -> str:
    """The cost against which the noise of layers was weighed when they were chosen, in words."""
    if any("more_us" in row for row in line.get("rows", ())):
        return f"the time that they take more in float, as {runtime} profiles it"
    return "their multiply-accumulates" + (f" ({line['untimed']})" if line.get("untimed") else "")


def _layers(line: Json, mended: Trial | None, chosen: int | None) -> dict[str, Any] | None:
    """The table of layers by their share of the noise; columns without data in the journal are left out."""
    rows = {row["layer"]: row for row in line.get("rows", ())}
    before = {row["layer"]: row for row in line.get("plain", {}).get("rows", ())}
    if not rows:
        return None
    top = max((row["share"] for row in (*rows.values(), *before.values())), default=0.0) or 1.0
    plan = None if mended is None else mended.plan
    body = [_layer(name, before.get(name), rows[name], top, plan) for name in rows]
    body.sort(key=lambda row: -row["order"])
    return {
        "rows": body,
        "before": bool(before),
        "alone": any("weights_db" in row for row in rows.values()),
        "widest": any(row.get("widest") is not None for row in rows.values()),
        "why": any(row["why"] for row in body),
        "done": _whose(mended, chosen),
        "judged": line.get("judged"),
    }


def _whose(mended: Trial | None, chosen: int | None) -> str:
    if mended is None:
        return ""
    return f"{mended.plan.code}, {'the chosen plan' if mended.number == chosen else 'which loses least'}"


def _layer(name: str, before: Json | None, after: Json, top: float, plan: Plan | None) -> dict[str, Any]:
    first = before or after
    widest = [row["widest"] for row in (before, after) if row and row.get("widest") is not None]
    return {
        "name": name,
        "order": first["share"],
        "shares": [
            {"text": f"{100 * row['share']:.1f} %", "sort": row["share"], "bar": round(100 * row["share"] / top, 2)}
            for row in (before, after)
            if row
        ],
        "alone": [_alone(before, after, key) for key in ("weights_db", "activations_db")],
        "widest": {
            "text": "–" if not widest else f"{words.three_digits(widest[0])}x",
            "then": "" if len(widest) < 2 else f"then {words.three_digits(widest[1])}x",
            "sort": "" if not widest else widest[0],
        },
        "done": _done(name, widest, plan),
        "why": str(first.get("cause", "") or after.get("cause", "")),
    }


def _alone(before: Json | None, after: Json, key: str) -> dict[str, Any]:
    """Decibels with only this layer's weights, or tensor, quantized: before and after the repairs. null: no noise."""
    known = [row[key] for row in (before, after) if row and key in row]
    texts = ["exact" if value is None else f"{value:.1f} dB" for value in known]
    return {
        "text": texts[0] if texts else "–",
        "then": f"then {texts[1]}" if len(texts) > 1 else "",
        "sort": "" if not known else 999 if known[0] is None else known[0],
    }


def _done(name: str, widest: Sequence[float], plan: Plan | None) -> str:
    if plan is None:
        return ""
    if name in plan.export.keep_float:
        return "kept in float"
    parts = ["kept at 8 bits"] if name in plan.export.keep_int8 else []
    kinds = {type(settings) for settings in plan.passes}
    if Equalize in kinds and len(widest) == 2 and widest[1] <= NARROWER * widest[0]:
        parts.append("channels equalized")
    parts += ["rounded by learning"] if Round in kinds else []
    parts += ["trained on the grid"] if QuantTrain in kinds else []
    return ", ".join(parts)


def _drop(trial: Trial) -> float | None:
    return trial.value("drop_points")


def _loss(trial: Trial) -> float:
    return trial.value("drop_points") or 0.0


def _points(trial: Trial) -> str:
    return words.format_points(_loss(trial), 2)
