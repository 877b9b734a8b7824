"""A latency whose interval holds the limit is measured again before it decides."""

from __future__ import annotations

from pocketfit.search import journal
from pocketfit.search.decide.choose import choose
from pocketfit.search.decide.doubtful_latency import doubtful
from tests.search import builders

BASE = builders.baseline()
LIMIT = builders.budget(max_latency="0.6x", prefer="size")


def test_one_that_would_be_chosen_if_it_were_a_little_faster_is_doubtful() -> None:
    near = builders.trial(1, latency=0.61, size=0.2, precision="int8")
    safe = builders.trial(2, latency=0.5, size=0.5, precision="float16")
    assert doubtful([BASE, near, safe], LIMIT) is near
    assert doubtful([BASE, near, safe], LIMIT, {1}) is None, "once is enough"
    far = builders.trial(1, latency=0.7, size=0.2, precision="int8")
    assert doubtful([BASE, far, safe], LIMIT) is None
    larger = builders.trial(1, latency=0.61, size=0.7, precision="int8")
    assert doubtful([BASE, larger, safe], LIMIT) is None, "it would not be chosen in any case"


def test_the_chosen_one_is_doubtful_where_it_may_miss_the_limit() -> None:
    chosen = builders.trial(1, latency=0.595, size=0.2, precision="int8")
    assert doubtful([BASE, chosen], LIMIT) is chosen
    assert doubtful([BASE, builders.trial(1, latency=0.5, size=0.2)], LIMIT) is None
    assert doubtful([BASE, chosen], builders.budget(max_size="0.3x")) is None, "no limit on the latency, no doubt"
    assert doubtful([], LIMIT) is None


def test_what_was_measured_again_takes_the_place_of_the_first_figure() -> None:
    near, safe = builders.trial(1, latency=0.61, size=0.2, precision="int8"), builders.trial(2, latency=0.5, size=0.5)
    careful = builders.trial(1, latency=0.58, spread=0.005, size=0.2).measurements
    timing = {name: m.to_json() for name, m in careful.items() if name.startswith("latency")}
    lines = [builders.line(t) for t in (BASE, near, safe)]
    again = journal.digest([*lines, {"kind": "timing", "trial": 1, "measurements": timing}])
    assert again.measured_again == {1} and again.trial(1).value("latency_ratio") == 0.58
    assert again.trial(1).value("size_bytes") == near.value("size_bytes")
    before, after = choose([BASE, near, safe], LIMIT), choose(again.trials, LIMIT)
    assert before is not None and after is not None
    assert (before.trial.number, after.trial.number) == (2, 1)
    assert doubtful(again.trials, LIMIT, again.measured_again) is None
