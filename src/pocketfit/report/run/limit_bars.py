"""Each quantity before and after, beside its limit, ready to draw. Pure functions on JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketfit.core.quantities import QUANTITIES
from pocketfit.core.samples import split_words
from pocketfit.report.page import words

Json = Mapping[str, Any]
# Quantities that are shown and can't be limited: title, measurement.
COLD_START = ("Cold start", "cold_start_ms")
ORDER = ("size", "download", "latency", "cold_start", "memory")  # shown first; all others that can be limited follow


def measurement_name(limit: Json) -> str:
    """The name of the measurement that a limit is about, in the quantity's own unit.

    >>> measurement_name({"quantity": "latency", "percentile": 95}), measurement_name({"quantity": "size"})
    ('latency_p95_ms', 'size_bytes')
    """
    return QUANTITIES[limit["quantity"]].measured_as(percentile=limit.get("percentile", 50))


def _rows() -> dict[str, tuple[str, str]]:
    """(title, measurement) by name of the quantity, in the order of the page; the drop has a drawing of its own."""
    rows = {name: (row.title, row.measurement) for name, row in QUANTITIES.items() if name != "drop"}
    rows["cold_start"] = COLD_START
    return {name: rows[name] for name in dict.fromkeys((*ORDER, *rows))}


def number(measurements: Json, name: str) -> float | None:
    """The value of a measurement, None where it was not taken or not possible."""
    value = measurements.get(name, {}).get("value")
    return None if value is None else float(value)


def cell(measurement: Json | None) -> dict[str, Any]:
    """A measurement ready to show; estimates and missing values never look like a measured number.

    >>> cell({"value": 4.2, "unit": "ms", "how": "estimated", "reason": "eager PyTorch"})["text"]
    '≈ 4.20 ms'
    """
    if measurement is None:
        return {"text": "not measured", "sort": "", "how": "missing", "reason": "", "interval": ""}
    how, value = measurement.get("how", "measured"), measurement.get("value")
    reason = measurement.get("reason", "")
    if value is None or how == "not_possible_here":
        return {"text": "not possible here", "sort": "", "how": "not_possible_here", "reason": reason, "interval": ""}
    unit = "share" if measurement.get("quantity") == "accuracy" else measurement.get("unit", "")
    text = words.format_value(value, unit)
    interval = words.format_interval(measurement.get("low"), measurement.get("high"), unit)
    return {
        "text": f"≈ {text}" if how == "estimated" else text,
        "sort": value,
        "how": how,
        "reason": reason,
        "interval": interval,
    }


def bars(result: Json, verdict: Json | None, judged: Json) -> list[dict[str, Any]]:
    """One entry for each quantity that was measured or is limited: numbers, text, and the judgement of its limit.

    judged  check_limits.Check.to_json() for each limited quantity
    """
    if not result.get("baseline") or not result.get("chosen"):
        return []
    before, after = result["baseline"]["measurements"], result["chosen"]["measurements"]
    limits = {limit["quantity"]: limit for limit in result["budget"]["limits"]}
    entries = []
    for quantity, (_, plain) in _rows().items():
        limit = limits.get(quantity)
        name = measurement_name(limit) if limit else plain
        pair = (before.get(name), after.get(name))
        if quantity == "accuracy" and verdict:
            pair = (_share(verdict, "before"), _share(verdict, "after"))
        if limit is not None or any(pair):
            entries.append(_entry(quantity, pair, limit, result, judged))
    if drop := _drop_entry(result, limits.get("drop"), judged):
        entries.append(drop)
    return entries


def _share(verdict: Json, key: str) -> Json:
    return {"value": verdict[key], "unit": "share", "how": "measured"}


def _entry(
    quantity: str, pair: tuple[Json | None, Json | None], limit: Json | None, result: Json, judged: Json
) -> dict[str, Any]:
    values = [None if m is None or m.get("how") == "not_possible_here" else m.get("value") for m in pair]
    ratio = values[1] / values[0] if values[0] and values[1] is not None else None
    low = high = None
    interleaved = _interleaved(quantity, limit, result)
    if interleaved.get("value") is not None:
        ratio, low, high = interleaved["value"], interleaved.get("low"), interleaved.get("high")
    # A relative limit is judged on the ratio, so the bars are drawn in units of the baseline; else in the unit itself.
    relative = bool(limit and limit["relative"])
    drawn = (1.0, ratio) if relative and ratio is not None else (values[0], values[1])
    return {
        "quantity": quantity,
        "title": _title(quantity, limit, result),
        "before": cell(pair[0]),
        "after": cell(pair[1]),
        "reasons": list(dict.fromkeys(m["reason"] for m in pair if m and m.get("reason"))),
        "ratio": words.format_ratio(ratio) if ratio is not None and quantity != "accuracy" else "",
        "ratio_interval": words.format_interval(low, high, "x"),
        "draw": {
            "kind": "bars",
            "before": drawn[0],
            "after": drawn[1],
            "limit": limit["value"] if limit else None,
            "low": low if relative else None,
            "high": high if relative else None,
        },
        "limit": _judgement(limit, judged.get(quantity), _split(result)) if limit else None,
    }


def _interleaved(quantity: str, limit: Json | None, result: Json) -> Json:
    """The ratio to the baseline that was measured round by round, where there is one."""
    if quantity != "latency":
        return {}
    percentile = limit.get("percentile", 50) if limit else 50
    if percentile == 50:
        return (result.get("comparison") or {}).get("latency_ratio") or {}
    found: Json = result["chosen"]["measurements"].get(f"latency_p{percentile}_ratio", {})
    return found


def _title(quantity: str, limit: Json | None, result: Json) -> str:
    title = _rows()[quantity][0]
    if quantity == "latency":
        return f"{title} (p{limit.get('percentile', 50) if limit else 50})"
    if quantity == "accuracy":
        metric = ((result.get("comparison") or {}).get("drop") or {}).get("metric") or "accuracy"
        return f"{title if metric == 'accuracy' else words.metric_title(metric)} ({split_words(_split(result))} split)"
    return title


def _split(result: Json) -> str:
    drop = (result.get("comparison") or {}).get("drop") or {}
    return str(drop.get("split") or "search")


def _drop_entry(result: Json, limit: Json | None, judged: Json) -> dict[str, Any] | None:
    drop = (result.get("comparison") or {}).get("drop")
    if not drop or drop.get("points") is None:
        return None
    count = f", n = {drop['n']:,}" if drop.get("n") else ""
    after = {"quantity": "drop", "value": drop["points"], "unit": "pt"}
    metric = words.metric_words(str(drop.get("metric", "accuracy")))
    return {
        "quantity": "drop",
        "title": f"Drop of {metric} ({split_words(_split(result))} split{count})",
        "before": None,
        "after": cell(after),
        "reasons": [],
        "ratio": "",
        "ratio_interval": words.format_interval(drop.get("low"), drop.get("high"), "pt"),
        "draw": {
            "kind": "interval",
            "after": drop["points"],
            "low": drop.get("low"),
            "high": drop.get("high"),
            "limit": limit["value"] if limit else None,
        },
        "limit": _judgement(limit, judged.get("drop"), _split(result)) if limit else None,
    }


def _judgement(limit: Json, said: Json | None, split: str) -> dict[str, Any]:
    """The judgement of one limit, in words that do not need its colour; only the verdict split certifies."""
    if said is None or said["value"] is None:
        state, text = "unknown", "cannot be judged"
    elif said["met"] and split != "verdict":
        state, text = "met", "met so far, before the verdict"
    elif said["met"]:
        why = f" ({said['reason']})" if said.get("reason") else ""
        state, text = "met", "met, certified" if said["certified"] else f"met, not certified{why}"
    else:
        state, text = "missed", "not met"
    return {
        "bound": words.bound_words(limit),
        "label": f"limit {words.format_limit(limit)}",
        "state": state,
        "text": text,
    }
