"""Numbers and verdicts as a person reads them: the only place where the report and the CLI turn values into text.

MB is 10^6 bytes. A ratio is "after / before", in the same runtime. Points are percentage points of the metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pocketfit import tasks
from pocketfit.core.plan.passes import KINDS
from pocketfit.core.quantities import QUANTITIES
from pocketfit.core.task.task_list import TASKS

RANGE_WORDS = {
    "moving-average": "moving average",
    "percentile": "percentile",
    "mse": "least squared error",
    "kl": "least divergence (KL)",
    "batch-norm": "what batch norms remember",
}


def three_digits(value: float) -> str:
    """Three significant digits without an exponent, at least the whole part.

    >>> [three_digits(v) for v in (0.04213, 1.9, 42.13, 421.3, 12345.6, 9.996)]
    ['0.0421', '1.90', '42.1', '421', '12,346', '10.0']
    """
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}") if abs(value) < 1000 else value
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{decimals}f}"


def format_bytes(value: float) -> str:
    """Bytes in powers of ten.

    >>> [format_bytes(v) for v in (512, 45_300, 1_940_000, 2.5e9)]
    ['512 B', '45.3 kB', '1.94 MB', '2.50 GB']
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= factor * 0.9995:
            return f"{three_digits(value / factor)} {unit}"
    return f"{value:.0f} B"


def format_ms(value: float) -> str:
    """Milliseconds, in microseconds below 0.1 ms and in seconds from 10 s.

    >>> [format_ms(v) for v in (0.042, 4.213, 421.3, 12345)]
    ['42.0 µs', '4.21 ms', '421 ms', '12.3 s']
    """
    if 0 < abs(value) < 0.1:
        return f"{three_digits(value * 1000)} µs"
    return f"{three_digits(value / 1000)} s" if abs(value) >= 10_000 else f"{three_digits(value)} ms"


def format_ratio(value: float) -> str:
    """
    >>> [format_ratio(v) for v in (0.338, 1.0, 0.0042, 12.34)]
    ['0.34x', '1.00x', '0.0042x', '12.3x']
    """
    if 0 < value < 0.095:
        return f"{value:.2g}x"
    return f"{value:.2f}x" if value < 9.995 else f"{value:.1f}x"


def format_points(value: float, digits: int = 1) -> str:
    """Percentage points; never "-0.0".

    >>> format_points(0.21), format_points(-0.04), format_points(-0.04, 2)
    ('0.2 pt', '0.0 pt', '-0.04 pt')
    """
    return f"{_signless_zero(value, digits)} pt"


def format_share(value: float) -> str:
    """
    >>> format_share(0.9306)
    '93.06 %'
    """
    return f"{100 * value:.2f} %"


def format_count(value: float) -> str:
    """
    >>> format_count(10000), format_count(31_200_000), format_count(1_500_000_000)
    ('10,000', '31.2 M', '1.50 G')
    """
    if abs(value) >= 1e9:
        return f"{three_digits(value / 1e9)} G"
    return f"{three_digits(value / 1e6)} M" if abs(value) >= 1e6 else f"{value:,.0f}"


def format_seconds(value: float) -> str:
    """
    >>> format_seconds(4.25), format_seconds(59.99), format_seconds(125), format_seconds(7300)
    ('4.2 s', '1 min', '2 min 5 s', '2 h 2 min')
    """
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(whole / 60)
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


def format_value(value: float, unit: str) -> str:
    """A value in the unit of a Measurement: "B", "ms", "x", "pt", "share", "s", or any other word as it stands.

    >>> format_value(1_940_000, "B"), format_value(0.5, "x"), format_value(3, "runs")
    ('1.94 MB', '0.50x', '3.00 runs')
    """
    form = {
        "B": format_bytes,
        "bytes": format_bytes,
        "ms": format_ms,
        "s": format_seconds,
        "x": format_ratio,
        "ratio": format_ratio,
        "pt": lambda v: format_points(v, 2),
        "points": lambda v: format_points(v, 2),
        "share": format_share,
        "": three_digits,
    }.get(unit)
    return form(value) if form else f"{three_digits(value)} {unit}"


def format_interval(low: float | None, high: float | None, unit: str) -> str:
    """The 95 % interval, "" where none is known, or where it has no width (a ratio to itself).

    >>> format_interval(-0.1, 0.5, "pt")
    '-0.10 to 0.50 pt'
    """
    if low is None or high is None or low == high:
        return ""
    first, second = format_value(low, unit), format_value(high, unit)
    tail = f" {unit}"
    return f"{first.removesuffix(tail) if second.endswith(tail) else first} to {second}"


def limit_words(limit: Mapping[str, Any]) -> str:
    """A limit of `Budget.to_json()` in words.

    >>> limit_words({"quantity": "latency", "value": 0.6, "relative": True, "percentile": 95, "text": "p95:0.6x"})
    'latency (p95) at most 0.60x of the baseline'
    """
    row = QUANTITIES[limit["quantity"]]
    name = row.words + (f" (p{limit.get('percentile', 50)})" if row.percentiles else "")
    return f"{name} {bound_words(limit)}" + (" of the baseline" if limit["relative"] else "")


def bound_words(limit: Mapping[str, Any]) -> str:
    """The limit without what it is about: "at most 0.60x"."""
    return f"{'at least' if QUANTITIES[limit['quantity']].floor else 'at most'} {format_limit(limit)}"


def format_limit(limit: Mapping[str, Any]) -> str:
    """The number of a limit alone: "3.00 MB", "0.60x", "1.0 pt"."""
    if limit["relative"]:
        return format_ratio(limit["value"])
    unit = QUANTITIES[limit["quantity"]].unit
    return format_points(limit["value"]) if unit == "pt" else format_value(limit["value"], unit)


def plan_words(plan: Mapping[str, Any]) -> str:
    """What a plan (its JSON) does, in one line.

    >>> plan_words({"passes": [{"pass": "prune", "ratio": 0.3}, {"pass": "train", "steps": 200}],
    ...             "export": {"runtime": "litert", "precision": "int8", "activations": "int8"}})
    '30 % of the channels pruned, trained for 200 steps, static int8 (int8 activations) for litert'
    >>> plan_words({"passes": [{"pass": "prune", "ratio": 0.3, "keep": [["conv", 8]]}, {"pass": "sparsify"}],
    ...             "export": {"runtime": "litert"}})[:81]
    'channels pruned where they count least, at the cost of a uniform cut of 30 %, 50 '
    >>> plan_words({"passes": [{"pass": "equalize"}, {"pass": "round"}, {"pass": "quant-train", "steps": 300}],
    ...             "export": {"runtime": "litert", "precision": "int8", "weights": "int4", "ranges": "mse"}})[:78]
    'channels equalized, weights rounded by learning, trained for 300 steps on the '
    """
    parts: list[str] = []
    steps = [f"{step['steps']:,}" for step in plan["passes"] if step.get("pass") == "train"]
    trained = f"trained for {' + '.join(steps)} steps"
    for step in plan["passes"]:
        match step.get("pass"):
            case "prune":
                parts.append(_pruned(step))
            case "sparsify":
                parts.append(_zeroed(step))
            case "train":
                parts += [trained] if trained not in parts else []
            case "resolution":
                parts.append(f"input of {step['height']} x {step['width']} pixels")
            case "quant-train":
                parts.append(f"trained for {step['steps']:,} steps on the grid of the file")
            case other:
                parts.append((KINDS[other].FACTS.words if other in KINDS else "") or str(other))
    export = plan["export"]
    symmetric = "symmetric " if export.get("symmetric") else ""
    precision = {
        "float32": "float32",
        "float16": "float16 weights",
        "dynamic-int8": "dynamic-range int8",
        "int8": f"static int8 ({symmetric}{export.get('activations', 'int8')} activations)",
        "weight-only": "computed in float",
    }.get(export.get("precision", "float32"), str(export.get("precision")))
    weights = export.get("weights", "int8")
    if export.get("precision") == "weight-only":
        precision = f"{weights} weights, {precision}"
    elif weights != "int8":
        precision += f" with {weights} weights"
    parts.append(f"{precision} for {export['runtime']}")
    if export.get("precision") == "int8" and export.get("ranges", "min-max") != "min-max":
        parts.append(f"ranges by {RANGE_WORDS[export['ranges']]}")
    if kept := export.get("keep_float"):
        parts.append(f"{len(kept)} named layer{'s' if len(kept) > 1 else ''} left in float")
    if kept := export.get("keep_int8"):
        parts.append(f"{len(kept)} named layer{'s' if len(kept) > 1 else ''} with int8 weights")
    return ", ".join(parts)


def _pruned(step: Mapping[str, Any]) -> str:
    share = f"{100 * step['ratio']:.0f} %"
    if step.get("keep"):
        return f"channels pruned where they count least, at the cost of a uniform cut of {share}"
    return f"{share} of the channels pruned"


def _zeroed(step: Mapping[str, Any]) -> str:
    pattern = step.get("pattern", "unstructured")
    share = f"{100 * step.get('sparsity', 0.5):.0f} %" if pattern == "unstructured" else f"all but {pattern}"
    return f"{share} of the weights set to zero"


def verdict_sentence(result: Mapping[str, Any], name: str = "The network") -> str:
    """The outcome of a run in one sentence, from result.json; `name` is what to call the network."""
    chosen, baseline, comparison = result.get("chosen"), result.get("baseline"), result.get("comparison")
    trials = result.get("trials", 0)
    counted = f"{trials} trial{'' if trials == 1 else 's'}"
    if not chosen or not baseline or not comparison:
        if result["status"] == "stopped":
            return f"Stopped after {counted}, before any plan for {name} had been measured."
        return f"None of the {counted} for {name} gave a file that can be delivered."
    if chosen["trial"] == baseline["trial"]:
        return _unchanged(result["status"], name, format_bytes(chosen["artifact"]["bytes"]), counted)
    clauses = [
        f"takes {format_bytes(chosen['artifact']['bytes'])} instead of {format_bytes(baseline['artifact']['bytes'])}",
        *_latency_clause(comparison.get("latency_ratio")),
        *_drop_clause(comparison.get("drop")),
    ]
    body = clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])} and {clauses[-1]}"
    body += _control_clause(comparison.get("control"))
    if result["status"] == "met":
        return f"{name} now {body}."
    opening = (
        "Stopped before the end: so far the best" if result["status"] == "stopped" else "Limits not met: the nearest"
    )
    return f"{opening} plan for {name} {body}."


def _unchanged(status: str, name: str, size: str, counted: str) -> str:
    """When the baseline itself is the best that there is."""
    if status == "met":
        return f"{name} meets the limits as it is, in float32 with {size}."
    if status == "stopped":
        return f"Stopped after {counted}: so far nothing is better than {name} as it was, in float32 with {size}."
    return f"Limits not met: no plan comes nearer than {name} as it was, in float32 with {size}."


def _latency_clause(ratio: Mapping[str, Any] | None) -> Sequence[str]:
    if not ratio or ratio.get("value") is None:
        return ()
    low, high = ratio.get("low"), ratio.get("high")
    if low is not None and high is not None and low <= 1 <= high:
        return (f"runs in about the same time ({format_ratio(ratio['value'])})",)
    doubted = " (measured beside other work)" if ratio.get("disturbed") else ""
    return (f"runs in {format_ratio(ratio['value'])} the time{doubted}",)


def _drop_clause(drop: Mapping[str, Any] | None) -> Sequence[str]:
    if not drop or drop.get("points") is None:
        return ()
    points = drop["points"]
    amount = _signless_zero(abs(points), 1)
    metric = "" if drop.get("metric", "accuracy") == "accuracy" else f" of {metric_words(drop['metric'])}"
    verb = "gains" if points < 0 and amount != "0.0" else "loses"
    known = []
    if drop.get("low") is not None and drop.get("high") is not None:
        # a gain is told with the sign turned, so is its interval
        low, high = (drop["low"], drop["high"]) if verb == "loses" else (-drop["high"], -drop["low"])
        known.append(f"95 % interval {_signless_zero(low, 1)} to {_signless_zero(high, 1)}")
    if drop.get("n"):
        known.append(f"n = {drop['n']:,}")
    if drop.get("split") == "search":
        known.append("validation split, not yet the test split")
    return (f"{verb} {amount} points{metric}" + (f" ({', '.join(known)})" if known else ""),)


def _control_clause(control: Mapping[str, Any] | None) -> str:
    """What is left of a gain, where as much training without pruning would have gained as well.

    >>> _control_clause({"gain": {"points": 2.0, "low": 1.2}, "loss": {"points": 1.4}})
    '; a network trained as long without pruning gains 2.0 points, and against that one it loses 1.4'
    """
    if control is None or control["gain"].get("low") is None or control["gain"]["low"] <= 0:
        return ""
    gained, lost = _signless_zero(control["gain"]["points"], 1), control["loss"]["points"]
    verb = "loses" if lost >= 0 else "gains"
    return (
        f"; a network trained as long without pruning gains {gained} points, and against that one it {verb}"
        f" {_signless_zero(abs(lost), 1)}"
    )


def _signless_zero(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def metric_title(metric: str) -> str:
    """The title of a metric; one of the user's own has its name.

    >>> metric_title("exact-match"), metric_title("mine:f1")
    ('Exact match', 'mine:f1')
    """
    titles = {name: known.title for task in TASKS for name, known in tasks.get(task).METRICS.items()}
    return titles.get(metric, metric)


def metric_words(metric: str) -> str:
    """The title inside a sentence.

    >>> metric_words("exact-match"), metric_words("iou"), metric_words("r2")
    ('exact match', 'IoU', 'R²')
    """
    title = metric_title(metric)
    named = any(letter.isupper() for letter in title[1:]) or not title[1:2].isalpha()
    return title if named else title[:1].lower() + title[1:]
