"""Where the accuracy went: the section of fit's report, from the journal alone."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from pocketfit.core.budget import Budget
from pocketfit.report.run.accuracy_loss import where_it_went
from pocketfit.report.run.render import render
from pocketfit.report.run.run_data import report_data
from pocketfit.search import journal
from tests.report.run import sample_ladder, sample_run


def entries(
    lines: list[dict[str, Any]] | None = None, chosen: int | None = sample_ladder.CHOSEN
) -> list[dict[str, Any]]:
    record = journal.digest(sample_ladder.lines() if lines is None else lines)
    return where_it_went(record, record.budget, chosen)


def without(*keys: str) -> list[dict[str, Any]]:
    """The journal as an older pocketfit wrote it."""
    lines = sample_ladder.lines()
    line = lines[-1]
    for key in keys:
        line.pop(key, None)
    if "columns" in keys:
        line["rows"] = [{key: row[key] for key in ("layer", "share")} for row in line["rows"]]
    return lines


def test_words_on_top_say_what_was_lost_where_and_what_mended_it() -> None:
    litert, other = entries()
    assert (litert["runtime"], other["runtime"]) == ("litert", "onnxruntime"), "the chosen trial's runtime comes first"
    assert litert["sentences"] == [
        "Static int8 as it is (wi8ai8) loses 6.40 pt on the validation split (95 % interval 5.80 to 7.00 pt); the limit"
        " is drop at most 1.0 pt.",
        "Of its noise (estimated), 41 % come from features.1.conv.1 (one of its 16 channels has 96 times the median"
        " range).",
        "Of the noise after the first repairs (eq-round-wi8ai8-mse, which leave 18.6 dB), 8 % come from"
        " features.4.conv.1, 8 % from features.9.conv.0.",
        "The best repair brought the loss from 6.40 pt to 0.60 pt: channels equalized, weights rounded by learning, 2"
        " layers in float.",
    ]
    (told,) = other["sentences"]
    assert told.endswith("which is within the limit (drop at most 1.0 pt): no repair was needed.")
    assert (other["rungs"], other["layers"], other["keep_float"]) == ([], None, "")


def test_rungs_are_the_whole_files_of_the_runtime() -> None:
    rungs = entries()[0]["rungs"]
    assert [r["number"] for r in rungs] == [2, 5, 6, 7, 8, 9]
    assert [r["gain"] for r in rungs] == ["", "-0.50 pt", "-4.50 pt", "-5.10 pt", "-5.80 pt", ""]
    assert rungs[1]["name"] == "ranges by least squared error"
    assert [r["number"] for r in rungs if r["chosen"]] == [8] and [r["number"] for r in rungs if r["failed"]] == [9]
    assert [c["text"] for c in rungs[4]["cells"]] == ["0.60 pt", "2.95 MB", "0.50x"]


def test_layers_say_what_they_cost_what_was_done_and_what_that_did() -> None:
    table = entries()[0]["layers"]
    first, second = table["rows"][0], table["rows"][1]
    assert first["name"] == sample_ladder.KEPT[0] and first["done"] == "kept in float"
    assert [s["text"] for s in first["shares"]] == ["41.0 %", "3.3 %"] and first["widest"]["then"] == "then 1.90x"
    assert second["done"] == "channels equalized, rounded by learning"
    exact = next(row for row in table["rows"] if row["name"] == sample_ladder.LAYERS[3])
    assert (exact["alone"][0]["text"], exact["alone"][0]["then"]) == ("17.3 dB", "then exact")
    assert len(table["rows"]) == len(sample_ladder.LAYERS) and table["done"].endswith("mix2, the chosen plan")
    assert entries()[0]["keep_float"] == ",".join(sample_ladder.KEPT)
    assert entries()[0]["worth"] == "their multiply-accumulates"
    timed = sample_ladder.lines()
    timed[-1]["rows"] = [{**row, "more_us": 3.0} for row in timed[-1]["rows"]]
    assert entries(timed)[0]["worth"] == "the time that they take more in float, as litert profiles it"


def test_an_older_journal_has_fewer_columns_and_none_is_made_up() -> None:
    (entry, _) = entries(without("plain", "whole_db", "judged", "columns"))
    table = entry["layers"]
    assert not any(table[key] for key in ("before", "alone", "widest", "why", "judged"))
    assert len(table["rows"][0]["shares"]) == 1
    assert entry["sentences"][1].startswith("Of the noise after the first repairs (eq-round-wi8ai8-mse), 8 % come")
    text = render(report_data(without("plain", "whole_db", "judged", "columns"), sample_ladder.result()))
    assert "Weights alone" not in text and "Widest channel" not in text and "Share of noise" in text
    unknown = [line for line in sample_ladder.lines() if line["kind"] != "sensitivity"]
    assert entries(unknown)[0]["layers"] is None and entries(unknown)[0]["rungs"]


def test_an_error_in_place_of_rows_is_said() -> None:
    lines = without("plain", "whole_db", "judged")
    lines[-1] |= {"rows": [], "error": "torch.export cannot follow Net"}
    (entry, _) = entries(lines)
    assert "Which layers cost it could not be told: torch.export cannot follow Net." in entry["sentences"]
    assert entry["layers"] is None


def test_layers_that_were_never_tried_in_float_are_named_by_their_noise() -> None:
    lines = [line for line in sample_ladder.lines() if line.get("number") not in (7, 8, 9)]
    kept = entries(lines, chosen=6)[0]["keep_float"].split(",")
    assert kept and set(kept) <= set(sample_ladder.LAYERS)
    assert {"features.4.conv.1", "features.9.conv.0"} < set(kept)


@pytest.mark.parametrize(
    ("words", "drop", "ending"),
    [
        ({}, 6.4, "No limit was set on the accuracy, so nothing had to be done about it."),
        ({"max_drop": "1pt"}, 0.4, "which is within the limit (drop at most 1.0 pt): no repair was needed."),
        ({"max_drop": "0.1pt"}, 6.4, "the limit is drop at most 0.1 pt, and no repair has been tried."),
        ({"min_accuracy": "0.93"}, 0.0, "which is within the limit (accuracy at least 93.00 %): no repair was needed."),
    ],
)
def test_where_the_ladder_was_not_climbed_one_sentence_says_so(words: Any, drop: float, ending: str) -> None:
    trials = [line for line in sample_ladder.lines() if line.get("stage") in ("baseline", "recipe")]
    for line in trials:
        if line["number"] == 2:
            line["measurements"]["drop_points"]["value"] = drop
            line["measurements"]["accuracy"]["value"] = 0.931 - drop / 100
    (entry,) = where_it_went(journal.digest(trials[:1] + trials[2:3]), Budget.parse(**words), 2)
    assert len(entry["sentences"]) == 1 and entry["sentences"][0].endswith(ending)
    assert (entry["rungs"], entry["layers"], entry["keep_float"]) == ([], None, "")


def test_no_static_int8_file_no_section() -> None:
    assert entries([line for line in sample_ladder.lines() if line.get("stage") == "baseline"], chosen=None) == []
    assert entries(sample_run.lines("empty"), chosen=None) == []


def test_the_order_of_the_lines_does_not_matter_and_the_page_points_to_explain() -> None:
    lines = sample_ladder.lines()
    text = render(report_data(lines, sample_ladder.result()))
    random.Random(0).shuffle(lines)
    assert render(report_data(lines, sample_ladder.result())) == text
    assert "pocketfit explain MODEL --data DATA --runtime litert -o OUT" in text
    assert "--keep-float features.1.conv.1,features.3.conv.0" in text
    assert len(re.findall(r'id="keep-float-\d"', text)) == 1
    assert text.index("Table of trials") < text.index("Where the accuracy went") < text.index("What this stands on")
