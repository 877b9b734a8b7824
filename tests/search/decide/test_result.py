"""result.json in every status: it fits its schema, and says what the journal says."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema
import pytest

from pocketfit.core.budget import Budget
from pocketfit.core.plan.prune import Prune, Sparsify
from pocketfit.core.plan.train import Train
from pocketfit.core.trial import Trial
from pocketfit.report.page import words
from pocketfit.search import journal
from pocketfit.search.decide.result import compose
from tests.search import builders

SCHEMA = json.loads(resources.files("pocketfit.search.decide").joinpath("result.schema.json").read_text())
WORDS: dict[str, Any] = {"max_size": "0.4x", "max_latency": "0.7x", "max_drop": "1pt", "max_memory": "2x"}
BASE, CHOSEN = builders.baseline(), builders.trial(1, size=0.3, latency=0.5, precision="int8")
SLOW = builders.trial(2, size=0.35, latency=1.6, precision="dynamic-int8")


def composed(
    trials: list[Trial], lines: list[Any] | None = None, *, finished: bool = True, budget: Budget | None = None
) -> dict[str, Any]:
    limits = budget or builders.budget(**WORDS)
    record = journal.digest([builders.start(limits), *map(builders.line, trials), *(lines or [])])
    data = compose(record, limits, finished=finished)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(data, allow_nan=False)))
    return data


def reading(**settings: Any) -> list[Any]:
    return [{"kind": "reading", "trial": 1, "reading": 1}, builders.verdict(CHOSEN, **settings)]


def test_met_on_the_verdict_split() -> None:
    data = composed([BASE, CHOSEN, SLOW, builders.failed(3)], reading())
    assert (data["status"], data["trials"], data["shortfall"]) == ("met", 4, None)
    assert data["chosen"]["trial"] == 1 and data["baseline"]["trial"] == 0
    assert data["chosen"]["artifact"]["sha256"] == CHOSEN.artifact.sha256  # type: ignore[union-attr]
    comparison = data["comparison"]
    assert comparison["size_ratio"] == pytest.approx(0.3)
    assert comparison["latency_ratio"] == {"value": 0.5, "low": 0.45, "high": 0.55}
    assert comparison["drop"] == {
        "metric": "accuracy", "points": 0.3, "low": pytest.approx(-0.1), "high": pytest.approx(0.7), "n": 3000,
        "split": "verdict",
    }  # fmt: skip
    text = " ".join(data["explanation"])
    assert "dynamic" not in text and f"{SLOW.plan.code} (litert) was left: latency 1.6x misses 0.7x" in text
    assert "slower than float32 (1.60x)" in text
    assert "beside it" not in text and "in its best" not in text and "while searching" not in text
    assert "failed: It died." in text


def test_certified_needs_every_bound() -> None:
    limits = {k: v for k, v in WORDS.items() if k != "max_memory"}  # memory has no bound
    assert composed([BASE, CHOSEN], reading(), budget=builders.budget(**limits))["certified"] is True
    assert composed([BASE, CHOSEN], reading(), budget=builders.budget(**WORDS))["certified"] is False
    assert composed([BASE, CHOSEN], reading(sure=0.8), budget=builders.budget(**limits))["certified"] is False
    assert composed([BASE, CHOSEN], budget=builders.budget(**limits))["certified"] is False, "the verdict was not read"
    assert composed([BASE, CHOSEN], reading(), finished=False, budget=builders.budget(**limits))["certified"] is False


BESIDE = ("other processes used up to 0.97 of 2 cores (in 6 of 6 sessions)", "the baseline took up to 3.00x")


def test_a_latency_beside_other_work_is_met_by_its_value_and_never_certified() -> None:
    limits = builders.budget(max_size="0.4x", max_latency="0.7x", max_drop="1pt")
    data = composed([BASE, CHOSEN], reading(disturbed=BESIDE), budget=limits)
    assert (data["status"], data["certified"]) == ("met", False)
    size, latency, drop = data["limits"]
    assert size["certified"] and drop["certified"] and latency["met"] and not latency["certified"]
    assert latency["worst"] <= latency["limit"] and "0.97 of 2 cores" in latency["reason"]
    assert data["comparison"]["latency_ratio"]["disturbed"] == list(BESIDE)
    assert "not certified: its latency was taken beside other work." in data["explanation"][0]
    assert data["explanation"][1].startswith("The latency is not certified, because other work ran beside it: other")
    assert data["explanation"][1].endswith(f"measure {CHOSEN.artifact.path} --against {BASE.artifact.path}")  # type: ignore[union-attr]


def test_without_a_limit_on_latency_the_rest_is_certified_and_the_doubt_is_said() -> None:
    data = composed([BASE, CHOSEN], reading(disturbed=BESIDE), budget=builders.budget(max_size="0.4x"))
    assert data["certified"] is True
    assert any("The latency is not certified" in sentence for sentence in data["explanation"])


def test_two_figures_that_do_not_agree_are_both_said() -> None:
    searched = builders.trial(1, size=0.3, latency=0.072, precision="int8")
    data = composed([BASE, searched], reading(baseline_ms=12.1, best_ms=4.0))
    text = " ".join(data["explanation"])
    assert "The latency ratio was 0.072x (0.0706 to 0.0734) while searching, and 0.5x (0.45 to 0.55) in" in text
    assert "The baseline took 12.10 ms in these sessions and 4.00 ms in its best ones of this run (3.02x)" in text


def test_what_cannot_be_told_from_the_same_time_is_not_called_slower() -> None:
    vague = builders.trial(2, size=0.35, latency=1.1, spread=0.15, precision="float16")
    (sentence,) = (s for s in composed([BASE, CHOSEN, vague])["explanation"] if s.startswith(vague.plan.code))
    assert "slower" not in sentence


def test_a_miss_on_the_verdict_split_is_infeasible_and_no_second_is_tried() -> None:
    data = composed([BASE, CHOSEN, builders.trial(2, size=0.35, latency=0.6, precision="float16")], reading(drop=1.4))
    assert (data["status"], data["certified"], data["chosen"]["trial"]) == ("infeasible", False, 1)
    assert data["comparison"]["drop"]["split"] == "verdict"
    text = " ".join(data["explanation"])
    assert "drop 1.4pt against 1pt" in text and "No second plan" in text


def test_a_met_limit_on_the_search_split_is_not_called_a_verdict() -> None:
    data = composed([BASE, CHOSEN])
    assert data["status"] == "met" and data["comparison"]["drop"]["split"] == "search"
    assert "the test split has not been read for it" in data["explanation"][0]


def test_other_limits_choose_from_the_same_journal() -> None:
    tiny = builders.trial(2, size=0.1, latency=0.5, drop=0.9, precision="float16")
    data = composed([BASE, CHOSEN, tiny], reading(), budget=builders.budget(max_size="0.2x"))
    assert data["chosen"]["trial"] == 2 and data["comparison"]["drop"]["split"] == "search"
    assert not data["certified"]


def test_infeasible_says_why() -> None:
    data = composed([BASE, CHOSEN], budget=builders.budget(max_size="0.1x"))
    assert data["status"] == "infeasible"
    assert data["shortfall"]["binding"] == ["size"] and data["shortfall"]["sentences"]
    assert data["limits"][0]["met"] is False


def test_stopped() -> None:
    data = composed([BASE, CHOSEN], finished=False)
    assert (data["status"], data["certified"], data["shortfall"]) == ("stopped", False, None)
    assert data["chosen"]["trial"] == 1
    assert "the search is not over" in data["explanation"][0]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("trials", [[], [builders.failed(0, stage="baseline")]])
def test_no_file_yet(trials: list[Trial], finished: bool) -> None:
    data = composed(trials, finished=finished)
    assert data["chosen"] is data["baseline"] is data["comparison"] is None
    assert data["status"] == ("infeasible" if finished else "stopped")
    assert data["explanation"] == ["No plan has given a file yet."]


def test_unknown_memory_and_a_limit_of_zero_fit_the_schema() -> None:
    unknown = [
        builders.trial(0, size=1, latency=1, drop=0, stage="baseline", memory=None),
        builders.trial(1, memory=None),
    ]
    data = composed(unknown, budget=builders.budget(max_memory="40MB", max_drop="0pt", min_accuracy="1%"))
    assert data["comparison"]["memory_ratio"] is None
    assert "memory could not be checked: there is no /proc here." in data["explanation"]


def test_no_limits() -> None:
    data = composed([BASE, CHOSEN], reading(), budget=builders.budget(prefer="size"))
    assert data["status"] == "met" and "no limits were given" in data["explanation"][0]


def test_an_interrupted_reading_is_counted_and_said() -> None:
    lines = [{"kind": "reading", "trial": 1, "reading": 1}, *reading()]
    data = composed([BASE, CHOSEN], lines)
    assert any("The test split was read 2 times" in sentence for sentence in data["explanation"])


@pytest.mark.parametrize(("ratio", "said"), [(1.3, True), (1.01, True), (0.99, True), (0.9, False)])
def test_int8_that_gains_no_time_is_said(ratio: float, said: bool) -> None:
    """0.99 with an interval up to 1.01 cannot be told from float32 either."""
    other = builders.trial(2, latency=1.4, precision="int8", activations="uint8", stage="ladder")
    data = composed(
        [BASE, builders.trial(1, latency=ratio, precision="int8"), other], budget=builders.budget(max_size="0.4x")
    )
    sentences = [s for s in data["explanation"] if s.startswith("Static int8 ")]
    assert len(sentences) == said
    if said:
        assert ("is not faster than float32" if ratio >= 1 else "cannot be told to be faster") in sentences[0]
        assert f"wi8ai8, takes {ratio:.2f}x the time, 95 % interval {ratio * 0.98:.2f} to" in sentences[0]


def test_rungs_of_the_ladder_that_were_left_have_their_reason() -> None:
    rung = builders.trial(2, drop=3.0, stage="ladder", precision="int8", ranges="mse")
    data = composed([BASE, CHOSEN, rung])
    assert "wi8ai8-mse (litert) was left: drop 3pt misses 1pt." in data["explanation"]


def test_zeros_are_said_to_gain_on_download_only() -> None:
    limits = builders.budget(max_size="0.28x")
    sparse = builders.trial(1, size=0.25, latency=0.5, passes=(Sparsify(0.5),), precision="int8")
    dense = builders.trial(2, size=0.3, latency=0.4, precision="int8")
    (sentence,) = (s for s in composed([BASE, sparse], budget=limits)["explanation"] if "zeros" in s)
    assert "The zeros of sparse50-wi8ai8 show on download: 0.23 MB of a file of 0.25 MB" in sentence
    assert "no sparse kernel runs in litert" in sentence and "no such plan without them" in sentence
    (sentence,) = (s for s in composed([BASE, sparse, dense], budget=limits)["explanation"] if "zeros" in s)
    assert "1.25x the time of wi8ai8, which downloads as 0.27 MB" in sentence
    assert not any("zeros" in s for s in composed([BASE, dense], budget=builders.budget())["explanation"])


def trained(number: int, *, stage: str = "finalist", **settings: Any) -> Trial:
    return builders.trial(number, stage=stage, passes=(Prune(0.3), Train(50), Train(200)), **settings)


def control(number: int) -> Trial:
    return builders.trial(
        number, size=1.0, latency=1.0, drop=-2.0, stage="control", passes=(Train(50), Train(200)), precision="float32"
    )


def judged(chosen: Trial, gain: float, loss: float, **settings: Any) -> list[Any]:
    sides = {name: {"points": x, "low": x - 0.5, "high": x + 0.5} for name, x in (("gain", gain), ("loss", loss))}
    against = {"trial": 9, "steps": 250, "accuracy": 0.92, **sides}
    return [{"kind": "reading", "trial": 1, "reading": 1}, {**builders.verdict(chosen, **settings), "control": against}]


def test_what_more_training_alone_gains_is_told_beside_the_loss() -> None:
    """The pruned network gains a point on a baseline that had not learned out; without pruning it would gain two."""
    chosen = trained(1, precision="int8", size=0.2, drop=-1.0)
    data = composed([BASE, chosen, control(9)], judged(chosen, 2.0, 1.1, drop=-0.9))
    assert data["comparison"]["control"]["loss"]["points"] == 1.1 and data["comparison"]["drop"]["points"] == -0.9
    text = " ".join(data["explanation"])
    assert "250 steps of training without pruning gain 2.00 points (1.50 to 2.50 gained, 95 %)" in text
    assert "against that control, the chosen file loses 1.10 points" in text
    assert "against that one it loses 1.1" in words.verdict_sentence(data)
    assert data["chosen"]["trial"] == 1, "the control itself is never handed over"
    little = composed([BASE, chosen, control(9)], judged(chosen, 0.1, 0.4, drop=0.3))
    assert "against that one" not in words.verdict_sentence(little), "a gain within its interval is none"


def test_a_verdict_by_training_without_a_control_says_so() -> None:
    chosen = trained(1, precision="int8", size=0.2)
    data = composed([BASE, chosen], reading())
    assert data["comparison"]["control"] is None
    assert "no control, a network trained as long without pruning, was made" in " ".join(data["explanation"])
    assert "no control" not in " ".join(composed([BASE, CHOSEN], reading())["explanation"]), "nothing was trained"


def test_the_other_forms_of_the_chosen_network_are_told_with_what_they_cost_and_why_they_were_left() -> None:
    chosen = trained(1, precision="int8", size=0.2, latency=0.5)
    slow = trained(2, precision="dynamic-int8", size=0.19, latency=0.9)
    large = trained(3, precision="float16", size=0.35, latency=0.45, drop=0.0)
    text = " ".join(composed([BASE, chosen, slow, large], reading())["explanation"])
    assert "The chosen network as dwi8 in litert: 0.19 MB, 0.90x of float32's latency, 0.20 points lost" in text
    assert "it was left, as latency 0.9x misses 0.7x" in text
    assert "as fp16 in litert: 0.35 MB" in text and "--prefer speed would take it" in text
