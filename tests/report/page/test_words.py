from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketfit.core.plan.export import ExportSettings, RangeMethod
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.quantize import CorrectBias, Equalize, QuantTrain, Round
from pocketfit.report.page import words
from tests.report.run import sample_run


def test_verdict_when_the_limits_are_met() -> None:
    assert words.verdict_sentence(sample_run.result("met"), "mobilenet_v2") == (
        "mobilenet_v2 now takes 1.90 MB instead of 8.95 MB, runs in 0.34x the time and loses 0.2 points"
        " (95 % interval -0.1 to 0.5, n = 10,000)."
    )


def test_a_ratio_that_holds_one_is_no_gain_and_one_beside_other_work_says_so() -> None:
    result = sample_run.result("met")
    result["comparison"]["latency_ratio"] = {"value": 0.97, "low": 0.93, "high": 1.01}
    assert "runs in about the same time (0.97x)" in words.verdict_sentence(result)
    result["comparison"]["latency_ratio"] = {"value": 0.34, "low": 0.33, "high": 0.36, "disturbed": ["others ran"]}
    assert "runs in 0.34x the time (measured beside other work)" in words.verdict_sentence(result)


def test_a_gain_turns_its_interval_round() -> None:
    result = sample_run.result("met")
    result["comparison"]["drop"].update(points=-0.3, low=-0.6, high=0.1)
    assert "gains 0.3 points (95 % interval -0.1 to 0.6, n = 10,000)" in words.verdict_sentence(result)


def test_other_outcomes_never_sound_like_success() -> None:
    infeasible = words.verdict_sentence(sample_run.result("infeasible"), "net")
    stopped = words.verdict_sentence(sample_run.result("stopped"), "net")
    assert infeasible.startswith("Limits not met: the nearest plan for net takes")
    assert stopped.startswith("Stopped before the end") and "validation split, not yet the test split" in stopped
    assert words.verdict_sentence(sample_run.result("empty"), "net") == (
        "Stopped after 0 trials, before any plan for net had been measured."
    )


@pytest.mark.parametrize(
    ("status", "opening"),
    [
        ("met", "net meets the limits as it is"),
        ("stopped", "Stopped after 14 trials"),
        ("infeasible", "Limits not met"),
    ],
)
def test_a_baseline_that_was_chosen_is_not_compared_with_itself(status: str, opening: str) -> None:
    result = sample_run.result("met")
    result.update(chosen=result["baseline"], status=status)
    sentence = words.verdict_sentence(result, "net")
    assert sentence.startswith(opening) and "in float32 with 8.95 MB" in sentence and "instead of" not in sentence


def test_what_was_not_compared_is_left_out() -> None:
    result = sample_run.result("met")
    result["comparison"].update(latency_ratio=None, drop=None)
    assert words.verdict_sentence(result, "net") == "net now takes 1.90 MB instead of 8.95 MB."


@given(st.floats(1e-6, 1e12))
def test_three_digits_stay_within_half_a_digit(value: float) -> None:
    assert float(words.three_digits(value).replace(",", "")) == pytest.approx(value, rel=5.1e-3)


@given(st.floats(1, 1e12))
def test_bytes_read_back(value: float) -> None:
    number, unit = words.format_bytes(value).split()
    factor = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    assert float(number.replace(",", "")) * factor == pytest.approx(value, rel=5.1e-3, abs=0.5)


@given(st.floats(-100, 100))
def test_points_have_no_negative_zero(points: float) -> None:
    text = words.format_points(points)
    assert text != "-0.0 pt" and float(text.removesuffix(" pt")) == pytest.approx(points, abs=0.0501)


def test_limits_in_words() -> None:
    found = [words.limit_words(limit) for limit in sample_run.budget("infeasible").to_json()["limits"]]
    assert found == [
        "model size at most 0.05x of the baseline",
        "peak memory at most 40.0 MB",
        "latency (p50) at most 0.60x of the baseline",
        "drop at most 1.0 pt",
    ]


def test_plans_in_words() -> None:
    plan = sample_run.trials()[13].plan.to_json()
    assert words.plan_words(plan) == (
        "30 % of the channels pruned, trained for 200 + 800 steps, static int8 (int8 activations) for litert,"
        " 1 named layer left in float"
    )


def test_every_pass_and_setting_of_a_plan_has_its_words() -> None:
    passes = (Equalize(), CorrectBias(), Round(), QuantTrain(1200))
    static = ExportSettings("litert", "int8", weights="int4", keep_float=("a",), keep_int8=("b", "c"), ranges="mse")
    assert words.plan_words(Plan(passes, static).to_json()) == (
        "channels equalized, biases corrected, weights rounded by learning, trained for 1,200 steps on the grid of the"
        " file, static int8 (int8 activations) with int4 weights for litert, ranges by least squared error,"
        " 1 named layer left in float, 2 named layers with int8 weights"
    )
    only = ExportSettings("onnxruntime", "weight-only", weights="int4")
    assert words.plan_words(Plan((), only).to_json()) == "int4 weights, computed in float for onnxruntime"
    for method in get_args(RangeMethod):
        found = words.plan_words(Plan((), ExportSettings("litert", "int8", ranges=method)).to_json())
        assert ("ranges by" in found) == (method != "min-max")
