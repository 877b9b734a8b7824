"""Limits in the user's words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketfit.core.budget import SECONDS, Budget, Limit, parse_unit
from pocketfit.core.errors import UserError
from pocketfit.core.quantities import BYTES, MILLISECONDS


def one(**words: str) -> Limit:
    (limit,) = Budget.parse(**words).limits
    return limit


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("500B", 500),
        ("3KB", 3e3),
        ("3MB", 3e6),
        ("3 mb", 3e6),
        ("1.5GB", 1.5e9),
        ("3KiB", 3 * 1024),
        ("3MiB", 3 * 1024**2),
        (" .5 GiB ", 0.5 * 1024**3),
        ("3e2KB", 3e5),
    ],
)
@pytest.mark.parametrize("quantity", ["size", "download", "memory"])
def test_sizes(quantity: str, text: str, size_bytes: float) -> None:
    assert one(**{f"max_{quantity}": text}) == Limit(quantity, size_bytes, text=text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "latency_ms", "percentile"),
    [("60ms", 60, 50), ("800us", 0.8, 50), ("800µs", 0.8, 50), ("1.5s", 1500, 50), ("p95:60ms", 60, 95)]
    + [(f"p{percentile}: 2 ms", 2, percentile) for percentile in (50, 90, 95, 99)],
)
def test_latencies(text: str, latency_ms: float, percentile: int) -> None:
    assert one(max_latency=text) == Limit("latency", pytest.approx(latency_ms), percentile=percentile, text=text)


def test_relative_limits() -> None:
    assert one(max_size="0.3x") == Limit("size", 0.3, relative=True, text="0.3x")
    assert one(max_memory="1 X") == Limit("memory", 1.0, relative=True, text="1 X")
    assert one(max_latency="p99:0.6x") == Limit("latency", 0.6, relative=True, percentile=99, text="p99:0.6x")


@pytest.mark.parametrize(("text", "share"), [("90%", 0.9), ("0.9", 0.9), ("100 %", 1.0), ("1", 1.0)])
def test_accuracy_is_a_share(text: str, share: float) -> None:
    assert one(min_accuracy=text) == Limit("accuracy", pytest.approx(share), text=text)


@pytest.mark.parametrize(("text", "points"), [("1pt", 1), ("0pt", 0), (".5 pt", 0.5)])
def test_drop_is_in_points(text: str, points: float) -> None:
    assert one(max_drop=text) == Limit("drop", points, text=text)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10min", 600), ("1.5h", 5400)])
def test_time(text: str, seconds: float) -> None:
    assert Budget.parse(max_time=text).max_time_s == seconds


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"max_size": "3"}, "--max-size '3' cannot be read: write a number with one of the units B, kB, MB, GB, KiB"),
        ({"max_size": "3 parsecs"}, "--max-size '3 parsecs' cannot be read"),
        ({"max_size": "-3MB"}, "--max-size '-3MB' cannot be read"),
        ({"max_size": ""}, "--max-size '' cannot be read"),
        ({"max_size": "0MB"}, "--max-size '0MB' can never be met: it must be more than zero"),
        ({"max_size": "0x"}, "--max-size '0x' can never be met"),
        ({"max_size": "1e999MB"}, "--max-size '1e999MB' is no limit"),
        ({"max_download": "3ms"}, "--max-download '3ms' cannot be read"),
        ({"max_memory": "much"}, "--max-memory 'much' cannot be read: .* for example 3MB or 0.3x"),
        ({"max_latency": "60"}, "--max-latency '60' cannot be read: .* us, .*ms, s, for example 60ms, p95:60ms or"),
        ({"max_latency": "60MB"}, "--max-latency '60MB' cannot be read"),
        ({"max_latency": "p80:60ms"}, "--max-latency 'p80:60ms': percentiles p50, p90, p95 and p99 are measured"),
        ({"max_latency": "0ms"}, "--max-latency '0ms' can never be met"),
        ({"max_drop": "1"}, "--max-drop '1' cannot be read: write a number with the unit pt, for example 1pt"),
        ({"max_drop": "1%"}, "--max-drop '1%' cannot be read"),
        ({"max_drop": "-1pt"}, "--max-drop '-1pt' cannot be read"),
        ({"min_accuracy": "90"}, "--min-accuracy '90' can never be met: write 90% or 0.9"),
        ({"min_accuracy": "0%"}, "--min-accuracy '0%' asks for nothing: write 90% or 0.9"),
        ({"min_accuracy": "high"}, "--min-accuracy 'high' cannot be read"),
        ({"max_energy": "1mJ"}, "There is no limit 'max_energy': known are max_size, "),
        ({"max_time": "10"}, "--max-time '10' cannot be read: .* s, min, h, for example 10min"),
        ({"max_time": "0s"}, "--max-time '0s' can never be met"),
        ({"max_trials": 0}, "--max-trials 0 leaves nothing to try: give a whole number from 1"),
        ({"max_size": "2MB", "max_download": "3MB"}, "--max-download 3MB and --max-size 2MB contradict each other"),
        ({"max_size": "0.2x", "max_download": "0.3x"}, "--max-download 0.3x and --max-size 0.2x contradict"),
    ],
)
def test_refusals_are_sentences(words: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence}"):
        Budget.parse(**words)


def test_what_does_not_contradict() -> None:
    assert len(Budget.parse(max_size="3MB", max_download="3MB").limits) == 2
    assert len(Budget.parse(max_size="2MB", max_download="0.3x").limits) == 2
    assert Budget.parse() == Budget()


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    for name in ("max_size", "max_download", "max_memory", "max_latency", "max_drop", "min_accuracy", "max_time"):
        try:
            budget = Budget.parse(**{name: text})
        except UserError as error:
            assert repr(text)[1:-1] in str(error) or text in str(error)
        else:
            json.dumps(budget.to_json(), allow_nan=False)


@given(
    st.floats(0.001, 1e6),
    st.sampled_from([(name, units) for units in (BYTES, MILLISECONDS, SECONDS) for name in units]),
    st.sampled_from(["", " ", "  "]),
    st.booleans(),
)
def test_numbers_with_units(number: float, unit: tuple[str, dict[str, float]], gap: str, lower: bool) -> None:
    name, units = unit
    word = name.lower() if lower else name
    assert parse_unit(f"{number}{gap}{word}", units, "--x", "1") == pytest.approx(number * units[name])


limits = st.builds(
    Limit,
    st.sampled_from(["size", "download", "memory", "latency", "drop", "accuracy"]),
    st.floats(0, 1e12),
    st.booleans(),
    st.sampled_from([50, 90, 95, 99]),
    st.text(max_size=8),
)
budgets = st.builds(
    Budget,
    st.lists(limits, max_size=4).map(tuple),
    st.none() | st.floats(1, 1e6),
    st.none() | st.integers(1, 100),
    st.sampled_from(["speed", "size", "accuracy", "balanced"]),
)


@given(budgets)
def test_json_both_ways(budget: Budget) -> None:
    assert Budget.from_json(json.loads(json.dumps(budget.to_json()))) == budget
