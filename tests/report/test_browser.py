"""The page in a real browser, at the width of a phone and of a desk: nothing overflows, complains or loads."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pocketfit.report.run.render import write_report
from tests.report.run import sample_ladder, sample_run

BROWSER = next(
    (p for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (p := shutil.which(name))), None
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--enable-logging=stderr",
    "--allow-file-access-from-files",  # the probe looks into its own iframe
    "--virtual-time-budget=8000",
    "--window-size=1400,1000",
)
# A window cannot be as narrow as a phone, an iframe can.
PROBE = """<!doctype html><body><pre id="answer">nothing</pre>
<iframe width="%d" height="900" src="report.html"></iframe>
<script>
document.querySelector("iframe").addEventListener("load", (event) => {
  const view = event.target.contentWindow, page = view.document, root = page.documentElement;
  const rows = page.querySelector("table").tBodies[0].rows;
  const column = (index) => [...rows].map((row) => row.cells[index].dataset.v);
  const before = column(2);
  page.querySelectorAll("thead th")[2].querySelector("button").click();
  const up = column(2);
  page.querySelectorAll("thead th")[2].querySelector("button").click();
  const down = column(2);
  const plots = () => [...page.querySelectorAll(".plot-box")].map((plot) => view.getComputedStyle(plot).display);
  const first = plots();
  page.querySelectorAll(".switches label")[1].click();
  const narrow = [...page.querySelectorAll("main > *, section > *, h1, p, svg")].filter((each) => {
    const box = each.getBoundingClientRect();
    return box.right > view.innerWidth + 1 && !each.closest(".scroll");
  });
  document.getElementById("answer").textContent = JSON.stringify({
    inner: view.innerWidth, scroll: root.scrollWidth, body: page.body.scrollWidth, before, up, down, first,
    second: plots(), requests: view.performance.getEntriesByType("resource").map((entry) => entry.name),
    outside: narrow.map((each) => each.tagName + " " + each.className),
    pictures: [...page.images].map((image) => image.complete && image.naturalWidth > 0),
    hover: [...page.querySelectorAll("svg .point title")].length,
    sizes: [...page.querySelectorAll("svg text")].map((text) => text.getBoundingClientRect().height),
  });
});
</script>"""

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on PATH"),
    pytest.mark.slow,
]


def probe(folder: Path, width: int, variant: sample_run.Variant | None) -> tuple[dict[str, Any], list[str]]:
    """What the page says of itself at this width, and the lines that the browser's console printed.

    variant  None: the run that climbed the ladder
    """
    assert BROWSER is not None
    write_report(sample_ladder.write(folder) if variant is None else sample_run.write(folder, variant))
    (folder / "probe.html").write_text(PROBE % width)
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", (folder / "probe.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    answer = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert answer is not None and answer[1] != "nothing", done.stderr[-2000:]
    return json.loads(html.unescape(answer[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", [360, 1280])
def test_the_whole_page(tmp_path: Path, width: int) -> None:
    seen, console = probe(tmp_path, width, "met")
    assert console == []
    assert seen["requests"] == []
    assert seen["inner"] == width
    assert max(seen["scroll"], seen["body"]) <= seen["inner"] and seen["outside"] == []
    assert seen["pictures"] and all(seen["pictures"])
    assert min(size for size in seen["sizes"] if size) > 11, "text in the drawings is scaled down"
    assert seen["hover"] == 2 * 12


def test_sorting_and_switching(tmp_path: Path) -> None:
    seen, _ = probe(tmp_path, 1280, "met")
    sizes = [value for value in seen["before"] if value]
    assert seen["up"] == [*sorted(sizes, key=float), "", ""]
    assert seen["down"] == [*sorted(sizes, key=float, reverse=True), "", ""]
    assert (seen["first"], seen["second"]) == (["block", "none"], ["none", "block"])


def test_the_infeasible_page_on_a_phone(tmp_path: Path) -> None:
    seen, console = probe(tmp_path, 360, "infeasible")
    assert console == [] and seen["scroll"] <= seen["inner"] and seen["outside"] == []


@pytest.mark.parametrize("width", [360, 1280])
def test_where_the_accuracy_went(tmp_path: Path, width: int) -> None:
    seen, console = probe(tmp_path, width, None)
    assert console == [] and seen["requests"] == []
    assert max(seen["scroll"], seen["body"]) <= seen["inner"] == width and seen["outside"] == []
