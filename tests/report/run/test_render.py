from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from pocketfit.core.errors import UserError
from pocketfit.report.run.render import render, write_report
from pocketfit.report.run.run_data import report_data
from tests.report.page_checks import Page, whole
from tests.report.run import sample_run

VARIANTS = ("met", "uncertified", "infeasible", "stopped", "empty")


def page_of(variant: sample_run.Variant = "met", **settings: Any) -> str:
    return render(report_data(sample_run.lines(variant, **settings), sample_run.result(variant, **settings)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_page_is_whole_and_loads_nothing(variant: sample_run.Variant) -> None:
    whole(page_of(variant))


def test_accessible_names_are_there() -> None:
    page = Page(page_of())
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))
    assert len(page.all("caption")) == len(page.all("table")) == 3
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))
    assert all(image.get("alt") for image in page.all("img"))


def test_order_of_the_sections() -> None:
    text = page_of("infeasible")
    titles = re.findall(r"<h[12][^>]*>(.*?)</h[12]>", text)
    assert titles[0].startswith("Limits not met")
    assert titles[1:] == [
        "Before, after, and the limits",
        "Why this plan",
        "What stands in the way",
        "All trials",
        "Table of trials",
        "Where the accuracy went",
        "Layer by layer",
        "Class by class",
        "Where old and new disagree",
        "Make it again",
        "What this stands on",
    ]


def test_only_the_pages_own_script_may_run() -> None:
    text = page_of()
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    policy = Page(text).all("meta")[2]["content"]
    assert policy is not None and f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def poisoned(value: Any) -> Any:
    """Every free text of the journal with markup in it; what is of a fixed vocabulary stays."""
    fixed = {"kind", "stage", "status", "runtime", "pass", "precision", "activations", "how", "unit", "quantity"}
    fixed |= {"criterion", "io", "layout", "split", "prefer", "picture", "weights", "ranges"}
    fixed |= {"distillation", "optimizer", "sha256"}
    if isinstance(value, dict):
        return {k: v if k in fixed else poisoned(v) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(v) for v in value]
    return (
        f"{value}</title></style><img src=x onerror=alert(1)>\"'<script>alert(1)</script>"
        if isinstance(value, str)
        else value
    )


def test_every_text_is_escaped() -> None:
    lines = [poisoned(line) if line["kind"] != "something new" else line for line in sample_run.lines("infeasible")]
    result = sample_run.result("infeasible")
    for key in ("explanation", "shortfall"):
        result[key] = poisoned(result[key])
    result["chosen"]["plan"]["export"]["keep_float"] = ["</pre><script>alert(1)</script>"]
    result["baseline"], result["chosen"] = poisoned(result["baseline"]), poisoned(result["chosen"])
    result["shortfall"]["binding"] = ["<script>alert(1)</script>"]
    clean, text = Page(page_of("infeasible")), render(report_data(lines, result))
    page = Page(text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert len(page.all("script")) == 1 and len(page.all("img")) == len(clean.all("img"))
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.wrong == [] and page.open == []


def test_what_was_not_measured_is_said() -> None:
    text = page_of("uncertified", memory_possible=False)
    assert "not possible here" in text and "this system has no /proc" in text
    assert "Met, not certified" in text
    lines = sample_run.lines()
    next(line for line in lines if line.get("number") == 4)["measurements"]["latency_ms"].update(how="estimated")
    marked = render(report_data(lines, sample_run.result()))
    assert '≈ 3.35 ms <span class="how">estimated</span>' in marked


def test_failed_trials_show_their_log() -> None:
    text = page_of()
    assert text.count("<summary>End of its log</summary>") == len(sample_run.FAILED)
    assert "op HARD_SWISH &amp; friends &lt;not supported&gt;" in text


def test_write_report_is_atomic_and_leaves_out_a_torn_line(tmp_path: Path) -> None:
    out = sample_run.write(tmp_path / "out")
    expected = write_report(out).read_text()
    with (out / "journal.jsonl").open("a") as journal:
        journal.write('{"kind":"trial","number":99,"pl')
    path = write_report(out)
    assert path == out / "report.html" and path.read_text() == expected
    assert sorted(p.name for p in out.iterdir()) == ["journal.jsonl", "report.html", "result.json"]


def test_write_report_refuses_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"journal\.jsonl does not exist"):
        write_report(tmp_path)
    out = sample_run.write(tmp_path / "out")
    (out / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json is no JSON: .*; the same `pocketfit fit` command"):
        write_report(out)
    (out / "result.json").write_text(json.dumps({"schema_version": 7}))
    with pytest.raises(UserError, match="'schema_version' is 7: give one of 1"):
        write_report(out)
    assert not (out / "report.html").exists()


def test_five_hundred_trials_stay_light() -> None:
    lines = sample_run.lines()
    trial = next(line for line in lines if line.get("number") == 4)
    lines += [{**trial, "number": 100 + i} for i in range(500)]
    began = time.process_time()
    text = render(report_data(lines, sample_run.result()))
    assert len(text) < 1_500_000
    assert time.process_time() - began < 10
