"""Journal lines and result.json -> one plain dict that is ready to draw. Pure: no file, no clock."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pocketfit.core.budget import Budget
from pocketfit.core.quantities import QUANTITIES
from pocketfit.core.samples import split_words
from pocketfit.core.trial import Trial
from pocketfit.report.page import words
from pocketfit.report.run.accuracy_loss import where_it_went
from pocketfit.report.run.limit_bars import bars, cell
from pocketfit.report.run.pareto_plots import plots
from pocketfit.report.run.verdict_words import verdict_words
from pocketfit.search import journal
from pocketfit.search.decide.check_limits import check

Json = Mapping[str, Any]
PICTURE = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")
PICTURES_AT_MOST = 48


def report_data(lines: list[dict[str, Any]], result: dict[str, Any]) -> dict[str, Any]:
    """Everything that the page shows, whatever the order of the journal's lines; unknown kinds are ignored."""
    lines = sorted((line for line in lines if isinstance(line, dict)), key=_canonical)
    record = journal.digest(lines)
    budget = Budget.from_json(result["budget"])
    base = {t.runtime: t for t in record.trials if t.stage == "baseline" and t.status == "ok"}
    missed = {t.number: _missed(t, base.get(t.runtime), budget) for t in record.trials if t.status == "ok"}
    chosen, reference = result.get("chosen"), result.get("baseline")
    number = chosen["trial"] if chosen else None
    verdict = _first_reading(lines, number)
    name = str((record.start or {}).get("inputs", {}).get("model") or "The network")
    return {
        "name": name,
        "headline": words.verdict_sentence(result, name),
        "status": _status(result),
        "bars": bars(result, verdict, _judged(result, record.trials, budget)),
        "explanation": [str(s) for s in result.get("explanation", ())],
        "shortfall": _shortfall(result),
        "plots": plots(
            record.trials,
            base,
            budget,
            chosen=number,
            reference=reference["trial"] if reference else None,
            missed=missed,
        ),
        "trials": [_trial_row(t, number, missed.get(t.number, ()), bool(budget.limits)) for t in record.trials],
        "has_limits": bool(budget.limits),
        "failed": sum(t.status == "failed" for t in record.trials),
        "accuracy": where_it_went(record, budget, number),
        "layers": _layers(lines, number),
        "classes": _classes(verdict),
        "disagreements": _disagreements(verdict),
        "verdict": verdict_words(verdict, record.readings),
        "plan": _plan(chosen),
        "about": _about(record.start, record.seconds, result),
    }


def _canonical(line: Json) -> str:
    return json.dumps(line, sort_keys=True)


def _of_kind(lines: Iterable[Json], kind: str, trial: int | None) -> list[Json]:
    return [line for line in lines if line.get("kind") == kind and line.get("trial") == trial]


def _first_reading(lines: Iterable[Json], trial: int | None) -> Json | None:
    """The earliest verdict on the chosen trial, because later readings of the same split prove less."""
    return min(_of_kind(lines, "verdict", trial), key=lambda line: line["reading"], default=None)


def _missed(trial: Trial, baseline: Trial | None, budget: Budget) -> list[str]:
    """The limits that a trial does not meet ("size"), and those that cannot be judged ("memory (unknown)")."""
    if baseline is None:
        return [f"{limit.quantity} (unknown)" for limit in budget.limits]
    checks = check(trial, baseline, budget)
    return [c.limit.quantity + (" (unknown)" if c.value is None else "") for c in checks if not c.met]


def _judged(result: Json, trials: Sequence[Trial], budget: Budget) -> dict[str, Any]:
    """The judgement of each limit: that of result.json (on the verdict split), else by the trial's measurements."""
    if result.get("limits"):
        return {entry["quantity"]: entry for entry in result["limits"]}
    by_number = {t.number: t for t in trials}
    chosen, baseline = (
        by_number.get(result[key]["trial"]) if result.get(key) else None for key in ("chosen", "baseline")
    )
    if chosen is None or baseline is None:
        return {}
    return {c.limit.quantity: c.to_json() for c in check(chosen, baseline, budget)}


def _status(result: Json) -> dict[str, str]:
    """The tag beside the verdict, and the sentence that says what it means."""
    status, certified = result["status"], bool(result["certified"])
    if status == "met" and not result["budget"]["limits"]:
        return {"kind": "met", "tag": "Done", "meaning": "No limits were set: this is the best of what was tried."}
    if status == "met":
        return {
            "kind": "met" if certified else "open",
            "tag": "Met, certified" if certified else "Met, not certified",
            "meaning": "Every limit is met, by the value and by its one-sided 95 % bound."
            if certified
            else _why_uncertified(result),
        }
    if status == "stopped":
        return {
            "kind": "open",
            "tag": "Not finished",
            "meaning": "The search is not over; the same command goes on from here.",
        }
    return {
        "kind": "missed",
        "tag": "Limits not met",
        "meaning": "At least one limit is missed; the reasons are below.",
    }


def _why_uncertified(result: Json) -> str:
    open_ = [entry for entry in result.get("limits", ()) if not entry["certified"]]
    if open_ and all(entry["met"] and entry.get("reason") for entry in open_):
        return "Every limit is met by the value itself; the latency was taken beside other work, so it proves nothing."
    return "Every limit is met by the value itself; for at least one, the one-sided 95 % bound lies outside."


def _shortfall(result: Json) -> dict[str, Any] | None:
    shortfall = result.get("shortfall")
    if not shortfall:
        return None
    binding = shortfall.get("binding") or []
    names = [binding] if isinstance(binding, str) else list(binding)
    return {
        "binding": [QUANTITIES[n].words if n in QUANTITIES else n for n in names],
        "sentences": list(shortfall["sentences"]),
    }


def _trial_row(trial: Trial, chosen: int | None, missed: Sequence[str], limited: bool) -> dict[str, Any]:
    measured = {name: m.to_json() for name, m in trial.measurements.items()}
    return {
        "number": trial.number,
        "stage": trial.stage,
        "code": trial.plan.code,
        "words": words.plan_words(trial.plan.to_json()),
        "runtime": trial.runtime,
        "failed": trial.status == "failed",
        "chosen": trial.number == chosen,
        "size": cell(measured.get("size_bytes")),
        "latency": cell(measured.get("latency_ms")),
        "ratio": _doubted(cell(measured.get("latency_ratio")), trial),
        "drop": cell(measured.get("drop_points")),
        "memory": {**cell(measured.get("memory_bytes")), "interval": ""},  # the range of a few runs, not a 95 % one
        "seconds": {"text": words.format_seconds(trial.seconds), "sort": trial.seconds},
        "outcome": "to compare with" if trial.stage == "control" else _outcome(trial, missed, limited),
        "error": trial.error,
        "log_tail": trial.log_tail,
    }


def _doubted(shown: dict[str, Any], trial: Trial) -> dict[str, Any]:
    """A latency ratio's cell, with a word where other work ran beside it."""
    ratio = trial.measurements.get("latency_ratio")
    if ratio is None or not ratio.disturbed:
        return shown
    return {**shown, "interval": f"{shown['interval']}, beside other work".removeprefix(", ")}


def _outcome(trial: Trial, missed: Sequence[str], limited: bool) -> str:
    if trial.status == "failed":
        return "failed"
    if missed:
        return "misses " + ", ".join(missed)
    return "within all" if limited else ""


def _layers(lines: Iterable[Json], trial: int | None) -> dict[str, Any] | None:
    found = _of_kind(lines, "layers", trial) if trial is not None else []
    if not found:
        return None
    rows = found[-1]["rows"]
    columns = [
        _column(rows, "macs", "MACs", words.format_count),
        _column(rows, "bytes", "Weights", words.format_bytes),
        _column(rows, "time_us", "Time", lambda v: f"{words.three_digits(v)} µs"),
    ]
    body = []
    for row in rows:
        body.append(
            {
                "name": str(row["name"]),
                "type": str(row.get("type", "")),
                "channels": _change(row.get("channels_before"), row.get("channels")),
                "channels_sort": row.get("channels"),
                "cells": [_layer_cell(row, column) for column in columns],
                "dtype": str(row.get("dtype", "")),
                "ran_on": str(row.get("ran_on", "") or ""),
                "why": str(row.get("why", "") or ""),
            }
        )
    return {
        "columns": [{"title": c["title"], "total": c["total"]} for c in columns],
        "rows": body,
        "not_possible": [str(reason) for reason in found[-1].get("not_possible") or ()],
    }


def _column(rows: Sequence[Json], key: str, title: str, form: Any) -> dict[str, Any]:
    """The scale of a column's small bars, and its total before and after, over the layers that have both."""
    pairs = [(row.get(f"{key}_before"), row.get(key)) for row in rows]
    whole = [(was, now) for was, now in pairs if was is not None and now is not None]
    known = [value for pair in pairs for value in pair if value is not None]
    total = "not measured"
    if whole:
        total = f"{form(sum(was for was, _ in whole))} → {form(sum(now for _, now in whole))}"
        if len(whole) < len(rows):
            total += f" ({len(whole)} of {len(rows)} layers)"
    return {"key": key, "title": title, "form": form, "top": max(known, default=0), "total": total}


def _layer_cell(row: Json, column: Json) -> dict[str, Any]:
    before, after, form, top = row.get(f"{column['key']}_before"), row.get(column["key"]), column["form"], column["top"]
    text = "not measured" if after is None else form(after)
    return {
        "text": text,
        "before": form(before) if before is not None and (after is None or form(before) != text) else "",
        "sort": "" if after is None else after,
        "was": round(100 * before / top, 1) if before is not None and top else 0,
        "now": round(100 * after / top, 1) if after is not None and top else 0,
    }


def _change(before: Any, after: Any) -> str:
    if after is None:
        return ""
    return str(after) if before in (None, after) else f"{before} → {after}"


def _classes(verdict: Json | None) -> list[dict[str, Any]]:
    """Per-class shares, the class that lost most first."""
    rows = []
    for entry in (verdict or {}).get("per_class") or ():
        before, after = entry.get("before"), entry.get("after")
        known = before is not None and after is not None
        points = 100 * (after - before) if known else None
        rows.append(
            {
                "label": str(entry["label"]),
                "n": entry["n"],
                "before": words.format_share(before) if before is not None else "no samples",
                "after": words.format_share(after) if after is not None else "no samples",
                "before_sort": before,
                "after_sort": after,
                "points": points,
                "change": ("+" if points > 0.005 else "") + words.format_points(points, 2)
                if points is not None
                else "",
            }
        )
    return sorted(rows, key=lambda row: (row["points"] is None, row["points"] or 0.0, row["label"]))


def _disagreements(verdict: Json | None) -> dict[str, Any]:
    """Samples on which the two files' answers differ, those that got worse first, at most 48."""
    entries = []
    for item in (verdict or {}).get("disagreements") or ():
        label, before, after = (str(item.get(key, "")) for key in ("label", "before", "after"))
        kind = "lost" if before == label else "won" if after == label else "both wrong"
        picture = str(item.get("picture") or "")
        entries.append(
            {
                "name": str(item.get("name", "")),
                "label": label,
                "before": before,
                "after": after,
                "kind": kind,
                "picture": picture if PICTURE.fullmatch(picture) else "",
            }
        )
    order = ("lost", "won", "both wrong")
    entries.sort(key=lambda e: order.index(e["kind"]))
    counts = {kind: sum(e["kind"] == kind for e in entries) for kind in order}
    return {"shown": entries[:PICTURES_AT_MOST], "total": len(entries), "counts": counts}


def _plan(chosen: Json | None) -> dict[str, Any] | None:
    if not chosen:
        return None
    return {
        "code": chosen["code"],
        "words": words.plan_words(chosen["plan"]),
        "json": json.dumps(chosen["plan"], indent=2),
        "path": chosen["artifact"]["path"],
        "sha256": chosen["artifact"]["sha256"],
        "runtime": chosen["runtime"],
    }


def _about(start: Json | None, seconds: float, result: Json) -> dict[str, Any]:
    start = start or {}
    inputs = start.get("inputs", {})
    splits = inputs.get("splits") or {}
    limits = [words.limit_words(limit) for limit in result["budget"]["limits"]]
    budget = result["budget"]
    if budget.get("max_time_s"):
        limits.append(f"at most {words.format_seconds(budget['max_time_s'])} of work")
    if budget.get("max_trials"):
        limits.append(f"at most {budget['max_trials']} trials")
    plain = {k: v for k, v in inputs.items() if k not in ("splits", "labels", "limits")}
    return {
        "pocketfit": str(start.get("pocketfit", "")),
        "time": str(start.get("time", "")),
        "seconds": words.format_seconds(seconds) if seconds else "",
        "inputs": _flat(plain),
        "labels": [str(label) for label in inputs.get("labels") or ()],
        "splits": [(split_words(str(name)), f"{count:,}") for name, count in splits.items()],
        "environment": _flat(start.get("environment") or {}),
        "findings": [str(sentence) for sentence in start.get("findings") or ()],
        "budget": limits,
        "prefer": str(budget.get("prefer", "balanced")),
    }


def _flat(value: Json, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines: {"versions": {"torch": "2.13"}} -> [("versions torch", "2.13")]."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            rows.extend(_flat(item, f"{name} "))
        elif isinstance(item, list | tuple):
            rows.append((name, ", ".join(str(x) for x in item)))
        elif key.endswith("_bytes") and isinstance(item, int | float):
            rows.append((name.removesuffix("_bytes"), words.format_bytes(item)))
        elif item is not None and item != "":
            rows.append((name, str(item)))
    return rows
