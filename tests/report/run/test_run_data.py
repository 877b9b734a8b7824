from __future__ import annotations

import json
import random
from typing import Any

import pytest

from pocketfit.core.budget import Budget
from pocketfit.report.run.run_data import report_data
from tests.report.run import sample_run

VARIANTS = ("met", "uncertified", "infeasible", "stopped", "empty")


def made(variant: sample_run.Variant = "met", **settings: Any) -> dict[str, Any]:
    return report_data(sample_run.lines(variant, **settings), sample_run.result(variant, **settings))


def bar(data: dict[str, Any], quantity: str) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in data["bars"] if entry["quantity"] == quantity)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_dict_is_plain_and_the_order_of_lines_does_not_matter(variant: sample_run.Variant) -> None:
    lines = sample_run.lines(variant)
    lines.append({**sample_run.verdict_line(), "reading": 2, "after": 0.1})
    expected = json.dumps(report_data(lines, sample_run.result(variant)))
    for seed in range(5):
        shuffled = random.Random(seed).sample(lines, len(lines))
        assert json.dumps(report_data(shuffled, sample_run.result(variant))) == expected


def test_nothing_given_is_changed() -> None:
    lines, result = sample_run.lines(), sample_run.result()
    before = json.dumps([lines, result])
    report_data(lines, result)
    assert json.dumps([lines, result]) == before


def test_bars_hold_both_values_and_the_limit() -> None:
    data = made()
    size, latency, drop = (bar(data, quantity) for quantity in ("size", "latency", "drop"))
    assert (size["draw"]["before"], size["draw"]["limit"]) == (8_950_000, 3_000_000)
    assert size["draw"]["after"] == pytest.approx(0.212 * 8_950_000, abs=1)
    # a relative limit is judged on the interleaved ratio, so that is what is drawn
    assert latency["draw"] == {"kind": "bars", "before": 1.0, "after": 0.34, "limit": 0.6, "low": 0.33, "high": 0.36}
    assert drop["draw"] == {"kind": "interval", "after": 0.2, "low": -0.1, "high": 0.5, "limit": 1.0}
    assert drop["limit"]["text"] == "met, certified" and "test split, n = 10,000" in drop["title"]
    assert bar(data, "accuracy")["after"]["text"] == "92.90 %"  # of the test split, not of the validation split


def test_judgements_come_from_the_result() -> None:
    assert bar(made("uncertified"), "drop")["limit"]["text"] == "met, not certified"
    size = bar(made("infeasible"), "size")["limit"]
    assert (size["state"], size["text"], size["label"]) == ("missed", "not met", "limit 0.05x")


def test_a_latency_beside_other_work_is_not_certified_and_the_reason_stands_beside_it() -> None:
    result = sample_run.result("met")
    why = "other processes used up to 0.97 of 2 cores (in 6 of 6 sessions)"
    latency = next(entry for entry in result["limits"] if entry["quantity"] == "latency")
    latency.update(certified=False, reason=why)
    result["certified"] = False
    data = report_data(sample_run.lines(), result)
    assert bar(data, "latency")["limit"]["text"] == f"met, not certified ({why})"
    assert data["status"]["tag"] == "Met, not certified"
    assert "the latency was taken beside other work" in data["status"]["meaning"]
    assert "bound lies outside" in made("uncertified")["status"]["meaning"]


def test_a_trial_that_was_timed_beside_other_work_says_so_in_its_row() -> None:
    lines = sample_run.lines()
    trial = next(line for line in lines if line.get("number") == 4)
    before = row(report_data(lines, sample_run.result()), 4)["ratio"]["interval"]
    trial["measurements"]["latency_ratio"]["environment"] = {"disturbed": ["other processes used 1 core"]}
    assert row(report_data(lines, sample_run.result()), 4)["ratio"]["interval"] == f"{before}, beside other work"


def row(data: dict[str, Any], number: int) -> dict[str, Any]:
    return next(entry for entry in data["trials"] if entry["number"] == number)


def test_without_limits_in_the_result_the_trial_is_judged_by_its_own_measurements() -> None:
    result = sample_run.result("met")
    del result["limits"]
    data = report_data(sample_run.lines(), result)
    # drop of trial 12 on the search split: 0.3 [-0.3, 0.9]
    assert bar(data, "drop")["limit"]["text"] == "met, certified"
    result["budget"] = Budget.parse(max_size="1MB", max_drop="0.5pt").to_json()
    data = report_data(sample_run.lines(), result)
    assert bar(data, "size")["limit"]["state"] == "missed"
    assert bar(data, "drop")["limit"]["text"] == "met, not certified"


def test_nothing_is_called_certified_before_the_verdict() -> None:
    states = {entry["limit"]["text"] for entry in made("stopped")["bars"] if entry["limit"]}
    assert states == {"met so far, before the verdict"}


def test_what_is_not_possible_is_never_a_number() -> None:
    data = made(memory_possible=False)
    memory = bar(data, "memory")
    assert memory["after"]["text"] == "not possible here" and memory["draw"]["after"] is None
    assert memory["reasons"] == ["this system has no /proc, so peak memory cannot be read"]
    assert memory["limit"]["state"] == "unknown"
    assert "memory (unknown)" in data["trials"][4]["outcome"]


def test_estimates_are_marked() -> None:
    lines = sample_run.lines()
    trial = next(line for line in lines if line.get("number") == 4)
    trial["measurements"]["latency_ms"].update(how="estimated", reason="eager PyTorch")
    data = report_data(lines, sample_run.result())
    latency = data["trials"][4]["latency"]
    assert (latency["text"], latency["how"], latency["reason"]) == ("≈ 3.35 ms", "estimated", "eager PyTorch")
    point = next(p for p in data["plots"][0]["points"] if p["title"].startswith("Trial 4:"))
    assert "estimated" in point["css"] and "estimated" in point["title"]


def test_trials_say_what_they_miss() -> None:
    outcomes = {t["number"]: t["outcome"] for t in made()["trials"]}
    assert outcomes[4] == "within all" and outcomes[12] == "within all"
    assert outcomes[0] == "misses size, latency" and outcomes[7] == "misses drop"
    assert outcomes[2] == outcomes[11] == "failed"


def test_plots_hold_every_measured_trial_and_one_chosen() -> None:
    size, latency = made()["plots"]
    for plot in (size, latency):
        assert len(plot["points"]) == 12
        assert [p["title"].split(":")[0] for p in plot["points"] if "chosen" in p["css"]] == ["Trial 12"]
        assert plot["y"]["limit"] == 1.0
    assert (size["x"]["limit"], latency["x"]["limit"]) == (3e6, 0.6)
    assert size["beyond"] == 1  # 41 points lost do not flatten the rest
    assert size["y"]["high"] < 10
    first, last = size["front"][0], size["front"][-1]
    assert first[0] < last[0] and first[1] > last[1]


def test_a_relative_size_limit_is_drawn_on_a_relative_axis() -> None:
    size = made("infeasible")["plots"][0]
    assert size["x"]["limit"] == 0.05 and size["x"]["title"].startswith("Model size, as a ratio")
    assert max(p["x"] for p in size["points"]) == pytest.approx(1.0)


def test_layers_of_another_trial_are_not_shown() -> None:
    lines = sample_run.lines()
    next(line for line in lines if line["kind"] == "layers")["trial"] = 7
    assert report_data(lines, sample_run.result())["layers"] is None


def test_layers_keep_unmeasured_times_apart() -> None:
    layers = made()["layers"]
    time = layers["rows"][3]["cells"][2]
    assert (time["text"], time["sort"], time["now"]) == ("not measured", "", 0)
    assert layers["rows"][1]["channels"] == "48 → 32"
    assert layers["columns"][2]["total"].endswith("(23 of 24 layers)")
    assert layers["not_possible"] == ["per-operator times of one layer: <it> was fused"]


def test_classes_that_lost_most_come_first() -> None:
    classes = made()["classes"]
    assert classes[0]["label"] == "Coat" and classes[0]["change"] == "-1.20 pt"
    assert [c["points"] for c in classes] == sorted(c["points"] for c in classes)


def test_disagreements_that_got_worse_come_first_and_only_pictures_are_taken() -> None:
    lines = sample_run.lines()
    verdict = next(line for line in lines if line["kind"] == "verdict")
    verdict["disagreements"][0]["picture"] = "https://example.org/tracker.png"
    verdict["disagreements"][1]["picture"] = 'data:image/png;base64,AAAA" onerror="x'
    verdict["disagreements"][2]["picture"] = "data:image/svg+xml;base64,AAAA"
    shown = report_data(lines, sample_run.result())["disagreements"]
    assert sum(not d["picture"] for d in shown["shown"]) == 3
    order = ["lost", "won", "both wrong"]
    assert [d["kind"] for d in shown["shown"]] == sorted((d["kind"] for d in shown["shown"]), key=order.index)
    assert sum(shown["counts"].values()) == shown["total"]


def test_further_readings_of_the_verdict_split_are_said() -> None:
    assert "read once" in made()["verdict"]["note"] and made()["verdict"]["between_sessions"] == "0.012x"
    lines = [*sample_run.lines(), {"kind": "reading", "trial": 7}, {"kind": "reading", "trial": 12}]
    assert "read 3 times" in report_data(lines, sample_run.result())["verdict"]["note"]


def test_a_verdict_about_another_trial_is_not_borrowed() -> None:
    result = sample_run.result("stopped")
    result["chosen"]["trial"] = 4
    data = report_data(sample_run.lines("met"), result)
    assert data["verdict"] is None and data["classes"] == [] and data["disagreements"]["total"] == 0


def test_the_environment_is_readable() -> None:
    about = made()["about"]
    assert ("memory", "25.3 GB") in about["environment"] and ("versions torch", "2.13.0") in about["environment"]
    assert ("test", "10,000") in about["splits"] and about["seconds"] == "7 min 4 s"
    assert "peak memory at most 40.0 MB" in about["budget"] and "limits" not in dict(about["inputs"])


def test_an_empty_run_has_nothing_to_draw() -> None:
    data = made("empty")
    assert data["bars"] == [] and data["plots"] == [] and data["trials"] == [] and data["plan"] is None
    assert data["status"]["tag"] == "Not finished"
